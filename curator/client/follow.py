"""Following a job's events or log while it runs, over connections that may be cut.

Each reconnection names the last record that was given out (Last-Event-ID), and records up to it are passed over, so
that none is lost and none comes twice. The service says that there is nothing more by 204.
"""

from collections.abc import Iterator
from typing import TypeVar

from curator.client.answers import parse
from curator.client.connection import Connection, Patience, Transient
from curator.client.records import JobEvent, LogLine
from curator.client.sse import EventParser, read_events
from curator.errors import ServerError

Numbered = TypeVar("Numbered", JobEvent, LogLine)


def follow(connection: Connection, path: str, kind: type[Numbered], after: int) -> Iterator[Numbered]:
    """Records of a stream as they come, until the job is over.

    Args:
        connection: to the service.
        path: of the stream.
        kind: of its records; their ids only grow.
        after: id of the last record that is known already.

    Raises:
        ServerError: the service refused, sent something else, or was gone for longer than the patience.
    """
    patience = connection.patience()
    for attempt in patience.attempts():
        with attempt:
            headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            if after:
                headers["Last-Event-ID"] = str(after)
            with connection.stream("GET", path, headers=headers) as response:
                if response.status_code == 204:
                    return
                _check_type(connection, path, response.headers.get("content-type", ""))
                for event in read_events(_noted(response.iter_bytes(), patience), EventParser()):
                    record = parse(kind, event.data, f"an event of {connection.root} {path}")
                    if record.id > after:
                        after = record.id
                        yield record
            raise Transient(f"{connection.root}: {path} ended, and the job has not")


def _noted(chunks: Iterator[bytes], patience: Patience) -> Iterator[bytes]:
    """Pass chunks on; each is a sign that the service lives, also a comment that only keeps the connection open."""
    for chunk in chunks:
        patience.advance()
        yield chunk


def _check_type(connection: Connection, path: str, content_type: str) -> None:
    if not content_type.startswith("text/event-stream"):
        raise ServerError(
            f"{connection.root}: {path} answered {content_type or 'no content type'}, not a stream of events; check "
            "that this is the address of a curator service"
        )
