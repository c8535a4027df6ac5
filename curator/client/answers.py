"""From answers to typed records: one record, a page after the other, or plain JSON."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, RootModel, ValidationError

from curator.client.connection import Connection
from curator.errors import ServerError

Record = TypeVar("Record", bound=BaseModel)
_Mapping = RootModel[dict[str, Any]]


class _Page(BaseModel):
    """One page of a list."""

    data: list[dict[str, Any]]
    has_more: bool = False
    next_cursor: str | int | None = None


def parse(kind: type[Record], content: bytes | str | dict[str, Any], origin: str) -> Record:
    """The record in JSON or in a mapping; raises ServerError, naming where it came from, if there is none."""
    try:
        return kind.model_validate(content) if isinstance(content, dict) else kind.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "body"
        name = "JSON object" if kind in (_Mapping, _Page) else kind.__name__
        raise ServerError(
            f"{origin} is no sound {name}: {where}: {fault['msg']}; check that this is the address of a curator "
            "service, and of a version like this client's"
        ) from None


def ask(connection: Connection, kind: type[Record], method: str, path: str, **request: Any) -> Record:
    """Send a request, as `Connection.send`, and read the record that it answers."""
    answer = connection.send(method, path, **request)
    return parse(kind, answer.content, f"the answer of {connection.root} to {method} {path}")


def ask_mapping(connection: Connection, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """GET any JSON object."""
    return ask(connection, _Mapping, "GET", path, params=params).root


def read_pages(
    connection: Connection,
    kind: type[Record],
    path: str,
    params: Mapping[str, Any],
    advance: Callable[[str | int | None, Record], dict[str, Any]] | None = None,
) -> Iterator[Record]:
    """Every record of a list; the next page is read when the iterator gets there.

    Args:
        connection: to the service.
        kind: of the records.
        path: of the list.
        params: of its query.
        advance: from a page's cursor and last record to what the next query adds; by default the cursor.
    """
    added: dict[str, Any] = {}
    while True:
        page = ask(connection, _Page, "GET", path, params={**params, **added})
        records = [parse(kind, item, f"an item of {connection.root} {path}") for item in page.data]
        yield from records
        if not page.has_more or not records:
            return
        added = {"cursor": page.next_cursor} if advance is None else advance(page.next_cursor, records[-1])
