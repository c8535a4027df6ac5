"""A node of three is lost in the middle of a run: the job goes on without it, and redoes at most what that one held.

The long form (CURATOR_SOAK) loses 30 nodes or raylets, up to three in each job, and goes on where it was left, by
build/chaos/nodes.jsonl; CURATOR_SITTING_S bounds one sitting.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.alone]
SOAK = bool(os.environ.get("CURATOR_SOAK"))
LOSSES, LOSSES_PER_JOB = 30, 3
SITTING_S = float(os.environ.get("CURATOR_SITTING_S", "inf"))
HERE = Path(__file__).parent
HISTORY = HERE.parents[1] / "build" / "chaos" / "nodes.jsonl"
CURATOR = Path(sys.executable).with_name("curator")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled"}


@dataclass
class Nodes:
    """A running cluster; see nodes.py."""

    process: subprocess.Popen[str]
    address: str = ""

    def add(self) -> int:
        """Another node: its raylet's process id."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.started()

    def started(self) -> int:
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline())
        self.address = said["address"]
        return int(said["raylet"])


@pytest.fixture(scope="module")
def nodes(killing: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The head and one node, a processor each; a test adds the node that it is going to lose."""
    log = tmp_path_factory.mktemp("nodes") / "log.txt"
    with log.open("wb") as file:
        command = [sys.executable, HERE / "nodes.py"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=ENVIRONMENT
        )
    found = Nodes(process)
    found.started()
    found.add()
    yield found
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        killing.lose(process.pid)
        process.communicate()


@dataclass
class Run:
    """`curator run` over the cluster."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path

    def scored(self) -> dict[Path, tuple[int, int]]:
        """Every score shard that is published, and which file that is."""
        found = self.folder.glob("*/scores/*/_receipts/*.json")
        shards = [receipt.parents[1] / f"{receipt.stem}.parquet" for receipt in found]
        return {shard: (shard.stat().st_ino, shard.stat().st_mtime_ns) for shard in shards}

    def until(self, look: Callable[[], Any], within_s: float = 60) -> Any:
        deadline_s = time.monotonic() + within_s
        while not (found := look()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.01)
        return found

    def finish(self) -> Path:
        assert self.process.wait(timeout=180) == 0, self.log.read_text()
        return self.folder

    def tries_again(self) -> int:
        return " ".join(self.log.read_text().split()).count("failed, trying again")


StartRun = Callable[[str], Run]
_DIGESTS: list[str] = []


@pytest.fixture
def start_run(nodes: Nodes, make_spec: Callable[..., dict[str, Any]], tmp_path: Path) -> Iterator[StartRun]:
    """Start a job by its name; whatever still runs ends with the test."""
    started: list[Run] = []

    def start(name: str) -> Run:
        run_config = {"address": nodes.address, "retries": LOSSES_PER_JOB}
        spec = make_spec(rows=300, shard_tokens=50_000, run=run_config, output={"uri": str(tmp_path / name)})
        path, log = tmp_path / f"{name}.yaml", tmp_path / f"{name}.log"
        path.write_text(yaml.safe_dump(spec))
        with log.open("wb") as file:
            process = subprocess.Popen([CURATOR, "run", path], stdout=file, stderr=file, env=ENVIRONMENT)
        started.append(Run(process, tmp_path / name, log))
        return started[-1]

    yield start
    for run in started:
        run.process.kill()
        run.process.wait()


@pytest.fixture
def undisturbed(start_run: StartRun, killing: ModuleType) -> list[str]:
    """Digests of the shards of a job that nobody disturbs; made once, as every test's job is the same."""
    _DIGESTS[:] = _DIGESTS or killing.digests(start_run("undisturbed").finish())
    return _DIGESTS


@pytest.mark.parametrize("lost", ["whole node", "raylet alone"])
def test_a_node_lost_for_good_costs_at_most_the_shards_that_it_held(
    nodes: Nodes, start_run: StartRun, undisturbed: list[str], killing: ModuleType, mix_rows: list[Any], lost: str
) -> None:
    """Its worker is stopped while it holds a shard, so that it is known to hold one; there is no room for another."""
    raylet = nodes.add()
    run = start_run("disturbed")

    def stop_at_work() -> bool:
        if len(run.scored()) < 2:
            return False
        for process, doing in killing.workers(raylet):
            if doing.startswith(killing.AT_WORK):
                process.send_signal(signal.SIGSTOP)
                return True
        return False

    run.until(stop_at_work)
    held = len(run.scored())
    run.until(lambda: len(run.scored()) >= held + 3)
    before = run.scored()
    workers = [process for process, _ in killing.workers(raylet)]
    killing.lose(raylet, lost == "whole node")
    folder = run.finish()
    assert run.tries_again() <= 1, run.log.read_text()
    assert {shard: identity for shard, identity in run.scored().items() if shard in before} == before
    for process in workers:
        with suppress(psutil.Error):
            process.kill()  # where it has not gone with its raylet, as it was stopped
    killing.check_dataset(folder, undisturbed, [row["id"] for row in mix_rows[:300]], 0)


def test_an_answer_that_was_lost_with_its_machine_is_asked_for_again(nodes: Nodes, tmp_path: Path) -> None:
    command = [sys.executable, HERE / "lost_answer.py", nodes.address, str(nodes.add()), str(tmp_path / "marker")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert (sorted(told["results"]), told["failures"], told["lost"]) == ([*range(100)], 0, 1)
    assert len(told["said"]) == 1 and "trying again" in told["said"][0], told["said"]


@pytest.mark.skipif(not SOAK, reason="the long form")
def test_many_nodes_lost_and_replaced(
    nodes: Nodes, start_run: StartRun, undisturbed: list[str], killing: ModuleType, mix_rows: list[Any]
) -> None:
    def job(seed: int) -> tuple[list[Any], dict[str, Any]]:
        generator, losses, began_s = random.Random(seed), [], time.monotonic()
        raylet = nodes.add()
        run = start_run(f"disturbed-{seed}")
        for number in range(LOSSES_PER_JOB):
            while run.process.poll() is None and not killing.workers(raylet):
                time.sleep(0.01)
            time.sleep(2 * generator.random())
            whole, published = generator.random() < 0.5, len(killing.receipts(run.folder))
            if run.process.poll() is None:
                doing = "whole node" if whole else "raylet alone"
                losses.append(killing.Kill(round(time.monotonic() - began_s, 3), raylet, doing, published))
            killing.lose(raylet, whole)
            if number < LOSSES_PER_JOB - 1:
                raylet = nodes.add()
        folder = run.finish()
        killing.check_dataset(folder, undisturbed, [row["id"] for row in mix_rows[:300]], 0)
        return losses, {"shards": len(undisturbed), "tries_again": run.tries_again()}

    done = killing.within(HISTORY, LOSSES, SITTING_S, job)
    assert done >= LOSSES, f"{done} of {LOSSES} nodes lost so far, all survived; run it again, it goes on"
