"""Starting jobs that wait, in fair turns; part of the watcher's round."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from curator import tracing
from curator.errors import CuratorError, Superseded
from curator.job_directory import JobDirectory
from service.launcher import Launcher
from service.metrics import Metrics
from service.progress import POSTPONED
from service.settings import Settings
from service.store import Job, Store

LEASE_S = 15.0
"""How long a service holds a job without renewing."""
_START_AGAIN_S, _LONGEST_PAUSE_S = 5.0, 40.0
"""Doubled with each failure: every attempt is two events of the job, and an outage may last for days."""
_log = logging.getLogger("curator.service")


class Starter:
    """Claims waiting jobs and starts their drivers, as many as may run."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        launcher: Launcher,
        metrics: Metrics,
        on_change: Callable[[str], None],
        owner: str,
        fail: Callable[[Job, str], None],
    ) -> None:
        self._settings, self._store, self._launcher, self._metrics = settings, store, launcher, metrics
        self._on_change, self._owner, self._fail = on_change, owner, fail
        self._start_after_s, self._pause_s = 0.0, _START_AGAIN_S

    def start_waiting(self) -> None:
        """Start jobs until none waits or there is no room."""
        if time.monotonic() < self._start_after_s or not self._settings.max_running_jobs:
            return
        if not self._settings.jobs_dir.exists():  # a disk that is away is no fault of the jobs
            return
        if not self._store.any_waits():
            return  # asked first without a lock: claiming takes one
        while job := self._store.claim(
            self._owner, time.time() + LEASE_S, self._settings.max_running_jobs, self._settings.tenant_running_jobs
        ):
            self._metrics.job_started(job)
            _log.info("job %s is %s", job.id, job.status, extra=names(job))
            self._on_change(job.id)
            if not self._start(job):
                return

    def _start(self, job: Job) -> bool:
        """Start a job's driver; False if nothing can be started now."""
        try:
            with _traced(job):
                JobDirectory(job.directory).advance(job.epoch, {"status": "validating"}, attempt=job.attempt)
                self._launcher.start(job)
            self._pause_s = _START_AGAIN_S
        except Superseded:
            return True
        except Exception as error:
            _log.exception("job %s cannot be started", job.id, extra=names(job))
            self._metrics.driver_not_started()
            if not is_the_jobs_own(error):
                self._postpone(job)
                return False
            self._fail(job, f"the job's driver cannot be started: {error}")
        return True

    def _postpone(self, job: Job) -> None:
        """Put a job back for which the machine or the cluster had no room now: that must not fail the whole queue."""
        self._start_after_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        changed = self._store.move(job, "queued", epoch=job.epoch + 1, owner=None, lease_until=None)
        if changed is not None:
            reason = "the driver could not be started now; the service tries again"
            state = {"status": "queued", "reason": reason, POSTPONED: True}
            with suppress(CuratorError, OSError):  # else the watcher does it later
                JobDirectory(job.directory).advance(changed.epoch, state)
            self._on_change(job.id)


@contextmanager
def _traced(job: Job) -> Iterator[None]:
    """A span around a job's launch, and one of the wait before it; nothing where no traces are sent."""
    if not tracing.sends():
        yield
        return
    directory, known = JobDirectory(job.directory), tracing.of_job(job.id, job.attempt, job.epoch)
    parent = directory.record().traceparent
    tracing.record("job.queued", int(directory.events.last_moment().timestamp() * 1e9), time.time_ns(), known, parent)
    with tracing.span("job.launch", known, parent=parent):
        yield


def names(job: Job) -> dict[str, object]:
    """What a line of the log carries of a job."""
    return {"job": job.id, "attempt": job.attempt, "epoch": job.epoch}


def is_the_jobs_own(error: Exception) -> bool:
    """Whether an error is of this job's own directory, which is damaged or gone, and no outage that will pass."""
    causes = (error, error.__cause__)
    return any(isinstance(cause, FileNotFoundError | NotADirectoryError | ValueError | KeyError) for cause in causes)
