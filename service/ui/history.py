"""What a page shows of a job's past before any stream has begun: its states, and the end of its log."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from curator.job_directory import Event, JobDirectory

_LOG_TAIL_BYTES = 32 << 10


@dataclass(frozen=True)
class LogTail:
    """The end of a log: whole lines, the byte offset behind them, and whether there is more before."""

    text: str = ""
    offset: int = 0
    cut: bool = False


@dataclass(frozen=True)
class History:
    """States of the current attempt with their moments, and the id of the newest event that was seen."""

    states: tuple[tuple[datetime, str], ...] = ()
    last_event: int = 0


def read_history(path: Path, attempt: int) -> History:
    """Read the states of one attempt; events of other types, which are nearly all, are not even parsed."""
    states: list[tuple[datetime, str]] = []
    directory = JobDirectory(path)
    try:
        last_event = directory.events.last_id()
        with directory.events.path.open("rb") as lines:
            found = [line for line in lines if b'"type":"state"' in line and line.endswith(b"\n")]
    except FileNotFoundError:  # deleted a moment ago
        return History()
    for line in found:
        event = Event.model_validate_json(line)
        if event.type == "state" and event.attempt == attempt and event.id <= last_event:
            status = event.data["status"]
            if not states or states[-1][1] != status:
                states.append((datetime.fromisoformat(event.at), status))
    return History(tuple(states), last_event)


def read_log_tail(path: Path) -> LogTail:
    """Read the last lines of a job's log."""
    try:
        with JobDirectory(path).log_path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(size - _LOG_TAIL_BYTES, 0)
            file.seek(start)
            block = file.read(size - start)
    except FileNotFoundError:
        return LogTail()
    first = block.find(b"\n") + 1 if start else 0
    end = block.rfind(b"\n") + 1
    text = block[first:end].decode("utf-8", "replace")
    return LogTail(text, start + end, cut=start > 0)
