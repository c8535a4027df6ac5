"""A job on a cluster that has no worker when it starts, but may grow: it asks for workers, waits, and uses them.

The machine that an autoscaler would add is a raylet that the test starts once Ray shows the demand for it.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray.util
import yaml

from curator import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.alone]
_BIN = Path(sys.executable).parent
_MARK = "CURATOR_TEST_CLUSTER"
_OPTIONS = ("--block", "--object-store-memory=100000000", "--dashboard-agent-listen-port=0", "--disable-usage-stats")


def free_ports(count: int) -> list[int]:
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def end_marked(mark: str) -> bool:
    """Kill what carries the mark; whether there was anything."""
    found = False
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                process.kill()
                found = True
        except psutil.Error:
            continue
    return found


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head without CPUs, whose cluster may have two; the environment that reaches it."""
    mark, (port, client_port) = secrets.token_hex(4), free_ports(2)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {_MARK: mark, "CURATOR_GROWS_TO": '{"CPU": 2}', "PATH": f"{_BIN}:{os.environ['PATH']}"}
    command = [
        _BIN / "ray", "start", "--head", "--num-cpus=0", f"--port={port}", f"--temp-dir=/tmp/ray-{mark}",
        "--include-dashboard=false", f"--ray-client-server-port={client_port}", *_OPTIONS,
    ]  # fmt: skip
    with (tmp_path / "ray.log").open("wb") as log:
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield environment | {"RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
        finally:
            started.kill()
            started.wait(30)
            while end_marked(mark):
                time.sleep(0.2)
            shutil.rmtree(f"/tmp/ray-{mark}", ignore_errors=True)


def test_a_job_asks_for_workers_that_are_not_there_and_uses_those_that_come(
    head: dict[str, str], make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def wait_for(condition: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < limit, f"{what}; Ray said: {(tmp_path / 'ray.log').read_text()}"
            time.sleep(0.5)

    def says(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([_BIN / "ray", *command], env=head, capture_output=True, text=True)

    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(make_spec(rows=60, shard_tokens=20_000)))
    address = head["RAY_ADDRESS"]
    wait_for(lambda: says("health-check", "--address", address).returncode == 0, "the head does not answer")
    with (tmp_path / "run.log").open("wb") as log, (tmp_path / "worker.log").open("wb") as worker_log:
        command = [_BIN / "curator", "run", tmp_path / "spec.yaml"]
        job = subprocess.Popen(command, env=head, stdout=log, stderr=log)
        try:
            wait_for(
                lambda: "pending tasks/actors" in says("status", "--address", address).stdout, "nothing is asked for"
            )
            assert job.poll() is None, (tmp_path / "run.log").read_text()
            worker = [_BIN / "ray", "start", f"--address={address}", "--num-cpus=1", *_OPTIONS]
            machine = subprocess.Popen(worker, env=head, stdout=worker_log, stderr=worker_log)
            try:
                assert job.wait(240) == 0, (tmp_path / "run.log").read_text()
            finally:
                machine.kill()
                machine.wait(30)
        finally:
            job.kill()
            job.wait(30)
    assert read_manifest(str(tmp_path / "out")).totals.rows == 60
