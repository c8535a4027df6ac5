"""The side of a remote Ray cluster that its Jobs API shows: mute, or something else altogether."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from curator.errors import ClusterError
from service import launcher
from service.launcher import RayLauncher
from service.settings import Settings
from service.starter import is_the_jobs_own

ANSWERS = {"/api/version": b'{"ray_version": "2.60.0"}', "/api/jobs/known": b"<html>The cluster is being moved</html>"}


class _Proxy(BaseHTTPRequestHandler):
    """Before a head that has gone away."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(ANSWERS[self.path])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def mute() -> Iterator[str]:
    """A head that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def proxy() -> Iterator[str]:
    """Something that answers in the head's stead."""
    with HTTPServer(("127.0.0.1", 0), _Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def ask(address: str, folder: Path) -> None:
    RayLauncher(Settings(data_dir=folder, launcher="ray", ray_address=address))._status("known")


def test_a_head_that_never_answers_is_not_waited_for(
    mute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_TIMEOUT_S", (2.0, 0.5))
    began_s = time.monotonic()
    with pytest.raises(requests.ReadTimeout) as caught:
        ask(mute, tmp_path)
    assert time.monotonic() - began_s < 10 and not is_the_jobs_own(caught.value)


def test_an_answer_that_is_not_rays_is_no_fault_of_the_job(proxy: str, tmp_path: Path) -> None:
    for address, kind in ((proxy, "JSONDecodeError"), ("http://head:none", "InvalidURL")):
        with pytest.raises(ClusterError, match=f"ray_address '{address}' is not Ray's .*{kind}.*:8265") as caught:
            ask(address, tmp_path)
        assert not is_the_jobs_own(caught.value)
