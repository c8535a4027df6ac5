"""What drivers are started with; and a cluster's Jobs API that is mute, or something else altogether."""

import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from curator.errors import ClusterError
from curator.job_directory import JobDirectory, JobRecord, new_id, now
from service import launcher
from service.context import Services
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


def test_a_driver_knows_what_its_cluster_grows_to_and_no_setting_of_the_service(
    open_services: Callable[..., Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = open_services().settings
    said = {"CURATOR_GROWS_TO": '{"CPU": 40}', "HF_HOME": "/models"}
    hidden = ("CURATOR_DATABASE_URL", "CURATOR_API_KEY", "CURATOR_MAX_RUNNING_JOBS", "TRACEPARENT")
    for name, text in (said | dict.fromkeys(hidden, "secret")).items():
        monkeypatch.setenv(name, text)
    record = JobRecord(
        id=new_id("job"), kind="curate", tenant="t", name="n", spec={}, output="/nowhere", created_at=now()
    )  # fmt: skip
    directory = JobDirectory(settings.jobs_dir / record.id)
    directory.create(record)
    job = types.SimpleNamespace(id=record.id, epoch=2, directory=directory.path)
    starter = launcher.SubprocessLauncher(settings)
    starter.start(job)
    (child,) = starter._children.values()
    told = psutil.Process(child.pid).environ()
    child.kill()
    child.wait(30)
    assert {name: told.get(name) for name in said} == said
    assert told["CURATOR_JOB"] == record.id and not set(hidden) & set(told)


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
