"""A job can be cancelled in every state: within seconds nothing of it runs, what it published stays, and it resumes."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.slow
SOAK = bool(os.environ.get("CURATOR_SOAK"))
SLEEPING = "tokenize"
"""The stage in which the driver is stopped, too, and cannot leave by itself."""

STAGES = (SLEEPING, *["score reference", "score base"] * SOAK, "calibrate", "select")
CANCELLED_WITHIN_S = 10


def post(service: Any, job_id: str, action: str) -> Any:
    with service.client() as client:
        return client.post(f"/v1/jobs/{job_id}/{action}")


def cancel(service: Any, job_id: str) -> dict[str, Any]:
    answer = post(service, job_id, "cancel")
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def ray_sessions(processes: list[psutil.Process]) -> set[Path]:
    """The folders of the Ray clusters that these processes are."""
    words = [word for process in processes for word in process.cmdline()]
    paths = [Path(word.rpartition("=")[2]) for word in words]
    parts = [part for path in paths for part in path.parents if part.name.startswith("session_")]
    return {part for part in parts if part.is_dir()}


def size_of(folders: set[Path]) -> int:
    return sum(path.lstat().st_size for folder in folders for path in folder.rglob("*"))


def test_a_job_that_waits_is_cancelled_at_once(start: Any, job_spec: Any, files_of: Any) -> None:
    service = start(CURATOR_MAX_RUNNING_JOBS="0")
    job_id = service.submit(job_spec())["id"]
    assert cancel(service, job_id)["status"] == "cancelled"
    assert cancel(service, job_id)["status"] == "cancelled"
    resumed = [post(service, job_id, "resume") for _ in range(2)]
    assert [(answer.status_code, answer.json()["status"], answer.json()["attempt"]) for answer in resumed] == [
        (202, "queued", 2)
    ] * 2
    with service.client() as client:
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 409
    assert files_of(job_id).states() == ["queued", "cancelled", "queued"]
    assert [event["attempt"] for event in files_of(job_id).events()] == [1, 1, 2]


def test_cancelled_in_every_state_and_resumed_it_ends_as_if_undisturbed(
    start: Any, job_spec: Any, files_of: Any, processes_of: Any
) -> None:
    service = start()
    job_id = service.submit(job_spec())["id"]
    files = files_of(job_id)
    for attempt, stage in enumerate(("validating", *STAGES), 1):
        if stage == "validating":
            files.driver(epoch=2)
        else:
            files.wait_stage(stage, attempt=attempt)
        sessions = ray_sessions(processes_of(job_id))
        if stage == SLEEPING:
            for process in processes_of(job_id):
                process.suspend()
        asked = time.monotonic()
        answer = cancel(service, job_id)
        assert (answer["status"], answer["attempt"]) == ("cancelling", attempt)
        job = service.wait(job_id, "cancelled", within_s=CANCELLED_WITHIN_S)
        assert time.monotonic() - asked < CANCELLED_WITHIN_S
        assert job["error"] is None
        files.check_nothing_left(within_s=0)  # it is called cancelled only then
        files.check_log()
        if stage != "validating":
            size = size_of(sessions)
            partial = json.loads((files.output / "manifest.partial.json").read_text())
            assert not partial["complete"]
            assert len(partial["shards"]) == len(list((files.output / "curated" / "_receipts").glob("*.json")))
            files.check_published(partial)
            assert size_of(sessions) == size
        assert not (files.output / "manifest.json").exists()
        resumed = post(service, job_id, "resume").json()
        assert (resumed["status"], resumed["attempt"]) == ("queued", attempt + 1)
    files.wait(lambda event: event["data"].get("status") == "finalizing")
    cancel(service, job_id)
    job = service.wait(job_id)
    if job["status"] == "cancelled":  # it had not published its manifest yet
        post(service, job_id, "resume")
        job = service.wait(job_id)
    assert job["status"] == "completed"
    assert job["totals"]["rows"] == 200
    files.check_completed()
    for action in ("cancel", "resume"):
        refused = post(service, job_id, action)
        assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")


def test_a_service_that_dies_while_it_cancels(
    start: Any, job_spec: Any, files_of: Any, until: Callable[..., Any]
) -> None:
    """First right after its answer; then the job runs without a service, and one that never started it cancels it."""
    service = start()
    key, job_id = service.key, service.submit(job_spec())["id"]
    files = files_of(job_id)
    files.wait_stage("tokenize")
    cancel(service, job_id)
    service.kill()
    service = start(key=key)
    service.wait(job_id, "cancelled", within_s=CANCELLED_WITHIN_S)
    files.check_nothing_left(within_s=0)

    post(service, job_id, "resume")
    epoch = files.record["epoch"]
    files.driver(epoch=epoch + 1)
    service.kill()
    files.wait(lambda event: event["epoch"] > epoch and event["type"] == "stage")
    service = start(key=key)
    cancel(service, job_id)
    job = service.wait(job_id, within_s=CANCELLED_WITHIN_S)
    assert (job["status"], job["attempt"]) == ("cancelled", 2)
    files.check_nothing_left(within_s=0)
    files.check_log()
