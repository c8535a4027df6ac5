"""Records that outlive the program that wrote them: each says which form it has, and every reader knows what to do.

A form is a number, `schema_version`. It is raised whenever a field is added, removed or read in another way, and the
class gets a step that turns the form before it into its own. A reader takes its own form as it is, leads an older one
up the steps in memory (files are never rewritten), and refuses a newer one by name: guessing at fields that it does
not know could publish a wrong dataset. Files from before their kind had a number are form 1.

Invariant: a class of form n has n - 1 steps, so every form that was ever released can be read.
"""

import json
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

import curator
from curator.data import StrictModel
from curator.errors import OutputError

FIELD = "schema_version"

Step = Callable[[dict[str, Any]], dict[str, Any]]
"""From the fields of one form to those of the next, `schema_version` aside; pure."""


class StoredRecord(StrictModel):
    """Base of every record that is kept in a file; a class whose form has changed sets both of these."""

    schema_version: int = 1
    form_steps: ClassVar[tuple[Step, ...]] = ()
    """Step i turns form i + 1 into form i + 2."""


Record = TypeVar("Record", bound=StoredRecord)


def parse_record(kind: type[Record], raw: bytes, where: str) -> Record:
    """Read a record of this form or an older one; the usual case, its own form, is parsed once.

    Args:
        kind: what it is to be.
        raw: its JSON.
        where: names it in messages.

    Raises:
        OutputError: it is of a newer form, or of none.
        ValidationError: it is not JSON, or not such a record.
    """
    try:
        record = kind.model_validate_json(raw)
        if record.schema_version == form_of(kind):
            return record
    except ValidationError:
        if find_form(raw) in (None, form_of(kind)):
            raise
    return kind.model_validate_json(json.dumps(raise_form(kind, json.loads(raw), where)))


def form_of(kind: type[StoredRecord]) -> int:
    """The form that this program writes."""
    form: int = kind.model_fields[FIELD].default
    return form


def find_form(raw: bytes) -> Any:
    """What a stored record says of its form: 1 if nothing; None if it is no JSON object."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return content.get(FIELD, 1) if isinstance(content, dict) else None


def raise_form(kind: type[StoredRecord], content: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields in this program's form; raises OutputError where they cannot be brought to it."""
    own, found = form_of(kind), content.get(FIELD, 1)
    check_form(found, own, where)
    for step in kind.form_steps[found - 1 :]:
        content = step(content)
    return {**content, FIELD: own}


def check_form(found: Any, own: int, where: str) -> None:
    """Raise OutputError for a form that this program cannot read."""
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise OutputError(f"{where} has schema version {found!r}, which nothing writes; restore it or start afresh")
    if found > own:
        raise OutputError(
            f"{where} has schema version {found}, and token-curator {curator.__version__} reads versions up to {own}: "
            "a newer token-curator wrote it; install that one here, or use another output"
        )
