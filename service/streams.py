"""Server-sent events from files that grow: a job's events, a job's log.

Every record has an id that grows; a client that was cut off says the last one it has, and goes on behind it. The
stream ends when the job has ended and all is said; whoever connects again then gets 204, on which browsers stop.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

Records = list[tuple[int, str, dict[str, Any]]]
"""Records as (id, type, content)."""

Batch = tuple[Records, int]
"""Records, and the position behind them."""

Read = Callable[[int, bool], Batch]
"""Reads a batch from a position; an empty one when there is no more for now. Told whether nothing can come any more."""

_POLL_S = 0.25
_ASK_EVERY, _PING_EVERY = 4, 60  # looks at the file between two questions to the database, and two signs of life


def wants_stream(request: Request) -> bool:
    """Whether the client asks for server-sent events rather than for a page of JSON."""
    return "text/event-stream" in request.headers.get("accept", "")


async def stream(request: Request, read: Read, position: int, ended: Callable[[], bool]) -> Response:
    """A stream from a position on; `ended` says whether nothing can come any more."""
    over, batch = await run_in_threadpool(_look, read, position, ended)
    if over and not batch[0]:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _follow(request, read, batch, ended), media_type="text/event-stream", headers=headers
    )  # fmt: skip


async def _follow(request: Request, read: Read, batch: Batch, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    over, idle = False, 0
    yield b"retry: 1000\n\n"
    while True:
        records, position = batch
        if records:
            # ASCII: a U+2028 inside a text must not end a line
            yield b"".join(format_sse_event(id=str(n), event=kind, data_str=json.dumps(c)) for n, kind, c in records)
            idle = 0
        elif over or await request.is_disconnected():
            return
        else:
            await asyncio.sleep(_POLL_S)
            idle += 1
            if idle % _PING_EVERY == 0:
                yield KEEPALIVE_COMMENT
        asked = ended if idle % _ASK_EVERY == 0 else _not_yet
        over, batch = await run_in_threadpool(_look, read, position, asked)


def _look(read: Read, position: int, ended: Callable[[], bool]) -> tuple[bool, Batch]:
    over = ended()  # asked before reading: what is written in between is not lost
    return over, read(position, over)


def _not_yet() -> bool:
    return False
