"""A spec as a batch job: `ray job submit` to a real cluster with a dashboard, as the README says."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator import read_manifest, verify

pytestmark = pytest.mark.slow
RAY = Path(sys.executable).with_name("ray")
PORT, DASHBOARD_PORT, CLIENT_PORT, AGENT_PORT = 21379, 21265, 21001, 21365  # none that a client may be given
NOT_READY = ("No available agent", "Failed to connect")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
    "RAY_AUTH_MODE": "disabled",
    "PATH": f"{RAY.parent}:{os.environ['PATH']}",
}


def ray(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(RAY), *arguments], capture_output=True, text=True, env=ENVIRONMENT | more, timeout=240)


@pytest.fixture
def cluster_address(tmp_path: Path) -> Iterator[str]:
    """A head with a dashboard, in the foreground of its own process: `ray stop` would end every Ray of this machine."""
    command = [
        str(RAY), "start", "--head", "--block", f"--port={PORT}", f"--dashboard-port={DASHBOARD_PORT}",
        "--dashboard-host=127.0.0.1", f"--ray-client-server-port={CLIENT_PORT}",
        f"--dashboard-agent-listen-port={AGENT_PORT}", "--num-cpus=3",
        "--object-store-memory=134217728",
    ]  # fmt: skip
    with (tmp_path / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{DASHBOARD_PORT}"
    head.terminate()
    head.wait(timeout=60)


def submit(address: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Submit and wait for the end; the head needs a moment until its job agent is up."""
    deadline_s = time.monotonic() + 90
    while True:
        done = ray("job", "submit", f"--address={address}", "--", *command)
        if not any(sign in done.stderr for sign in NOT_READY) or time.monotonic() > deadline_s:
            return done
        time.sleep(0.5)


def test_ray_job_submit_runs_a_spec(
    cluster_address: str, make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(make_spec(rows=60)))
    done = submit(cluster_address, "curator", "run", str(spec))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest.totals.rows == 60 and verify(str(tmp_path / "out")) == []
