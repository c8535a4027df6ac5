"""What the fault tests share: the shards of an undisturbed run, and a look at a job past the service."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from curator import read_manifest, verify


def marked(job_id: str) -> list[psutil.Process]:
    """Everything alive that a job has started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("CURATOR_JOB") == job_id:
                found.append(process)
    return found


@dataclass
class JobFiles:
    """A job, looked at through its directory and the system's process table."""

    path: Path
    shards: list[str]

    @property
    def output(self) -> Path:
        return Path(json.loads((self.path / "job.json").read_text())["output"])

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "job.json").read_text()))

    def events(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            lines = (self.path / "events.jsonl").read_bytes().splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith(b"\n")]
        return []

    def states(self) -> list[str]:
        return [event["data"]["status"] for event in self.events() if event["type"] == "state"]

    def wait(self, seen: Callable[[dict[str, Any]], bool], within_s: float = 120) -> dict[str, Any]:
        """Wait for an event, looking often enough to act while it is fresh."""
        return until(lambda: next((event for event in self.events() if seen(event)), None), within_s)

    def wait_stage(self, stage: str, *, attempt: int = 1, epoch: int = 1) -> dict[str, Any]:
        return self.wait(
            lambda event: (
                event["type"] == "stage"
                and event["data"]["stage"] == stage
                and event["attempt"] >= attempt
                and event["epoch"] >= epoch
            )
        )

    def driver(self, epoch: int = 1) -> psutil.Process:
        """The process that owns the job, once it has said so."""

        def look() -> psutil.Process | None:
            with suppress(OSError, ValueError, psutil.Error):
                beat = json.loads((self.path / "heartbeat.json").read_text())
                return psutil.Process(beat["pid"]) if beat["epoch"] >= epoch else None
            return None

        return until(look, 60)

    def check_published(self, manifest: dict[str, Any]) -> None:
        """Every listed shard is there, with the digest that an undisturbed run gives it."""
        for shard in manifest["shards"]:
            content = (self.output / shard["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard["sha256"] == self.shards[shard["number"]]

    def check_log(self) -> None:
        """Ids without a gap, and never a word of an earlier owner after a later one's."""
        events = self.events()
        assert [event["id"] for event in events] == list(range(1, len(events) + 1))
        epochs = [event["epoch"] for event in events]
        assert epochs == sorted(epochs)

    def check_nothing_left(self, within_s: float = 10) -> None:
        """No process, no staged file, and no session of Ray that somebody still writes to."""
        until(lambda: not marked(self.path.name) or None, within_s)
        assert list(self.path.rglob("_staging")) == []

    def check_completed(self) -> None:
        """The job has ended well, exactly as if nothing had happened."""
        assert self.states()[-1] == "completed"
        self.check_log()
        manifest = read_manifest(str(self.output))
        assert [shard.sha256 for shard in manifest.shards] == self.shards
        assert verify(str(self.output)) == []
        self.check_nothing_left()


def until(look: Callable[[], Any], within_s: float) -> Any:
    """What `look` finds, as soon as it is not None."""
    deadline = time.monotonic() + within_s
    while (found := look()) is None:
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="session", name="until")
def give_until() -> Callable[..., Any]:
    return until


@pytest.fixture(scope="session")
def processes_of() -> Callable[[str], list[psutil.Process]]:
    return marked


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, job_spec: Callable[..., dict[str, Any]]) -> list[str]:
    """Digests of the shards of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(job_spec(output={"uri": str(folder / "out")}), sort_keys=False))
    curator = Path(sys.executable).with_name("curator")
    run = subprocess.run([curator, "run", spec], capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr
    return [shard.sha256 for shard in read_manifest(str(folder / "out")).shards]


@pytest.fixture
def files_of(tmp_path: Path, undisturbed: list[str]) -> Iterator[Callable[[str], JobFiles]]:
    """The files of a job of the services that `start` starts; whatever it has started ends with the test."""
    looked_at: list[str] = []

    def look(job_id: str) -> JobFiles:
        looked_at.append(job_id)
        return JobFiles(tmp_path / "data" / "jobs" / job_id, undisturbed)

    yield look
    for job_id in looked_at:
        for process in marked(job_id):
            with suppress(psutil.Error):
                process.kill()
