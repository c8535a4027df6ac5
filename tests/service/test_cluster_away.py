"""A service whose Ray cluster is not there yet starts, says that it is not ready, and takes jobs, which wait."""

import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_the_service_starts_before_its_cluster(start: Callable[..., Any], job_spec: Callable[..., Any]) -> None:
    service = start(CURATOR_LAUNCHER="ray", CURATOR_RAY_ADDRESS=f"http://127.0.0.1:{free_port()}")
    assert httpx.get(f"{service.url}/livez").status_code == 200
    assert httpx.get(f"{service.url}/readyz").status_code == 503
    job = service.submit(job_spec())
    until = time.monotonic() + 60
    while not any("cannot be started" in line for line in list(service.log)) and time.monotonic() < until:
        time.sleep(0.2)
    with service.client() as client:
        found = client.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
    assert any("cannot be started" in line for line in service.log)
    assert found["status"] in ("queued", "validating") and found["error"] is None  # it waits, and has not failed
    assert service.process.poll() is None
