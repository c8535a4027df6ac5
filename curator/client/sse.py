"""Server-sent events, read from bytes as they arrive (WHATWG HTML, 9.2.6 "Interpreting an event stream").

An event counts when the empty line after it has arrived: what a cut connection leaves half-sent is not given out, so a
reader that reconnects after the last event it was given misses nothing. The format is read here and not by
`httpx.Response.iter_lines`, which also ends lines at U+2028 and other characters that are text in an event.
"""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LONGEST_RETRY = 9  # digits, in ms; Python refuses to read numbers of thousands of digits


@dataclass(frozen=True)
class ServerEvent:
    """One event: its type, its data, and the id of the last event that had one."""

    type: str
    data: str
    last_id: str


class EventParser:
    """Takes chunks of bytes, cut anywhere, and gives out complete events.

    Attributes:
        last_id: id to send as Last-Event-ID when reconnecting; kept between events.
        retry_s: how long the server asks to wait before reconnecting, or None.
    """

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_s: float | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False
        self._line: list[str] = []  # pieces of the line that has not ended yet
        self._after_return = False  # the last chunk ended in CR: an LF that follows belongs to it
        self._type, self._id, self._data = "", "", list[str]()

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """Take the next bytes; gives every event that they complete."""
        text = self._decoder.decode(chunk)
        if not text:
            return
        if not self._started:
            self._started = True
            text = text.removeprefix("\ufeff")
        if self._after_return:
            text = text.removeprefix("\n")
        self._after_return = text.endswith("\r")
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            self._line.append(line)
            event = self._take("".join(self._line))
            self._line.clear()
            if event is not None:
                yield event
        if rest:
            self._line.append(rest)

    def _take(self, line: str) -> ServerEvent | None:
        if line:
            name, _, value = line.partition(":")
            self._set(name, value.removeprefix(" "))
            return None
        self.last_id = self._id  # only now: an event that was cut off must be sent again
        data, kind = self._data, self._type or "message"
        self._data, self._type = [], ""
        return ServerEvent(kind, "\n".join(data), self.last_id) if data else None

    def _set(self, name: str, value: str) -> None:
        match name:  # a comment has the empty name; it and unknown fields are passed over
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= _LONGEST_RETRY:
                self.retry_s = int(value) / 1000


def read_events(chunks: Iterable[bytes], parser: EventParser) -> Iterator[ServerEvent]:
    """Events of one connection; ends, without the last half event, when the chunks do."""
    for chunk in chunks:
        yield from parser.feed(chunk)
