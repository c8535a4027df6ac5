"""Jobs that run elsewhere: drivers through the Jobs API of a remote Ray cluster, outputs on an object store."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest

pytestmark = pytest.mark.slow

RAY = Path(sys.executable).with_name("ray")
PORT, DASHBOARD_PORT, CLIENT_PORT, AGENT_PORT = 20479, 20366, 20101, 20465  # none that a client may be given
WORKER_PORTS = ("--min-worker-port=23000", "--max-worker-port=23999")  # not those of another head on this machine


def answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


@pytest.fixture
def ray_head(tmp_path: Path) -> Iterator[str]:
    """A head with a dashboard, in the foreground of its own process: `ray stop` would end every Ray of this machine."""
    command = [
        str(RAY), "start", "--head", "--block", f"--port={PORT}", f"--dashboard-port={DASHBOARD_PORT}",
        "--dashboard-host=127.0.0.1", f"--ray-client-server-port={CLIENT_PORT}",
        f"--dashboard-agent-listen-port={AGENT_PORT}", "--num-cpus=3", "--object-store-memory=134217728",
        *WORKER_PORTS,
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
    }
    with (tmp_path / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{DASHBOARD_PORT}"
        deadline_s = time.monotonic() + 180
        while not answers(f"{address}/api/jobs/"):
            assert head.poll() is None and time.monotonic() < deadline_s, (tmp_path / "head.log").read_text()
            time.sleep(0.5)
        yield address
    finally:
        head.terminate()
        head.wait(timeout=60)


def test_a_remote_cluster_runs_cancels_and_resumes_jobs(
    ray_head: str, start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]]
) -> None:
    service = start(
        CURATOR_LAUNCHER="ray", CURATOR_RAY_ADDRESS=ray_head, CURATOR_MAX_RUNNING_JOBS="2", RAY_AUTH_MODE="disabled"
    )
    finished = service.submit(job_spec(name="on the cluster"))
    assert service.wait(finished["id"])["status"] == "completed"
    with service.client() as client:
        logs = client.get(f"/v1/jobs/{finished['id']}/logs", params={"limit": 1000}).json()["data"]
        assert any("score reference: done" in line["text"] for line in logs)
        shards = client.get(f"/v1/jobs/{finished['id']}/shards").json()["data"]
        assert len(client.get(shards[0]["url"]).content) == shards[0]["bytes"]

        stopped = service.submit(job_spec(name="to be stopped"))
        service.wait(stopped["id"], "in_progress")
        began = time.monotonic()
        client.post(f"/v1/jobs/{stopped['id']}/cancel").raise_for_status()
        assert service.wait(stopped["id"])["status"] == "cancelled"
        assert time.monotonic() - began < 10
        submitted = httpx.get(f"{ray_head}/api/jobs/").json()
        running = [job for job in submitted if job["status"] in ("PENDING", "RUNNING")]
        assert running == []
        client.post(f"/v1/jobs/{stopped['id']}/resume").raise_for_status()
    again = service.wait(stopped["id"])
    assert (again["status"], again["attempt"]) == ("completed", 2)


@pytest.fixture
def store() -> Iterator[dict[str, str]]:
    """A server that speaks S3; gives the environment that leads to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    server.stop()


def test_outputs_on_an_object_store_are_written_served_and_removed(
    store: dict[str, str], start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]]
) -> None:
    bucket = fsspec.filesystem(
        "s3", endpoint_url=store["AWS_ENDPOINT_URL"], key="testing", secret="testing", use_listings_cache=False
    )
    bucket.mkdirs("s3://service", exist_ok=True)
    service = start("--allow-root", "s3://service/mine", CURATOR_OUTPUT_ROOT="s3://service/curated", **store)
    job = service.submit(job_spec())
    assert job["output"] == f"s3://service/curated/{job['id']}"
    done = service.wait(job["id"])
    assert done["status"] == "completed", done
    with service.client() as client:
        shards = client.get(f"/v1/jobs/{job['id']}/shards").json()["data"]
        sent = client.get(shards[0]["url"])
        assert sent.status_code == 307 and sent.headers["location"].startswith(store["AWS_ENDPOINT_URL"])
        assert len(httpx.get(sent.headers["location"]).content) == shards[0]["bytes"]
        assert len(client.get(shards[0]["url"], params={"redirect": False}).content) == shards[0]["bytes"]
        assert client.get(f"/v1/jobs/{job['id']}/preview").json()["documents"]
        assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert bucket.find(f"s3://service/curated/{job['id']}") == []

        mine = job_spec(output={"uri": "s3://service/mine/first"})
        theirs = job_spec(output={"uri": "s3://service/minefield"})
        assert client.post("/v1/jobs", json=theirs).status_code == 403
        kept = service.submit(mine)
        assert service.wait(kept["id"])["status"] == "completed"
        assert client.delete(f"/v1/jobs/{kept['id']}").status_code == 204
    assert len(bucket.find("s3://service/mine/first/curated")) > 3  # the user's own place stays
