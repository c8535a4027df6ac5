"""The service's own work, in one thread: start jobs in fair turns, follow them, end them, recover them.

Each round it reads what the drivers have written, moves the jobs accordingly, and looks after those whose driver has
died or fallen silent: what is left of it is killed, and the job is queued again with a new epoch, which fences off
whatever might still be alive somewhere. A job is watched by one service at a time, the holder of its lease.

Invariant: nothing is kept here that the next service could not read back; it may be killed between any two lines.
"""

import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable

from curator.errors import CuratorError, Superseded
from curator.job_directory import ACTIVE, JobDirectory, Status
from curator.job_runner import conclude
from service.discovery import Discovery
from service.launcher import Launcher
from service.metrics import Metrics
from service.problems import Problem
from service.progress import fold, has_published
from service.settings import Settings
from service.starter import LEASE_S, Starter, is_the_jobs_own, names
from service.store import TRANSITIONS, Job, Store
from service.submissions import Submissions
from service.uploads import clear_abandoned

_ROUND_S = 0.3
_DISCOVER_S = 3.0
_RETENTION_S = 60.0
_UPLOADS_S = 600.0
_RETIRED_AT_ONCE = 100
_FORCE_AFTER_S = 6.0
_EVENTS_AT_ONCE = 1000
_log = logging.getLogger("curator.service")


class Watcher:
    """Follows the jobs of this service."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        submissions: Submissions,
        discovery: Discovery,
        launcher: Launcher,
        metrics: Metrics,
        on_change: Callable[[str], None],
    ) -> None:
        self._settings, self._store, self._submissions, self._launcher = settings, store, submissions, launcher
        self._discovery, self._metrics, self._on_change = discovery, metrics, on_change
        self._owner = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._stopping: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._ended = threading.Event()
        self._starter = Starter(settings, store, launcher, metrics, on_change, self._owner, self._fail)
        self._thread = threading.Thread(target=self._work, name="watcher", daemon=True)
        self.last_round_s = time.monotonic()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the current round; the jobs run on, and the next service follows them."""
        self._ended.set()
        self._thread.join(timeout=10)

    def alive(self) -> bool:
        """Whether rounds still go round."""
        return self._thread.is_alive() and time.monotonic() - self.last_round_s < self._settings.stalled_s

    def _work(self) -> None:
        while not self._ended.wait(_ROUND_S):
            try:
                self.round()
            except Exception:  # a database that is away for a moment must not end the service
                _log.exception("a round of the watcher failed; trying again")
                self._ended.wait(1.0)
            self.last_round_s = time.monotonic()

    def round(self) -> None:
        """Look after everything once."""
        self._now_and_then(_DISCOVER_S, self._discover)
        self._now_and_then(_RETENTION_S, self._retire)
        self._now_and_then(_UPLOADS_S, self._clear_uploads)
        mine = self._held()
        self._now_and_then(LEASE_S / 3, lambda: self._renew(mine))
        for job in mine:
            self._attempt(self._look_after, job)
        self._starter.start_waiting()

    def _attempt(self, work: Callable[[Job], None], job: Job) -> None:
        """Do something for one job; whatever is wrong with it must not keep the others waiting."""
        try:
            work(job)
            self._said.pop(job.id, None)
        except Superseded:  # a user or another service has changed it just now; the next round sees how
            return
        except Exception as error:
            self._say_once(job, error)
            if is_the_jobs_own(error) and job.status in ACTIVE:
                self._launcher.stop(job)
                self._fail(job, f"the job's directory is damaged: {error}")

    def _say_once(self, job: Job, error: Exception) -> None:
        if self._said.get(job.id) != str(error):
            self._said[job.id] = str(error)
            _log.error("job %s: %s", job.id, error, extra=names(job))

    def _now_and_then(self, interval_s: float, work: Callable[[], None]) -> None:
        moment = time.monotonic()
        if moment >= self._due.get(work.__qualname__, 0.0):
            self._due[work.__qualname__] = moment + interval_s
            work()

    # -------------------------------------------------------------------------------------------- which jobs

    def _discover(self) -> None:
        self._submissions.finish_deletions()
        for job_id in self._discovery.discover():
            _log.info("job %s was found in its directory", job_id)
            self._on_change(job_id)
        for job in self._discovery.differing():
            self._attempt(self._agree, job)

    def _agree(self, job: Job) -> None:
        """Bring database and directory of a job at rest together: the one with the higher epoch is right."""
        directory = JobDirectory(job.directory)
        if directory.events.last_epoch() > job.epoch:  # `curator run` has taken it, or the database is an old copy
            self._follow(job)
        else:  # a service died before it could write down what a user had asked for
            state = {"status": job.status} | ({"error": job.error} if job.error else {})
            directory.advance(job.epoch, state, attempt=job.attempt)

    def _held(self) -> list[Job]:
        """Active jobs that this service watches, those included whose watcher has died."""
        held, until = [], time.time() + LEASE_S
        for job in self._store.in_states(ACTIVE):
            if job.owner == self._owner:
                held.append(job)
            elif job.lease_until is None or job.lease_until < time.time() or self._is_dead_neighbour(job.owner):
                taken = self._store.take_over(job, self._owner, until)
                held += [] if taken is None else [taken]
        return held

    def _is_dead_neighbour(self, owner: str | None) -> bool:
        """Whether the owner was a process of this machine that has ended: no need to wait for its lease."""
        host, pid = (owner or ":0").split(":")[:2]
        return host == platform.node() and not os.path.exists(f"/proc/{pid}")

    def _renew(self, mine: list[Job]) -> None:
        if mine:
            self._store.renew(self._owner, [job.id for job in mine], time.time() + LEASE_S)

    def _clear_uploads(self) -> None:
        clear_abandoned(self._settings)

    def _retire(self) -> None:
        days = self._settings.retention_days
        if days is None:
            return
        for job in self._store.ended_before(time.time() - days * 86400, _RETIRED_AT_ONCE):
            _log.info("job %s is older than %g days and is deleted", job.id, days, extra=names(job))
            try:
                self._submissions.delete(job)
            except Problem:  # it has just been resumed
                continue
            except (CuratorError, OSError) as error:  # the others are not to wait for it
                self._say_once(job, error)

    # -------------------------------------------------------------------------------------------- following

    def _look_after(self, job: Job) -> None:
        if not job.directory.exists() and self._settings.jobs_dir.exists():
            self._launcher.stop(job)
            self._fail(job, f"the job's directory {job.directory} is gone")
            return
        job = self._follow(job)
        if job.status == "cancelling":
            self._end(job)
        elif job.status in ACTIVE and not self._launcher.alive(job):
            job = self._follow(job)  # what it wrote between the two looks
            if job.status in ACTIVE:
                self._recover(job)

    def _follow(self, job: Job) -> Job:
        """Read new events into the database."""
        events = JobDirectory(job.directory).events
        while found := events.read(job.event_offset, _EVENTS_AT_ONCE):
            offset = found[-1][1]
            changes = fold(event for event, _ in found if event.epoch >= job.epoch)
            taken = changes.pop("epoch", job.epoch)
            attempt = changes.pop("attempt", job.attempt)
            changes.pop("updated_at", None)
            status: Status = changes.pop("status", job.status)
            if taken > job.epoch:  # by somebody who does not know this database: `curator run`
                changes |= {"epoch": taken, "attempt": attempt, "relaunches": 0}
                moved = self._store.adopt(job, status, event_offset=offset, **changes)
            else:
                if status not in TRANSITIONS[job.status]:  # also what the database knew first, such as a cancel
                    status = job.status
                moved = self._store.move(job, status, event_offset=offset, **changes)
            if moved is None:
                raise Superseded(f"job {job.id} has just been changed")
            for event, _ in found:
                self._metrics.event_read(event)
            if moved.status != job.status:
                _log.info("job %s is %s", job.id, moved.status, extra=names(moved))
            if moved.terminal and (not job.terminal or moved.epoch > job.epoch):
                self._metrics.job_ended(moved)
            job = moved
            self._on_change(job.id)
        return job

    def _recover(self, job: Job) -> None:
        """The driver has died or fallen silent: make sure of it, and queue the job again."""
        self._launcher.stop(job)
        if not self._launcher.gone(job):  # it takes the system a moment
            return
        relaunches = 0 if has_published(job.progress) else job.relaunches + 1
        if relaunches > self._settings.max_relaunches:
            self._fail(
                job, f"the job's driver died {relaunches} times in a row without getting further; its log says more"
            )
            return
        _log.warning("job %s: its driver has died or fallen silent; it is started again", job.id, extra=names(job))
        changed = self._store.move(
            job, "queued", epoch=job.epoch + 1, relaunches=relaunches, progress=None, owner=None, lease_until=None,
            queued_at=time.time(),
        )  # fmt: skip
        if changed is not None:
            self._metrics.job_relaunched()
            reason = "the driver had died or fallen silent"
            JobDirectory(job.directory).advance(changed.epoch, {"status": "queued", "reason": reason})
            self._on_change(job.id)

    def _fail(self, job: Job, message: str) -> None:
        """End a job for which no driver can; if its directory cannot be written now, `_agree` does that later."""
        to: Status = "cancelled" if job.status == "cancelling" else "failed"
        error = {"type": "ClusterError", "message": message}
        changed = self._store.move(job, to, epoch=job.epoch + 1, error=error)
        if changed is None:
            return
        _log.error("job %s is %s: %s", job.id, to, message, extra=names(changed))
        self._metrics.job_ended(changed)
        self._on_change(job.id)
        try:
            JobDirectory(job.directory).advance(changed.epoch, {"status": to, "error": error})
        except (CuratorError, OSError, ValueError) as reason:
            self._say_once(job, reason)

    # -------------------------------------------------------------------------------------------- cancelling

    def _end(self, job: Job) -> None:
        """The driver sees that the job has passed on and leaves, or is killed; then the job is cancelled."""
        directory = JobDirectory(job.directory)
        if directory.events.last_epoch() < job.epoch:  # the request died before it could say so
            directory.advance(job.epoch, {"status": "cancelling"})
        since = self._stopping.setdefault(job.id, time.monotonic())
        if not self._launcher.gone(job):
            if time.monotonic() - since > _FORCE_AFTER_S:
                self._launcher.stop(job)
            return
        del self._stopping[job.id]
        directory.append(job.epoch, "state", conclude(directory.record()))
        self._follow(job)
