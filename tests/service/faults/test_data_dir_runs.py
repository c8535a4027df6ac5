"""`curator run --data-dir` beside a service: seen, cancelled and taken over there, and resumed by the same command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("terminal")]
CURATOR = Path(sys.executable).with_name("curator")
SOAK = bool(os.environ.get("CURATOR_SOAK"))
INTERRUPTED, BAD_USAGE = 130, 2


class Command:
    """The same command, as often as a test wants it."""

    def __init__(self, spec: Path, data_dir: Path) -> None:
        self._command = [CURATOR, "run", spec, "--data-dir", data_dir]
        self.runs: list[subprocess.Popen[str]] = []

    def run(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.runs.append(process)
        return process


@pytest.fixture
def command(tmp_path: Path, job_spec: Any) -> Iterator[Command]:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(job_spec(name="by hand", output={"uri": str(tmp_path / "out")}), sort_keys=False))
    command = Command(spec, tmp_path / "data")
    yield command
    for process in command.runs:
        with suppress(psutil.Error):
            process.kill()
        process.communicate()


def jobs_of(service: Any) -> list[dict[str, Any]]:
    with service.client() as client:
        return list(client.get("/v1/jobs").raise_for_status().json()["data"])


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def press_ctrl_c(run: subprocess.Popen[str]) -> int:
    run.send_signal(signal.SIGINT)
    return run.wait(16)


def test_a_run_by_hand_is_a_job_of_the_service(
    start: Any, files_of: Any, command: Command, until: Callable[..., Any]
) -> None:
    service = start()
    run = command.run()
    job = until(lambda: next(iter(jobs_of(service)), None), 30)
    job_id, files = job["id"], files_of(job["id"])
    assert (job["name"], job["kind"], job["attempt"]) == ("by hand", "curate", 1)
    files.wait_stage("tokenize")
    assert service.wait(job_id, "in_progress")["progress"]["stages"][0]["stage"] == "tokenize"

    run.send_signal(signal.SIGSTOP)  # so that it is still in its first stage afterwards
    second = command.run()
    said, _ = second.communicate(timeout=60)
    run.send_signal(signal.SIGCONT)
    assert (second.returncode, f"job {job_id} of this spec is in_progress and at work" in " ".join(said.split())) == (
        BAD_USAGE, True,
    )  # fmt: skip

    members = family(run)
    with service.client() as client:
        assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    asked = time.monotonic()
    assert run.wait(10) == INTERRUPTED, run.communicate()[0]
    service.wait(job_id, "cancelled", within_s=10 - (time.monotonic() - asked))
    until(lambda: alive(members) == [] or None, 30)  # on a busy machine Ray's own may go a moment later
    files.check_nothing_left(within_s=10)

    run = command.run()  # the same command goes on with the same job
    files.wait_stage("score reference", attempt=2)
    members = family(run)
    assert press_ctrl_c(run) == INTERRUPTED, run.communicate()[0]
    until(lambda: alive(members) == [] or None, 30)
    job = service.wait(job_id, "cancelled", within_s=10)
    assert (job["attempt"], files.states()[-1]) == (2, "cancelled")
    assert (files.output / "manifest.partial.json").exists()

    run = command.run()  # killed, it is finished by the service
    files.wait_stage("score base", attempt=3)
    service.wait(job_id, "in_progress", within_s=10)
    run.kill()
    job = service.wait(job_id)
    assert (job["status"], job["attempt"]) == ("completed", 3)
    files.check_completed()
    assert [found["id"] for found in jobs_of(service)] == [job_id]

    run = command.run()
    assert run.wait(60) == 0
    assert files.states()[-1] == "completed"
    assert jobs_of(service)[0]["attempt"] == 3


def test_a_run_in_the_background_of_a_shell_is_cancelled_all_the_same(
    start: Any, files_of: Any, command: Command, until: Callable[..., Any]
) -> None:
    """There SIGINT is ignored."""
    service = start()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = command.run()
    finally:
        signal.signal(signal.SIGINT, before)
    job_id = until(lambda: next(iter(jobs_of(service)), None), 30)["id"]
    files = files_of(job_id)
    files.wait(lambda event: event["data"].get("status") == "in_progress")
    with service.client() as client:
        client.post(f"/v1/jobs/{job_id}/cancel")
    assert run.wait(10) == INTERRUPTED
    service.wait(job_id, "cancelled", within_s=10)


@pytest.mark.skipif(not SOAK, reason="the long form")
def test_a_run_that_has_been_stopped_does_not_keep_its_job_from_ending(
    start: Any, files_of: Any, command: Command, until: Callable[..., Any]
) -> None:
    """The service may not kill a person's process; when that wakes, it writes nothing more."""
    service = start(CURATOR_STALLED_S="8", CURATOR_HEARTBEAT_S="1")
    run = command.run()
    job_id = until(lambda: next(iter(jobs_of(service)), None), 30)["id"]
    files = files_of(job_id)
    files.wait_stage("tokenize")
    run.send_signal(signal.SIGSTOP)
    with service.client() as client:
        client.post(f"/v1/jobs/{job_id}/cancel")
    service.wait(job_id, "cancelled", within_s=20)
    run.send_signal(signal.SIGCONT)
    run.wait(30)
    assert files.states()[-1] == "cancelled"
    files.check_log()
    files.check_nothing_left()
