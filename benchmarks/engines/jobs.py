"""Jobs and the processes that run them: one engine a process, one after another, each within a time limit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("child.py")


@dataclass
class Job:
    """One engine with one model: what it is to time (`time`: workload and repetitions) and to `record`.

    `alone` names the recorded workloads whose documents are scored one call each.
    """

    engine: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    threads: int = 2
    python: str = sys.executable
    time: dict[str, int] = field(default_factory=dict)
    record: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)

    def wants(self, time: dict[str, int] | None = None, record: list[str] | None = None) -> None:
        """Ask for more, once."""
        for name, repetitions in (time or {}).items():
            self.time[name] = max(repetitions, self.time.get(name, 0))
        self.record += [name for name in record or [] if name not in self.record]


def launch(job: Job, folder: Path, documents: Path, wait: bool = False) -> "subprocess.Popen[bytes]":
    """Start a job's process, with a group of its own; what it prints goes to `log`."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name: getattr(job, name) for name in ("engine", "model", "options", "dtype", "threads", "time", "record")}
    named |= {"alone": job.alone, "documents": str(documents), "wait": wait, "launched": time.time()}
    (folder / "job.json").write_text(json.dumps(named))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [job.python, str(CHILD), str(folder)], env=environment, stdout=log, stderr=log, start_new_session=True
        )


def finish(process: "subprocess.Popen[bytes]", folder: Path, limit_s: float) -> dict[str, Any]:
    """Wait for a job and read what it measured; one that fails or takes too long keeps what it had, and says why."""
    error = None
    try:
        if process.wait(max(1.0, limit_s)) != 0:
            lines = (folder / "log").read_text(errors="replace").strip().splitlines()
            error = f"failed: {lines[-1][:300] if lines else process.returncode}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {limit_s:.0f} s"
    finally:
        end(process)
    path = folder / "result.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return result | ({"error": error} if error else {})


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def run(job: Job, folder: Path, documents: Path, limit_s: float) -> dict[str, Any]:
    """Run one job from start to end."""
    return finish(launch(job, folder, documents), folder, limit_s)


def run_together(jobs: list[Job], folder: Path, documents: Path, limit_s: float) -> list[dict[str, Any]]:
    """Run jobs at the same time; all start to score at one moment."""
    folders = [folder / str(number) for number in range(len(jobs))]
    processes = [launch(job, one, documents, wait=True) for job, one in zip(jobs, folders, strict=True)]
    deadline = time.monotonic() + limit_s
    try:
        if wait_until_ready(processes, folders, deadline):
            for one in folders:
                (one / "go").touch()
        else:
            deadline = time.monotonic()
        return [
            finish(process, one, deadline - time.monotonic()) for process, one in zip(processes, folders, strict=True)
        ]
    finally:
        for process in processes:
            end(process)


def wait_until_ready(processes: "list[subprocess.Popen[bytes]]", folders: list[Path], deadline: float) -> bool:
    """Whether all workers got ready; no longer than until one has ended or the time is over."""
    while not all((one / "ready").exists() for one in folders):
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            return False
        time.sleep(0.05)
    return True
