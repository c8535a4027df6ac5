"""A job that is deleted while it is looked at: readers get an answer from before or after, never an error of ours."""

import runpy
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

_OPERATIONS = runpy.run_path(str(Path(__file__).with_name("operations.py")))
JOBS = 12


def finished_jobs(start: Callable[..., Any], spec: dict[str, Any], data_dir: Path) -> list[str]:
    """Ids of many finished jobs: one that has run, and copies of its directory under other ids."""
    service = start(data_dir=data_dir)
    first = service.submit(spec)["id"]
    assert service.wait(first)["status"] == "completed"
    service.stop()
    ids = [first[:-2] + f"{number:02}" for number in range(10, 10 + JOBS)]
    for copied in ids:
        shutil.copytree(data_dir / "jobs" / first, data_dir / "jobs" / copied)
        for file in (data_dir / "jobs" / copied).rglob("*.json*"):
            file.write_text(file.read_text().replace(first, copied))
    return ids


def read_by_all(job_id: str, looked_at: list[set[str]], within_s: float = 60.0) -> None:
    """Wait until every reader has had an answer about this job."""
    deadline = time.monotonic() + within_s
    while not all(job_id in seen for seen in looked_at):
        assert time.monotonic() < deadline, f"{job_id} was not read by all within {within_s} s"
        time.sleep(0.02)


def test_reading_a_job_that_is_being_deleted(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ids = finished_jobs(start, job_spec(), tmp_path / "data")
    service = start("--new-key", data_dir=tmp_path / "data", CURATOR_REQUESTS_PER_SECOND="1000000")
    with service.client() as client:
        found = _OPERATIONS["operations"](client.get("/openapi.json").json())
    urls = [operation for operation in found if operation.method == "GET" and "{job_id}" in operation.path]
    assert len(urls) >= 9
    current: list[str] = []
    over = threading.Event()
    statuses: Counter[tuple[str, int]] = Counter()

    def look(operation: Any, headers: dict[str, str], seen: set[str]) -> None:
        with service.client() as client:
            while not over.is_set():
                for job_id in current[-1:]:
                    answer = client.get(operation.url({"job_id": job_id}), headers=headers)
                    statuses[operation.id, answer.status_code] += 1
                    seen.add(job_id)

    streamed = [operation for operation in urls if operation.id in ("read_events", "read_logs")]
    asked = [(operation, {}) for operation in urls]
    asked += [(operation, {"Accept": "text/event-stream"}) for operation in streamed]
    looked_at = [set() for _ in asked]
    with ThreadPoolExecutor(len(asked)) as readers, service.client() as client:
        reading = [readers.submit(look, *reader, seen) for reader, seen in zip(asked, looked_at, strict=True)]
        try:
            for job_id in ids:
                assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "completed"
                current.append(job_id)
                read_by_all(job_id, looked_at)
                assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
                assert client.get(f"/v1/jobs/{job_id}").status_code == 404
        finally:
            over.set()
        for ended in reading:
            ended.result(30)
    seen = {name: {status for asked, status in statuses if asked == name} for name, _ in statuses}
    for found_statuses in seen.values():
        assert {200, 404} <= found_statuses <= {200, 204, 404, 409}, statuses
    assert not any("unexpected error" in line for line in service.log)
