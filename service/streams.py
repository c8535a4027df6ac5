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

Read = Callable[[int], Batch]
"""Reads a batch from a position; an empty one when there is no more for now."""

_POLL_S = 0.25
_PING_S = 15.0


def wants_stream(request: Request) -> bool:
    """Whether the client asks for server-sent events rather than for a page of JSON."""
    return "text/event-stream" in request.headers.get("accept", "")


async def stream(request: Request, read: Read, position: int, ended: Callable[[], bool]) -> Response:
    """A stream from a position on; `ended` says whether nothing can come any more."""

    def first() -> tuple[bool, Batch]:
        over = ended()  # asked before reading: what is written in between is not lost
        return over, read(position)

    over, batch = await run_in_threadpool(first)
    if over and not batch[0]:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _follow(request, read, batch, ended), media_type="text/event-stream", headers=headers
    )  # fmt: skip


async def _follow(request: Request, read: Read, batch: Batch, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    over, idle_s = False, 0.0
    yield b"retry: 1000\n\n"
    while True:
        records, position = batch
        if records:
            # ASCII: a U+2028 inside a text must not end a line
            yield b"".join(format_sse_event(id=str(n), event=kind, data_str=json.dumps(c)) for n, kind, c in records)
            idle_s = 0.0
        elif over or await request.is_disconnected():
            return
        else:
            await asyncio.sleep(_POLL_S)
            idle_s += _POLL_S
            if idle_s >= _PING_S:
                yield KEEPALIVE_COMMENT
                idle_s = 0.0

        def look(position: int = position) -> tuple[bool, Batch]:
            return ended(), read(position)

        over, batch = await run_in_threadpool(look)
