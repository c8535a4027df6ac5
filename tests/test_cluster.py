"""`Pool.map` on a real local Ray: every task once, faults retried, hopeless ones reported."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from curator import cluster, shard_map
from curator.cluster import connect
from curator.errors import ClusterError, ScorerError, ShardError, StorageError
from curator.progress import Silent
from curator.room import Workers
from curator.worker import ShardFailure, StageWorker, raise_failures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def full_disk(message: str) -> StorageError:
    """As `curator.storage` raises it; other faults of storage may pass, and are tried again."""
    error = StorageError(message)
    error.retryable = False
    return error


@dataclass(frozen=True)
class Square:
    """Squares numbers; misbehaves as told, once per file in `folder`."""

    folder: str = ""
    faults: dict[int, str] = field(default_factory=dict)
    always: bool = False

    def open(self) -> None:
        if "open" in self.faults.values():
            raise ScorerError("no such model")

    def load(self, task: int) -> int:
        return task

    def run(self, task: int, inputs: int, on_tokens: Callable[[int], None]) -> tuple[int, int]:
        marker = Path(self.folder) / str(task)
        if task in self.faults and (self.always or not marker.exists()):
            marker.touch()
            if self.faults[task] == "die":
                os._exit(1)
            if self.faults[task] == "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
            raise {"raise": ScorerError, "disk": full_disk, "bug": KeyError}[self.faults[task]](f"task {task}")
        on_tokens(1)
        return inputs, inputs * inputs


class Recorder(Silent):
    """Remembers what was reported."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int]] = []
        self.said: list[str] = []

    def update(self, shards_done: int, tokens_done: int, workers: int) -> None:
        self.updates.append((shards_done, tokens_done))

    def say(self, message: str) -> None:
        self.said.append(message)


def run(stage: Square, tasks: int = 10, retries: int = 2) -> tuple[dict[int, int], list[ShardFailure[int]], Recorder]:
    results: list[tuple[int, int]] = []
    recorder = Recorder()
    with connect("local", retries) as local:
        failures = local.pool(Workers(count=2), tasks).map(
            stage, range(tasks), reporter=recorder, tokens_of=lambda _: 1, on_result=results.append
        )
    assert len(results) == len(dict(results))
    return dict(results), failures, recorder


def test_every_task_is_done_once() -> None:
    results, failures, recorder = run(Square(), tasks=50)
    assert results == {i: i * i for i in range(50)} and failures == []
    assert recorder.updates[-1] == (50, 50)


@pytest.mark.parametrize("fault", ["raise", "bug", "die"])
def test_a_passing_fault_is_retried(tmp_path: Path, fault: str) -> None:
    results, failures, recorder = run(Square(str(tmp_path), {3: fault, 7: fault}))
    assert results == {i: i * i for i in range(10)} and failures == []
    assert len(recorder.said) >= 2 and "trying again" in recorder.said[0]


@pytest.mark.parametrize("fault", ["raise", "die"])
def test_a_hopeless_task_is_reported_after_the_others_are_done(tmp_path: Path, fault: str) -> None:
    results, failures, _ = run(Square(str(tmp_path), {4: fault}, always=True), retries=1)
    assert results == {i: i * i for i in range(10) if i != 4}
    assert [(failure.task, failure.attempts) for failure in failures] == [(4, 2)]
    with pytest.raises(ShardError, match=r"score: 1 shards failed; run the same command to resume"):
        raise_failures("score", failures, str)


def test_what_no_retry_can_mend_ends_the_map_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="task 0"):
        run(Square(str(tmp_path), {0: "disk"}, always=True), tasks=1000)
    assert not (tmp_path / "999").exists()


def test_an_engine_that_never_starts_ends_the_map_at_once() -> None:
    started_s = time.monotonic()
    with pytest.raises(ScorerError, match="no such model"):
        run(Square(faults={0: "open"}), tasks=1000)
    assert time.monotonic() - started_s < 60


def test_a_worker_that_hangs_holds_its_task_for_a_while_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_map, "_SILENT_S", 3.0)
    results, failures, recorder = run(Square(str(tmp_path), {3: "hang"}))
    assert results == {i: i * i for i in range(10)} and failures == []
    assert len(recorder.said) == 1 and "silent for 3 s and was ended" in recorder.said[0]


class Stillborn(StageWorker):
    """Dies while it starts, always or until the marker is there."""

    def __init__(self, folder: str) -> None:
        marker = os.environ["STILLBORN"]
        if not os.path.exists(marker):
            if marker:
                Path(marker).touch()
            os._exit(1)
        super().__init__(folder)


def test_a_worker_that_dies_while_it_starts_costs_no_task_an_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "StageWorker", Stillborn)
    monkeypatch.setitem(cluster._ENVIRONMENT, "STILLBORN", str(tmp_path / "marker"))
    results, failures, recorder = run(Square(), retries=0)
    assert results == {i: i * i for i in range(10)} and failures == [] and recorder.said == []


def test_workers_that_never_come_up_end_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "StageWorker", Stillborn)
    monkeypatch.setitem(cluster._ENVIRONMENT, "STILLBORN", "")
    with pytest.raises(ClusterError, match=r"5 workers in a row died before they were up.* see Ray's logs"):
        run(Square())
