"""How a job's process shows that it lives, and how others see that it does.

A heartbeat names a process by host, number and start, so that on the same machine its death is known at once; from
another machine it shows as silence. The process looks as often whether the job is still its own.

Invariant: a process whose job has passed on ends within seconds, whatever it is waiting for.
"""

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGTERM, SIGUSR1

import psutil

from curator.errors import CuratorError
from curator.interrupts import heeded
from curator.job_directory import Heartbeat, JobDirectory

HEARTBEAT_S, STALLED_S = 10.0, 30.0
SUPERSEDED = 4
"""Exit code of a process whose job has passed on."""

_log = logging.getLogger("curator.job")
_WATCH_S = 1.0
_LEAVE_S = 6.0


def is_running(beat: Heartbeat | None) -> bool:
    """Whether whoever wrote a heartbeat still lives: by its process on this machine, else by its silence."""
    if beat is None:
        return False
    if beat.host != platform.node():
        return time.time() - beat.at < STALLED_S
    return process_of(beat) is not None


def process_of(beat: Heartbeat) -> psutil.Process | None:
    """The process that wrote a heartbeat on this machine, if it still runs."""
    with suppress(psutil.Error, OSError):
        process = psutil.Process(beat.pid)
        if _started_ticks(beat.pid) == beat.started and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _started_ticks(pid: int) -> float:
    """When a process was started, by a clock that nobody can set (psutil's is wall time, which steps)."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return float(after_name[19])


@contextmanager
def alive(directory: JobDirectory, epoch: int, heartbeat_s: float) -> Iterator[None]:
    """Beat while the job runs, and interrupt the main thread as soon as the job has passed on.

    By SIGUSR1, as Ray takes SIGTERM for itself and a process in a shell's background ignores SIGINT; here it means the
    same as Ctrl-C. In another thread than the main one, only the next event that it writes tells the job.
    """
    ended = threading.Event()
    directory.beat(beat_of_this_process(epoch))
    main_thread = threading.current_thread() is threading.main_thread()
    watcher = threading.Thread(target=_watch, args=(directory, epoch, heartbeat_s, ended, main_thread), daemon=True)
    with heeded(SIGUSR1, SIGTERM):
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not keep the first from being written down."""
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main_thread else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def beat_of_this_process(epoch: int) -> Heartbeat:
    """A heartbeat of now."""
    return beat_of(os.getpid(), epoch)


def beat_of(pid: int, epoch: int) -> Heartbeat:
    """A heartbeat of now, in the name of a process of this machine: oneself, or a child that has just been started."""
    return Heartbeat(epoch=epoch, host=platform.node(), pid=pid, started=_started_ticks(pid), at=time.time())


def _watch(directory: JobDirectory, epoch: int, heartbeat_s: float, ended: threading.Event, interrupts: bool) -> None:
    beaten_s = time.monotonic()
    while not ended.wait(_WATCH_S):
        try:
            if directory.record().epoch > epoch:
                break
            if time.monotonic() - beaten_s >= heartbeat_s:
                beaten_s = time.monotonic()
                directory.beat(beat_of_this_process(epoch))
        except (CuratorError, OSError) as error:  # a disk that stutters: try again, silence is noticed by the owner
            _log.warning("heartbeat: %s", error)
    if interrupts and not ended.is_set():
        os.kill(os.getpid(), SIGUSR1)
        if not ended.wait(_LEAVE_S):  # it waits for a cluster that does not answer; nothing that it holds is needed
            os._exit(SUPERSEDED)
