"""Where a job's driver runs: a process beside the service, or a job on a remote Ray cluster.

The driver is `python -m curator.job_runner DIRECTORY EPOCH`. It belongs to no service: it survives the death of the
one that started it, and any service that sees the job's directory can watch it and stop it.
"""

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, Protocol

import psutil

from curator import logs, tracing
from curator.errors import ClusterError
from curator.job_directory import Heartbeat, JobDirectory
from curator.job_runner import MARK
from curator.room import GROWS_TO
from curator.signs_of_life import beat_of, is_running, process_of
from service.settings import Settings
from service.store import Job

_OWN_VARIABLES = "CURATOR_"
_TIMEOUT_S = (5.0, 20.0)
"""To connect to the Jobs API, and to hear from it: one head that is mute must not hold up every job for ever."""


class Launcher(Protocol):
    """Starts, watches and stops drivers."""

    def start(self, job: Job) -> None:
        """Start the driver of the job's epoch; returns at once."""
        ...

    def alive(self, job: Job) -> bool:
        """Whether the job's driver still runs and speaks."""
        ...

    def stop(self, job: Job) -> None:
        """End all that belongs to the job; a driver whose job has passed on leaves by itself, if it can."""
        ...

    def gone(self, job: Job) -> bool:
        """Whether nothing of the job is left."""
        ...


def make_launcher(settings: Settings) -> Launcher:
    """The launcher that the settings ask for."""
    return RayLauncher(settings) if settings.launcher == "ray" else SubprocessLauncher(settings)


class Silence:
    """For how long a job's driver has not beaten, by this machine's steady clock: wall clocks differ, and step."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[Heartbeat, float]] = {}

    def of(self, job: Job, beat: Heartbeat) -> float:
        """Seconds since this heartbeat was first seen here."""
        known, since_s = self._heard.get(job.id, (None, 0.0))
        if known != beat:
            since_s = time.monotonic()
            self._heard[job.id] = beat, since_s
        return time.monotonic() - since_s


class SubprocessLauncher:
    """Drivers as processes of this machine, each in a session of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._silence = Silence()
        self._children: dict[tuple[str, int], subprocess.Popen[bytes]] = {}

    def start(self, job: Job) -> None:
        """Start the driver; what it prints goes to the job's log."""
        self._reap()
        directory = JobDirectory(job.directory)
        command = [sys.executable, "-m", "curator.job_runner", str(job.directory), str(job.epoch)]
        command += ["--heartbeat", str(self._settings.heartbeat_s)]
        if not os.access(sys.executable, os.X_OK):  # no fault of the job's
            raise ClusterError(f"the Python of this service, {sys.executable!r}, is gone; restart the service")
        own = (_OWN_VARIABLES, tracing.VARIABLE)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(own) or name == GROWS_TO
        }
        with directory.log_path.open("ab") as log:
            child = subprocess.Popen(  # nosec B603  # this program's own command, no shell
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=environment | _variables(job, self._settings), cwd=directory.record().cwd or job.directory,
            )  # fmt: skip
        self._children[job.id, job.epoch] = child
        directory.beat(beat_of(child.pid, job.epoch))  # at once, so that a service that follows knows it

    def alive(self, job: Job) -> bool:
        """By the process where it is one of this machine, and by its heartbeat anywhere."""
        self._reap()
        beat = JobDirectory(job.directory).heartbeat()
        if beat is None or beat.epoch < job.epoch:  # whoever claimed the job may have died before there was a driver
            claimed = job.started_at.timestamp() if job.started_at else 0.0
            started = (job.id, job.epoch) in self._children or next(_marked(job.id), None) is not None
            return started and time.time() - claimed < self._settings.stalled_s
        if beat.host == platform.node() and process_of(beat) is None:
            return False
        return self._silence.of(job, beat) < self._settings.stalled_s

    def stop(self, job: Job) -> None:
        """SIGKILL to everything that carries the job's mark."""
        for process in _marked(job.id):
            with suppress(psutil.Error):
                process.kill()

    def gone(self, job: Job) -> bool:
        """No marked process is left, nor an unmarked driver (`curator run`, or one elsewhere) that gives signs of life.

        A driver that is fenced off and silent for long, such as one that a person has stopped, is as good as gone.
        """
        self._reap()
        beat = JobDirectory(job.directory).heartbeat()
        if beat is not None and beat.pid != os.getpid() and self._silence.of(job, beat) < self._settings.stalled_s:
            lives = beat.host != platform.node() or process_of(beat) is not None
            if lives:
                return False
        return next(_marked(job.id), None) is None

    def _reap(self) -> None:
        """Forget children that have ended, which also lets the system forget them."""
        for key in [key for key, child in self._children.items() if child.poll() is not None]:
            del self._children[key]


def _marked(job_id: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == job_id:
                yield process


class RayLauncher:
    """Drivers as jobs of a Ray cluster, through its Jobs API. The cluster must see the data directory.

    Ray's own record of a job outlives the service, so that nothing needs to be remembered here.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._silence = Silence()

    @cached_property
    def _client(self) -> Any:
        """The cluster's Jobs API. Called when it is first needed: the service starts, not ready, while Ray is away."""
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types
            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                return super()._do_request(method, endpoint, **{"timeout": _TIMEOUT_S, **options})

        logs.adopt_ray()
        return Client(self._settings.ray_address)

    @contextmanager
    def _asked(self) -> Iterator[Any]:
        """The client; an answer that is none of Ray's, such as a proxy's page, says nothing of the job."""
        try:
            yield self._client
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"what answers at ray_address {self._settings.ray_address!r} is not Ray's Jobs API "
                f"({type(error).__name__}); set it to the head's, such as http://HEAD:8265"
            ) from None

    def start(self, job: Job) -> None:
        """Submit the driver, whose output goes to the job's log."""
        directory = JobDirectory(job.directory)
        variables = [f"{name}={value}" for name, value in _variables(job, self._settings).items()]
        runner = ["env", *variables, "python", "-m", "curator.job_runner", str(job.directory), str(job.epoch)]
        runner += ["--heartbeat", str(self._settings.heartbeat_s)]
        folder, log = shlex.quote(directory.record().cwd or str(job.directory)), shlex.quote(str(directory.log_path))
        with self._asked() as client:
            client.submit_job(
                entrypoint=f"cd {folder} && exec {shlex.join(runner)} >> {log} 2>&1",
                submission_id=_submission(job, job.epoch),
                runtime_env={"env_vars": {MARK: job.id, "PYTHONUNBUFFERED": "1"}},
                metadata={"curator_job": job.id},
            )

    def alive(self, job: Job) -> bool:
        """Ray has it pending or running, and it beats once it runs."""
        status = self._status(_submission(job, job.epoch))
        beat = JobDirectory(job.directory).heartbeat()
        if status == "RUNNING" and beat is not None and beat.epoch == job.epoch:
            return self._silence.of(job, beat) < self._settings.stalled_s
        return status in ("PENDING", "RUNNING") or self._runs_elsewhere(job)

    def stop(self, job: Job) -> None:
        """Ray sends SIGTERM, and SIGKILL three seconds later, to all that the driver started."""
        for epoch in range(max(job.epoch - 1, 1), job.epoch + 1):
            if self._status(_submission(job, epoch)) in ("PENDING", "RUNNING"):
                with self._asked() as client:
                    client.stop_job(_submission(job, epoch))

    def gone(self, job: Job) -> bool:
        """No driver of this job is pending or running."""
        names = [_submission(job, epoch) for epoch in range(max(job.epoch - 1, 1), job.epoch + 1)]
        return all(self._status(name) not in ("PENDING", "RUNNING") for name in names) and not self._runs_elsewhere(job)

    def _runs_elsewhere(self, job: Job) -> bool:
        """Whether a driver lives that Ray knows nothing of: `curator run --data-dir`, which stops by itself."""
        beat = JobDirectory(job.directory).heartbeat()
        return beat is not None and is_running(beat) and self._status(_submission(job, beat.epoch)) is None

    def _status(self, submission: str) -> str | None:
        try:
            with self._asked() as client:
                return str(client.get_job_status(submission).value)
        except RuntimeError as error:
            if "status code 404" in str(error):  # Ray has no such job
                return None
            raise  # it does not answer now, which says nothing of the job


def _variables(job: Job, settings: Settings) -> dict[str, str]:
    """What a driver's environment has beside its machine's: no setting of ours, and nothing secret."""
    parent = tracing.traceparent()
    variables = {MARK: job.id, "PYTHONUNBUFFERED": "1", logs.FORMAT_VARIABLE: settings.job_log_format}
    return variables if parent is None else variables | {tracing.VARIABLE: parent}


def _submission(job: Job, epoch: int) -> str:
    return f"{job.id}-{epoch}"
