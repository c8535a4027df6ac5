"""The operations of the OpenAPI document, ready to be called: a test that goes through them misses no new endpoint."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = {
    "job_id": "job_00000000000000000000000000", "upload_id": "upl_00000000000000000000000000", "key_id": "aaaaaaaa",
    "number": "0",
}  # fmt: skip
"""Ids of the right form that nothing has."""


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    id: str
    method: str
    path: str
    protected: bool

    @property
    def changes(self) -> bool:
        """Whether it may change something: a dry run is a POST for its body's sake."""
        return self.method != "GET" and self.id != "validate_job"

    @property
    def admin(self) -> bool:
        """Whether it is the operator's."""
        return self.path.startswith("/v1/keys")

    @property
    def needed(self) -> str:
        """The scope that it asks for."""
        if self.path == "/metrics":
            return "metrics"
        return "admin" if self.admin else "write" if self.changes else "read"

    def may_be_called(self, scopes: Collection[str]) -> bool:
        """Whether a key of these scopes may: figures are also the operator's."""
        return not self.protected or self.needed in scopes or (self.path == "/metrics" and "admin" in scopes)

    def url(self, ids: Mapping[str, str] = ABSENT) -> str:
        """The path with ids in it, and whatever its query must have."""
        path = self.path.format_map(dict(ABSENT) | dict(ids))
        return f"{path}?filename=corpus.jsonl" if self.id == "create_upload" else path


def operations(document: dict[str, Any]) -> list[Operation]:
    """All of them."""
    return [
        Operation(operation["operationId"], method.upper(), path, bool(operation.get("security")))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
