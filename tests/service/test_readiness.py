"""Readiness: what it rests on, that nothing mute holds it up, and that all who ask share one answer."""

import asyncio
import logging
import runpy
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from service.app import build_app
from service.context import Services

_FIGURES = runpy.run_path(str(Path(__file__).with_name("figures.py")))
read, value = _FIGURES["read"], _FIGURES["value"]
Open = Callable[..., Services]


class _Closed(BaseHTTPRequestHandler):
    """A head that wants a token."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_readiness_sees_whether_the_head_of_the_cluster_is_there(open_services: Callable[..., Services]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        free = taken.getsockname()[1]
    for address in (f"http://127.0.0.1:{free}", f"127.0.0.1:{free}", f"ray://127.0.0.1:{free}"):
        gone = open_services(ray_address=address)
        assert gone.readiness.checks() == {"database": True, "data_dir": True, "watcher": False, "ray": False}
        assert value(gone, "ready", check="ray") == 0 and value(gone, "ready", check="database") == 1
    with HTTPServer(("127.0.0.1", 0), _Closed) as head:
        threading.Thread(target=head.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{head.server_address[1]}"
        for address in (f"http://{host}", host, f"ray://{host}"):
            assert open_services(ray_address=address).readiness.checks()["ray"]
        head.shutdown()


def test_a_database_that_is_away_is_told_and_hides_no_other_figure(
    open_services: Callable[..., Services], tmp_path: Path
) -> None:
    services = open_services()
    services.store.engine.dispose()
    (tmp_path / "data" / "service.db").unlink()
    (tmp_path / "data" / "service.db").mkdir()
    checks = services.readiness.checks()
    assert checks["database"] is False
    figures = {name for name, _ in read(services.metrics.expose(checks))}
    assert {"ready", "storage_free_bytes", "tokens_total"} <= figures and "jobs" not in figures


def test_a_disk_that_is_away_is_told_though_the_one_below_has_room(open_services: Callable[..., Services]) -> None:
    services = open_services()
    assert services.readiness.checks()["data_dir"]
    services.settings.jobs_dir.rename(services.settings.jobs_dir.with_name("elsewhere"))
    services.readiness._until_s = 0.0  # what was known is old
    assert not services.readiness.checks()["data_dir"]


def test_the_log_tells_a_change_of_readiness_once_however_often_it_is_asked(
    open_services: Callable[..., Services], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "curator.service")
    readiness = open_services().readiness
    alive = False
    monkeypatch.setitem(readiness._checks, "watcher", lambda: alive)
    for alive in (False, False, True, True, False):
        readiness._until_s = 0.0  # what was known is old
        for _ in range(3):
            assert readiness.checks()["watcher"] is alive
    assert caplog.messages == ["not ready: watcher", "ready again", "not ready: watcher"]


# ------------------------------------------------------------------------------------------------ all at once


class _Slow:
    """A check that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on, self.asked = threading.Event(), 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.go_on.wait(30)


@pytest.fixture
def slow(open_services: Open, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Readiness of a service whose disk is mute, and that check."""
    readiness, check = open_services().readiness, _Slow()
    monkeypatch.setattr("service.readiness._BOUND_S", 0.4)
    monkeypatch.setitem(readiness._checks, "data_dir", check)
    monkeypatch.setitem(readiness._checks, "watcher", lambda: True)
    yield readiness, check
    check.go_on.set()


def test_checks_run_at_once(open_services: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    readiness, together = open_services().readiness, threading.Barrier(3)
    for name in ("database", "data_dir", "watcher"):  # each ends only when all have begun
        monkeypatch.setitem(readiness._checks, name, lambda: together.wait(5) >= 0)
    assert readiness.checks() == {"database": True, "data_dir": True, "watcher": True}


def test_a_check_that_hangs_holds_up_nobody_and_is_asked_once(slow: Any, caplog: pytest.LogCaptureFixture) -> None:
    readiness, check = slow
    caplog.set_level(logging.INFO, "curator.service")
    for _ in range(3):
        readiness._until_s = 0.0  # what was known is old
        began_s = time.monotonic()
        assert readiness.checks() == {"database": True, "data_dir": False, "watcher": True}
        assert time.monotonic() - began_s < 2
    assert check.asked == 1
    check.go_on.set()
    deadline_s = time.monotonic() + 5
    while not readiness.checks()["data_dir"]:
        assert time.monotonic() < deadline_s
        readiness._until_s = 0.0
        time.sleep(0.01)
    assert caplog.messages == ["not ready: data_dir", "ready again"]


def test_all_who_ask_meanwhile_share_one_answer(slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    readiness, check = slow
    monkeypatch.setattr("service.readiness._BOUND_S", 20.0)
    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(readiness.checks) for _ in range(30)]
        time.sleep(0.2)
        assert check.asked == 1 and not any(each.done() for each in asked)
        check.go_on.set()
        assert all(all(each.result().values()) for each in asked)
    assert check.asked == 1


def test_who_leaves_while_waiting_takes_the_answer_from_nobody(slow: Any) -> None:
    readiness, _ = slow

    async def wait_for_both() -> dict[str, bool]:
        gone, stays = (asyncio.wrap_future(readiness.ask()) for _ in range(2))
        gone.cancel()
        return dict(await stays)

    assert asyncio.run(wait_for_both())["data_dir"] is False


def test_a_check_that_breaks_is_not_well_and_its_error_is_logged(
    open_services: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    services = open_services()

    def broken() -> bool:
        raise RuntimeError("can't start new thread")

    monkeypatch.setitem(services.readiness._checks, "watcher", broken)
    answer = TestClient(build_app(services)).get("/readyz")  # not entered: nothing runs beside it
    assert answer.status_code == 503 and answer.json()["type"] == "urn:curator:problem:not_ready"
    assert "the check of readiness 'watcher' broke" in caplog.text and "can't start new thread" in caplog.text


def test_strangers_who_wait_for_readiness_keep_nobody_else_waiting(
    open_services: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoints share a pool of 40 threads, and /readyz is open to all."""
    services, check = open_services(), _Slow()
    monkeypatch.setitem(services.readiness._checks, "data_dir", check)
    header = {"Authorization": f"Bearer {services.keys.create('mine', 'test', ['admin'])[1]}"}

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(build_app(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as client:
            waiting = [asyncio.create_task(client.get("/readyz")) for _ in range(100)]
            while not check.asked:
                await asyncio.sleep(0.01)
            assert (await client.get("/v1/keys", headers=header)).status_code == 200
            assert not any(task.done() for task in waiting)
            check.go_on.set()
            return [answer.status_code for answer in await asyncio.gather(*waiting)]

    assert set(asyncio.run(ask())) == {503}  # the watcher does not run here
