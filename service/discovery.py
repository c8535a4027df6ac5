"""Bringing the database in line with the job directories, which are the truth.

A directory is unknown when `curator run --data-dir` made it, when a service died between making it and saying so, or
when the database was lost. It is read a few hundred at a time, as the service has other things to do as well.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from curator.errors import CuratorError
from curator.job_directory import JobDirectory, JobRecord, list_jobs
from service.database import writing
from service.progress import fold
from service.settings import Settings
from service.store import Job, Store
from service.tables import idempotency, jobs

_FOUND_AT_ONCE, _LOOKED_AT_ONCE, _EVENTS_AT_ONCE = 300, 500, 1000
_log = logging.getLogger("curator.service")


class Discovery:
    """Reads job directories into the database."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._said: dict[str, str] = {}
        self._agreed: dict[str, tuple[int, int]] = {}
        self._looked_at = ""
        self._known: set[str] = set()

    def discover(self, limit: int = _FOUND_AT_ONCE) -> list[str]:
        """Add jobs whose directories are not in the database: made by `curator run --data-dir`, or before a loss."""
        added: list[str] = []
        for directory in self._unknown():
            if len(added) == limit:  # the rest next time: the service has other things to do as well
                break
            try:
                if self._index(directory):
                    added.append(directory.path.name)
            except IntegrityError:  # a request or another service has just added it
                continue
            except (CuratorError, OSError, ValueError, KeyError) as error:
                self._say_once(
                    directory.path.name, f"job directory {directory.path} cannot be read and is left out: {error}"
                )
        return added

    def _unknown(self) -> list[JobDirectory]:
        """Directories that the database has no job for; those once found there are not asked for again."""
        folder = self._settings.jobs_dir
        self._known &= set(os.listdir(folder) if folder.is_dir() else ())  # one that comes back is looked at anew
        unknown = list_jobs(self._settings.data_dir, self._known)
        found = self._store.present([directory.path.name for directory in unknown])
        self._known |= found
        return [directory for directory in unknown if directory.path.name not in found]

    def _say_once(self, name: str, message: str) -> None:
        if self._said.get(name) != message:
            self._said[name] = message
            _log.error("%s", message)

    def differing(self) -> Iterator[Job]:
        """Jobs at rest of which directory and database say different things, by their epochs; some at a time.

        `curator run` has taken the job, the database is an old copy, or a service died between the two.
        """
        some = self._store.at_rest(self._looked_at, _LOOKED_AT_ONCE)
        self._looked_at = some[-1][0] if len(some) == _LOOKED_AT_ONCE else ""
        for job_id, epoch in some:
            events = JobDirectory(self._settings.jobs_dir / job_id).events
            with suppress(OSError, ValueError, KeyError):
                changed_ns = events.path.stat().st_mtime_ns
                if self._agreed.get(job_id) == (changed_ns, epoch):
                    continue
                if events.last_epoch() == epoch:
                    self._agreed[job_id] = (changed_ns, epoch)
                elif (job := self._store.job(job_id)) is not None and job.epoch == epoch:
                    yield job

    def _index(self, directory: JobDirectory) -> bool:
        record, offset = directory.record(), 0
        changes: dict[str, Any] = {}
        while found := directory.events.read(offset, _EVENTS_AT_ONCE):
            changes |= fold(event for event, _ in found)
            offset = found[-1][1]
        if not changes:  # its first event is still to be written
            return False
        changes["event_offset"] = offset
        with writing(self._store.engine) as connection:
            self._store.insert(connection, record, **changes)
            if record.idempotency_key is not None:
                self._restore_key(connection, record)
        return True

    def _restore_key(self, connection: Connection, record: JobRecord) -> None:
        mine = (idempotency.c.tenant == record.tenant) & (idempotency.c.key == record.idempotency_key)
        if connection.execute(sa.select(idempotency).where(mine)).one_or_none() is None:
            connection.execute(
                idempotency.insert().values(
                    tenant=record.tenant, key=record.idempotency_key, body_sha256=record.body_sha256,
                    job_id=record.id, reserved_at=0.0,
                )
            )  # fmt: skip

    def reindex(self) -> int:
        """Forget all jobs and read them back from their directories; keys and sessions stay. Returns their number."""
        self._known.clear()
        with writing(self._store.engine) as connection:
            connection.execute(jobs.delete())
            connection.execute(idempotency.delete())
        return len(self.discover(limit=1 << 62))
