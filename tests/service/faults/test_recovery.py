"""Services, drivers and whole sessions are killed or stopped at any moment: every job completes with the same bytes."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from curator.job_directory import JobDirectory, JobRecord, new_id, now

pytestmark = pytest.mark.slow
SOAK = bool(os.environ.get("CURATOR_SOAK"))
KILLS = 50 if SOAK else 6
FAST = {"CURATOR_STALLED_S": "8", "CURATOR_HEARTBEAT_S": "1"}


def signal_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_service_killed_at_random_moments_loses_nothing(
    start: Any, job_spec: Any, files_of: Any, undisturbed: list[str]
) -> None:
    """Many moments come soon after a job was submitted or the service started, when it claims, starts and follows."""
    generator = random.Random(11)
    service = start()
    key, jobs = service.key, [service.submit(job_spec())["id"]]
    for _ in range(KILLS):
        time.sleep(4 * generator.random() ** 2)
        service.kill()
        service = start(key=key)
        with service.client() as client:
            if client.get(f"/v1/jobs/{jobs[-1]}").json()["status"] == "completed":
                jobs.append(service.submit(job_spec())["id"])
    for job_id in jobs:
        job = service.wait(job_id)
        assert (job["status"], job["attempt"], job["error"]) == ("completed", 1, None)
        files = files_of(job_id)
        files.check_completed()
        assert job["totals"]["rows"] == 200
        assert job["epoch"] == files.record["epoch"] == files.events()[-1]["epoch"]
    with service.client() as client:
        assert {job["id"] for job in client.get("/v1/jobs").json()["data"]} == set(jobs)


def test_a_killed_or_stopped_driver_is_replaced(start: Any, job_spec: Any, files_of: Any, processes_of: Any) -> None:
    """First the driver alone, whose cluster must not stay behind; then all that belongs to the job; then it sleeps."""
    service = start(**FAST)
    job_id = service.submit(job_spec())["id"]
    files = files_of(job_id)
    files.wait_stage("tokenize")
    first = processes_of(job_id)
    files.driver(epoch=2).kill()

    files.wait_stage("score base", epoch=4)
    second = processes_of(job_id)
    assert alive(first) == []
    files.driver(epoch=4).kill()
    signal_all(second, signal.SIGKILL)

    files.wait_stage("select", epoch=6)
    third = processes_of(job_id)
    signal_all(third, signal.SIGSTOP)

    job = service.wait(job_id)
    assert (job["status"], job["attempt"], job["epoch"]) == ("completed", 1, 8)
    assert alive([*second, *third]) == []
    assert files.states().count("queued") == 4
    files.check_completed()


def test_a_driver_that_always_dies_fails_the_job(start: Any, job_spec: Any, files_of: Any) -> None:
    service = start(CURATOR_MAX_RELAUNCHES="1")
    job_id = service.submit(job_spec())["id"]
    files = files_of(job_id)
    for epoch in (2, 4):
        files.driver(epoch).kill()
    job = service.wait(job_id, "failed")
    assert job["error"]["type"] == "ClusterError"
    assert "driver died 2 times in a row without getting further" in job["error"]["message"]
    assert files.events()[-1]["data"] == {"status": "failed", "error": job["error"]}
    files.check_log()
    files.check_nothing_left()


StartDriver = Callable[[JobDirectory, int], subprocess.Popen[bytes]]


@pytest.fixture
def start_driver(processes_of: Any) -> Iterator[StartDriver]:
    """Start drivers as a service elsewhere does; their marks tell the owners apart."""
    started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def begin(directory: JobDirectory, epoch: int) -> subprocess.Popen[bytes]:
        mark = f"{directory.path.name}-{epoch}"
        command = [sys.executable, "-m", "curator.job_runner", str(directory.path), str(epoch), "--heartbeat", "1"]
        with (directory.path / f"log{epoch}.txt").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"CURATOR_JOB": mark}, start_new_session=True
            )
        started.append((mark, process))
        return process

    yield begin
    for mark, process in started:
        signal_all(processes_of(mark), signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("wakes", ["while the new owner works", *["when all is done"] * SOAK])
def test_a_zombie_out_of_reach_commits_nothing(
    tmp_path: Path, job_spec: Any, files_of: Any, processes_of: Any, start_driver: StartDriver, until: Any, wakes: str
) -> None:
    """No service can kill it: it sleeps with its whole cluster, and wakes when the job is somebody else's."""
    job_id, folder = new_id("job"), tmp_path / "data" / "jobs"
    spec = job_spec(output={"uri": str(folder / job_id / "output")})
    directory = JobDirectory(folder / job_id)
    record = JobRecord(
        id=job_id, kind="curate", tenant="default", name="n", spec=spec, output=spec["output"]["uri"], created_at=now()
    )  # fmt: skip
    directory.create(record)
    files = files_of(job_id)
    zombie = start_driver(directory, 1)
    files.wait_stage("score reference")
    asleep = processes_of(f"{job_id}-1")
    signal_all(asleep, signal.SIGSTOP)
    directory.advance(2, {"status": "validating"})
    owner = start_driver(directory, 2)
    if wakes == "when all is done":
        assert owner.wait(120) == 0
    else:
        files.wait_stage("score base", epoch=2)
    signal_all(asleep, signal.SIGCONT)
    assert zombie.wait(30) == 4, (directory.path / "log1.txt").read_text()
    assert owner.wait(120) == 0, (directory.path / "log2.txt").read_text()
    until(lambda: not [process for epoch in (1, 2) for process in processes_of(f"{job_id}-{epoch}")] or None, 10)
    files.check_completed()
    assert {event["epoch"] for event in files.events()} == {1, 2}
    assert directory.heartbeat() is not None and directory.heartbeat().epoch == 2  # type: ignore[union-attr]


def test_two_services_share_the_work_and_one_takes_over_from_the_other(
    start: Any, job_spec: Any, files_of: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    services = [start()]
    services.append(start(key=services[0].key))
    jobs = [service.submit(job_spec())["id"] for service in services]
    files = [files_of(job_id) for job_id in jobs]
    files[0].wait_stage("tokenize")
    with sqlite3.connect(tmp_path / "data" / "service.db") as database:
        owner = database.execute("select owner from jobs where id = ?", (jobs[0],)).fetchone()[0]
    database.close()
    killed = next(service for service in services if str(service.process.pid) == owner.split(":")[1])
    other = next(service for service in services if service is not killed)
    killed.kill()
    for job_id, seen in zip(jobs, files, strict=True):
        job = other.wait(job_id)
        assert (job["status"], job["epoch"]) == ("completed", 2)  # the driver that ran went on, under another eye
        seen.check_completed()
        assert seen.states().count("validating") == 1
