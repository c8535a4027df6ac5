"""What the service needs to serve, asked at most every few seconds, however many probes and scrapes there are.

Invariant: whatever hangs, an answer is there after `_BOUND_S`, and at most one thread waits in each check.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from http.client import HTTPException
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import sqlalchemy as sa

from curator import storage
from service.database import reading
from service.settings import Settings
from service.store import Store

_LEAST_FREE_BYTES = 100 << 20
_KEPT_S = 2.0
_BOUND_S = 3.0  # less than the timeout of the chart's and the images' probes
_RAY_TIMEOUT_S = 2.0
_RAY_PORT = 6379
_OWN_RAY = ("auto", "local")
_Found = TypeVar("_Found")
_log = logging.getLogger("curator.service")
_direct = build_opener(ProxyHandler({}))  # a cluster is not behind the proxy that leads outside


class Readiness:
    """The checks, and what they last said; a change is a line of the log, however many strangers ask /readyz.

    Every check runs by itself, and has `_BOUND_S`: a disk or a name server that is mute holds up neither the others
    nor whoever asks, and is asked again only when it has answered.
    """

    def __init__(self, settings: Settings, store: Store, watcher_alive: Callable[[], bool]) -> None:
        self._settings, self._store = settings, store
        self._checks: dict[str, Callable[[], bool]] = {
            "database": self._database_answers,
            "data_dir": self._has_room,
            "watcher": watcher_alive,
        }
        if settings.ray_address is not None and settings.ray_address not in _OWN_RAY:
            self._checks["ray"] = self._ray_answers
        self._lock = threading.Lock()
        self._answer: Future[dict[str, bool]] | None = None
        self._running: dict[str, Future[bool]] = {}
        self._known: dict[str, bool] = {}
        self._until_s = 0.0

    def checks(self) -> dict[str, bool]:
        """Each check, and whether what it looks at is well; waits for it, but not for long."""
        return dict(self.ask().result())

    def ask(self) -> Future[dict[str, bool]]:
        """The same without waiting: what was found a moment ago, or what is being found for all who ask meanwhile."""
        with self._lock:
            if self._answer is None or (self._answer.done() and time.monotonic() >= self._until_s):
                self._answer = _in_thread(self._look)
            return self._answer

    def _look(self) -> dict[str, bool]:
        for name, check in self._checks.items():
            if name not in self._running or self._running[name].done():
                self._running[name] = _in_thread(check)
        deadline_s = time.monotonic() + _BOUND_S
        found = {name: _is_well(name, self._running[name], deadline_s) for name in self._checks}
        self._say(found)
        self._known, self._until_s = found, time.monotonic() + _KEPT_S
        return found

    def _say(self, found: dict[str, bool]) -> None:
        failing = [name for name, well in found.items() if not well]
        before = [name for name, well in self._known.items() if not well]
        if failing and failing != before:
            _log.warning("not ready: %s", ", ".join(failing))
        elif before and not failing:
            _log.info("ready again")

    def _database_answers(self) -> bool:
        try:
            with reading(self._store.engine) as connection:
                return bool(connection.execute(sa.select(1)).scalar_one() == 1)
        except sa.exc.SQLAlchemyError:
            return False

    def _has_room(self) -> bool:
        try:  # without the jobs' folder its disk is away, and what has room is the one that it was mounted on
            jobs_dir = self._settings.jobs_dir
            return jobs_dir.is_dir() and (storage.free_bytes(str(jobs_dir)) or 0) > _LEAST_FREE_BYTES
        except OSError:
            return False

    def _ray_answers(self) -> bool:
        """Whether the head is there: its Jobs API by any answer, as that may want a token, else its port."""
        address = self._settings.ray_address or ""
        try:
            if address.startswith(("http://", "https://")):
                with _direct.open(address.rstrip("/") + "/api/version", timeout=_RAY_TIMEOUT_S):
                    return True
            parts = urlsplit(address if "://" in address else f"ray://{address}")
            with socket.create_connection((parts.hostname or "", parts.port or _RAY_PORT), _RAY_TIMEOUT_S):
                return True
        except HTTPError as error:
            return error.code < 500
        except (HTTPException, OSError, ValueError):
            return False


def _in_thread(work: Callable[[], _Found]) -> Future[_Found]:
    """Run it in a thread of its own, for which the end of the process does not wait."""
    done: Future[_Found] = Future()
    done.set_running_or_notify_cancel()  # nobody who waits for it can cancel it for the others

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="readiness", daemon=True).start()
    return done


def _is_well(name: str, check: Future[bool], deadline_s: float) -> bool:
    try:
        return check.result(max(deadline_s - time.monotonic(), 0.0))
    except TimeoutError:
        return False
    except Exception:
        _log.exception("the check of readiness %r broke", name)
        return False
