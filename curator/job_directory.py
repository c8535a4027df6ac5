"""The directory of one job: what was asked, what has happened, and who is at it.

    <data-dir>/jobs/<id>/job.json         JobRecord: spec, tenant, idempotency key, attempt, epoch
                         events.jsonl     one Event a line; ids 1, 2, 3 ... without a gap
                         heartbeat.json   who works on it, and when it last said so
                         log.txt          what the job's process printed
                         output/          the dataset, unless the spec says otherwise

`curator run --data-dir` and the service both write it; any process may read it at any time. It is the truth: a
database can be rebuilt from it.

Invariant: whoever writes an event states its epoch, and under the log's lock an epoch older than job.json's is
refused (`Superseded`). Raising the epoch therefore fences off every earlier owner, stopped or merely slow; of two who
raise it to the same number, one is refused.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from curator import line_file, storage, tracing
from curator.data import StrictModel
from curator.errors import Superseded
from curator.manifest import read_record
from curator.stored import StoredRecord

JobKind = Literal["curate", "train_reference"]
Status = Literal[
    "queued", "validating", "in_progress", "finalizing", "completed", "cancelling", "cancelled", "failed"
]  # fmt: skip
TERMINAL: frozenset[Status] = frozenset({"completed", "cancelled", "failed"})
ACTIVE: frozenset[Status] = frozenset({"validating", "in_progress", "finalizing", "cancelling"})

RECORD, EVENTS, HEARTBEAT, LOG, OUTPUT = "job.json", "events.jsonl", "heartbeat.json", "log.txt", "output"
DEFAULT_TENANT = "default"
JOB_ID_PATTERN = r"^job_[0-9a-hjkmnp-tv-z]{26}$"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """A new id, `job_` and 26 characters: 48 bits of time in ms, so that ids sort by age, and 80 random bits."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return prefix + "_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))


def now() -> str:
    """This moment in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JobRecord(StoredRecord):
    """What was asked, by whom, and which attempt at it is the current one."""

    id: str = Field(pattern=JOB_ID_PATTERN)
    kind: JobKind
    tenant: str
    name: str
    spec: dict[str, Any]
    output: str = Field(description="absolute URI of the dataset or the reference")
    idempotency_key: str | None = None
    body_sha256: str | None = Field(default=None, description="of the submitted body, beside the idempotency key")
    created_at: str
    attempt: int = Field(default=1, ge=1, description="raised when a user resumes the job")
    epoch: int = Field(default=1, ge=1, description="raised whenever the job changes hands; fences earlier owners off")
    cwd: str | None = Field(default=None, description="where the spec's relative paths start; None = it has none")
    traceparent: str | None = Field(default=None, description="of the request that this attempt began with")


class Event(StrictModel):
    """One thing that happened to a job."""

    id: int = Field(ge=1)
    at: str
    type: Literal["state", "stage", "progress", "message"]
    attempt: int
    epoch: int
    data: dict[str, Any]


class Heartbeat(StrictModel):
    """Who works on a job: one process on one host, told from a later one with the same number by its start."""

    epoch: int
    host: str
    pid: int
    started: float = Field(description="when that process was started, in its machine's ticks since boot")
    at: float = Field(description="seconds since 1970")


class EventLog:
    """Append-only, shared by processes; readers never see half an event."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def locked(self) -> AbstractContextManager[IO[bytes]]:
        """The open file, alone with it; what a killed writer left of a line is gone."""
        return line_file.locked(self.path)

    def append(self, file: IO[bytes], record: JobRecord, kind: str, data: dict[str, Any]) -> Event:
        """Write one event while the log is locked; changes of state reach the disk before this returns."""
        number = _last(file)[0] + 1
        event = Event.model_validate(
            {"id": number, "at": now(), "type": kind, "attempt": record.attempt, "epoch": record.epoch, "data": data}
        )
        file.write(event.model_dump_json().encode() + b"\n")
        file.flush()
        if kind == "state":
            os.fsync(file.fileno())
        return event

    def last_id(self) -> int:
        """Id of the newest event; 0 when there is none."""
        with self.path.open("rb") as file:
            return _last(file)[0]

    def last_moment(self) -> datetime:
        """When the newest event was written; this moment when there is none."""
        with self.path.open("rb") as file:
            line = line_file.last_line(file)
        return datetime.fromisoformat(json.loads(line)["at"]) if line else datetime.now(UTC)

    def last_epoch(self) -> int:
        """Epoch of the newest event; 0 when there is none."""
        with self.path.open("rb") as file:
            return _last(file)[1]

    def read(self, offset: int, limit: int) -> list[tuple[Event, int]]:
        """Up to `limit` events from a byte offset at which one begins, each with the offset behind it."""
        found: list[tuple[Event, int]] = []
        with self.path.open("rb") as file:
            file.seek(offset)
            while len(found) < limit and (line := file.readline()).endswith(b"\n"):
                found.append((Event.model_validate_json(line), file.tell()))
        return found

    def offset_after(self, event_id: int) -> int:
        """Byte offset of the first event with a greater id: a search by halves, as ids grow with the offset."""
        with self.path.open("rb") as file:
            low, high = 0, file.seek(0, os.SEEK_END)
            while low < high:  # invariant: all lines that begin before `low` are too old
                middle = (low + high) // 2
                start = line_file.line_start(file, middle, low)
                file.seek(start)
                line = file.readline()
                if line.endswith(b"\n") and json.loads(line)["id"] <= event_id:
                    low = start + len(line)
                else:
                    high = start
        return low


def _last(file: IO[bytes]) -> tuple[int, int]:
    """Id and epoch of the newest event whose line is whole."""
    line = line_file.last_line(file)
    event = json.loads(line) if line else {"id": 0, "epoch": 0}
    return int(event["id"]), int(event["epoch"])


class JobDirectory:
    """The files of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = EventLog(path / EVENTS)

    @property
    def log_path(self) -> Path:
        """What the job's process printed."""
        return self.path / LOG

    def record(self) -> JobRecord:
        """The job as it stands; raises OutputError when it cannot be read."""
        return read_record(str(self.path / RECORD), JobRecord)

    def create(self, record: JobRecord, status: Status = "queued") -> bool:
        """Make the directory and its first event; False if the job is there already. Safe to repeat after a crash.

        Args:
            record: the job.
            status: `queued` for a service to start it, `validating` if this process runs it itself.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        created = storage.write_once(str(self.path), RECORD, record.model_dump_json(indent=1).encode())
        storage.clear_staging(str(self.path))
        with self.events.locked() as file:
            if not _last(file)[0]:
                self.events.append(file, self.record(), "state", {"status": status})
                storage.settle(str(self.events.path))
        return created

    def append(self, epoch: int, kind: str, data: dict[str, Any]) -> Event:
        """Write an event as the owner of `epoch`; raises Superseded when the job has a newer one."""
        with self.events.locked() as file:
            record = self.record()
            _check_epoch(record, epoch)
            return self.events.append(file, record, kind, data)

    def advance(
        self, epoch: int, state: dict[str, Any], *, attempt: int | None = None, owner: Heartbeat | None = None
    ) -> Event:
        """Take the job over with a higher epoch, and write the state that this begins.

        Args:
            epoch: the new one; an equal one only completes a step that a crash cut short, its event not written.
            state: data of the state event.
            attempt: the new attempt, when a user resumes the job.
            owner: first sign of life of the process that takes it over, if that is known already.

        Raises:
            Superseded: somebody else has taken the job over in the meantime.
        """
        with self.events.locked() as file:
            record = self.record()
            _check_epoch(record, epoch)
            if _last(file)[1] >= epoch:
                raise Superseded(f"job {record.id} has got its owner {epoch} already; this process came second")
            if owner is not None:
                self.beat(owner)
            if attempt is not None and attempt > record.attempt:
                record = record.model_copy(update={"traceparent": tracing.traceparent()})
            record = record.model_copy(update={"epoch": epoch, "attempt": attempt or record.attempt})
            storage.replace(str(self.path), RECORD, record.model_dump_json(indent=1).encode())
            storage.clear_staging(str(self.path))
            return self.events.append(file, record, "state", state)

    def check(self, epoch: int) -> JobRecord:
        """The job as it stands; raises Superseded when it has a newer owner than `epoch`."""
        record = self.record()
        _check_epoch(record, epoch)
        return record

    def heartbeat(self) -> Heartbeat | None:
        """The last sign of life, or None."""
        try:
            return Heartbeat.model_validate_json((self.path / HEARTBEAT).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def beat(self, heartbeat: Heartbeat) -> None:
        """Say that the job is being worked on; an earlier owner's word counts no more.

        Not synced to the disk: after a power loss nobody is at it anyway.
        """
        known = self.heartbeat()
        if known is not None and known.epoch > heartbeat.epoch:
            return
        staged = self.path / f".{HEARTBEAT}.{heartbeat.pid}"
        staged.write_text(heartbeat.model_dump_json())
        staged.replace(self.path / HEARTBEAT)

    def last_state(self) -> tuple[Status, int]:
        """The newest state, and the id of its event."""
        status: Status = "queued"
        number, offset = 1, 0
        while found := self.events.read(offset, 1000):
            offset = found[-1][1]
            for event, _ in found:
                if event.type == "state":
                    status, number = event.data["status"], event.id
        return status, number


def _check_epoch(record: JobRecord, epoch: int) -> None:
    if record.epoch > epoch:
        raise Superseded(
            f"job {record.id} has passed on to owner {record.epoch}, this process was number {epoch}: the job was "
            "cancelled, or taken over after this process had been silent for too long"
        )


def list_jobs(data_dir: Path, known: Collection[str] = ()) -> list[JobDirectory]:
    """Every job under a data directory but the known ones, oldest first; a folder without a record is no job yet."""
    folder = data_dir / "jobs"
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [
        JobDirectory(folder / name)
        for name in names
        if name not in known and re.match(JOB_ID_PATTERN, name) and (folder / name / RECORD).exists()
    ]


def default_output(data_dir: Path, job_id: str) -> str:
    """Where a dataset goes whose spec names no place."""
    return str(data_dir / "jobs" / job_id / OUTPUT)
