"""What happened to a job and what it printed: as a stream of server-sent events, or page by page."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool

from curator import line_file
from curator.job_directory import TERMINAL, Event, EventLog, JobDirectory
from service.auth import Reader
from service.context import Context, Services, find_job
from service.models import EventModel, LogModel, Page
from service.problems import Problem, responses
from service.routes.jobs import JobId
from service.streams import Batch, Records, stream, wants_stream

router = APIRouter(tags=["events"])
_AT_ONCE = 500
_LOG_BYTES_AT_ONCE = 1 << 18
_LAST_EVENT_WITHIN_S = 5.0

After = Annotated[int, Query(ge=0, le=1 << 53, description="id of the last record that you have")]
Cursor = Annotated[int | None, Query(ge=0, le=1 << 53, description="the same, as `next_cursor` of the page before")]
LastEventId = Annotated[
    str | None, Header(pattern=r"^[0-9]{1,15}$", description="the same, as browsers send it on reconnecting")
]
Limit = Annotated[int, Query(ge=1, le=1000)]
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "a page, or with `Accept: text/event-stream` a stream",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "stream only: the job has ended and you have everything"},
}


@router.get(
    "/jobs/{job_id}/events", operation_id="read_events", response_model=Page[EventModel],
    responses={**_STREAM, **responses(401, 403, 404, 422, 429)},
)  # fmt: skip
async def read_events(
    job_id: JobId,
    request: Request,
    context: Context,
    principal: Reader,
    after: After = 0,
    cursor: Cursor = None,
    limit: Limit = 100,
    last_event_id: LastEventId = None,
) -> Any:
    """Events in order; ids are 1, 2, 3 ... without a gap."""

    def find() -> tuple[EventLog, int]:
        log = JobDirectory(find_job(context, principal, job_id).directory).events
        try:
            return log, log.offset_after(_position(after, cursor, last_event_id))
        except FileNotFoundError as error:
            raise Problem(404, "no_job", f"job {job_id!r} has just been deleted") from error

    def read(offset: int, limit: int = _AT_ONCE) -> list[tuple[Event, int]]:
        try:
            return log.read(offset, limit)
        except FileNotFoundError:  # deleted since
            return []

    def read_batch(offset: int, _: bool) -> Batch:
        found = read(offset)
        records: Records = [(event.id, event.type, event.model_dump(mode="json")) for event, _ in found]
        return records, found[-1][1] if found else offset

    log, start = await run_in_threadpool(find)
    if wants_stream(request):
        return await stream(request, read_batch, start, _ended(context, job_id))
    events = [event for event, _ in await run_in_threadpool(read, start, limit + 1)]
    more = len(events) > limit
    data = [EventModel(**event.model_dump()) for event in events[:limit]]
    return Page(data=data, has_more=more, next_cursor=str(data[-1].id) if more else None)


@router.get(
    "/jobs/{job_id}/logs", operation_id="read_logs", response_model=Page[LogModel],
    responses={**_STREAM, **responses(401, 403, 404, 422, 429)},
)  # fmt: skip
async def read_logs(
    job_id: JobId,
    request: Request,
    context: Context,
    principal: Reader,
    after: After = 0,
    cursor: Cursor = None,
    limit: Limit = 100,
    last_event_id: LastEventId = None,
) -> Any:
    """Lines that the job's process printed; an id is the byte offset behind the line."""
    job = await run_in_threadpool(find_job, context, principal, job_id)
    path = JobDirectory(job.directory).log_path
    start = _position(after, cursor, last_event_id)

    def read(offset: int, over: bool) -> Batch:
        lines, end = _read_lines(path, offset, over)
        return [(behind, "log", {"id": behind, "text": text}) for behind, text in lines], end

    if wants_stream(request):
        return await stream(request, read, start, _ended(context, job_id))
    found = await run_in_threadpool(_read_page, path, start, limit + 1, job.terminal)
    data = [LogModel(id=behind, text=text) for behind, text in found[:limit]]
    more = len(found) > limit
    return Page(data=data, has_more=more, next_cursor=str(data[-1].id) if more else None)


def _position(after: int, cursor: int | None, last_event_id: str | None) -> int:
    if last_event_id is not None:
        return int(last_event_id)
    return after if cursor is None else cursor


def _ended(context: Services, job_id: str) -> Callable[[], bool]:
    """Whether all is said: a job may end in the database a moment before the event that says so is written."""

    def ended() -> bool:
        job = context.store.job(job_id)
        if job is None:
            return True
        if not job.terminal:
            return False
        ended_s = 0.0 if job.finished_at is None else job.finished_at.timestamp()
        return time.time() - ended_s > _LAST_EVENT_WITHIN_S or _is_told(JobDirectory(job.directory).events)

    return ended


def _is_told(log: EventLog) -> bool:
    """Whether the newest event says that the job has ended."""
    try:
        with log.path.open("rb") as file:
            newest = json.loads(line_file.last_line(file) or b"{}")
    except FileNotFoundError:  # deleted since
        return True
    return newest.get("type") == "state" and newest["data"]["status"] in TERMINAL


def _read_page(path: Path, offset: int, limit: int, over: bool) -> list[tuple[int, str]]:
    """Up to so many lines, or a few more."""
    found: list[tuple[int, str]] = []
    while len(found) < limit:
        lines, offset = _read_lines(path, offset, over)
        if not lines:
            break
        found += lines
    return found


def _read_lines(path: Path, offset: int, over: bool) -> tuple[list[tuple[int, str]], int]:
    """Whole lines from an offset on, each with the offset behind it.

    A last one without its end is still growing, unless the job is over: then it is what a killed process left.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if offset >= size:  # file systems refuse to seek very far beyond
                return [], offset
            file.seek(offset)
            block = file.read(_LOG_BYTES_AT_ONCE)
    except FileNotFoundError:  # nothing printed yet, or the job has just been deleted
        return [], offset
    whole = block.rfind(b"\n") + 1
    if (not whole and len(block) == _LOG_BYTES_AT_ONCE) or (over and offset + len(block) >= size):
        whole = len(block)  # a line longer than a batch comes in parts
    lines = []
    for line in block[:whole].splitlines(keepends=True):
        offset += len(line)
        lines.append((offset, line.rstrip(b"\r\n").decode("utf-8", "replace")))
    return lines, offset
