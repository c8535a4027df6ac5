"""Ctrl-C and SIGTERM end a training between two steps, at a place from which the same command goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
import ray.util.queue
import yaml

from curator.interrupts import heeded
from curator.training import TrainSpec, train_reference
from curator.training.reference.milestones import find_progress
from curator.training.reference.ray_train import _follow, _Post, _work
from curator.training.reference.record import TrainResult
from curator.training.reference.staging import ray_folder_of, staging_of

Make = Callable[..., dict[str, Any]]
INTERRUPTED = 130
pytestmark = pytest.mark.usefixtures("terminal")


def train(spec: dict[str, Any], lines: list[str], number: signal.Signals | None = None, at: str = "") -> TrainResult:
    def say(line: str) -> None:
        lines.append(line)
        if number is not None and line.startswith(at):
            signal.raise_signal(number)

    return train_reference(TrainSpec.model_validate(spec), say)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_training_goes_on_after_the_last_step_and_ends_in_the_same_bytes(
    train_spec: Make, tmp_path: Path, number: signal.Signals
) -> None:
    settings = {"max_steps": 5, "eval_every": 1, "keep_every": 1}
    whole = train(train_spec(output=str(tmp_path / "whole"), **settings), [])
    spec = train_spec(**settings)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt), heeded(signal.SIGUSR1):  # as a job of the service is told to leave
        train(spec, lines, number, at="step 3: held-out")
    staging = staging_of(tmp_path / "reference")
    progress = find_progress(staging.resume)
    assert progress is not None and progress.step == 3 and len(staging.copies) == 3
    assert lines[-1] == "interrupted; the same command goes on from step 3"
    result = train(spec, [])
    assert result.resumed_at == (3,) and result.evaluations == whole.evaluations
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "reference"))
    assert one.read_bytes() == other.read_bytes()


def test_an_interrupt_in_the_last_step_keeps_what_is_finished(train_spec: Make, tmp_path: Path) -> None:
    spec = train_spec(max_steps=2, eval_every=1)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(spec, lines, signal.SIGINT, at="step 2: held-out")
    assert lines[-1] == "interrupted; the reference is finished, and the same command puts it in its place"
    lines.clear()
    result = train(spec, lines)
    assert result.steps == 2 and not any(line.startswith("training on") for line in lines)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_launcher_passes_on_is_not_a_second_one(
    train_spec: Make, tmp_path: Path, second: signal.Signals
) -> None:
    """Torchrun gives its workers a terminal's Ctrl-C as SIGTERM, and once more what Slurm gave to all processes."""

    def say(line: str) -> None:
        if line.startswith("step 2: held-out"):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(second)

    with pytest.raises(KeyboardInterrupt):
        train_reference(TrainSpec.model_validate(train_spec(max_steps=4, eval_every=1)), say)
    progress = find_progress(staging_of(tmp_path / "reference").resume)
    assert progress is not None and progress.step == 2


def test_a_second_interrupt_is_not_waited_for(train_spec: Make, tmp_path: Path) -> None:
    def say(line: str) -> None:
        if line.startswith("step 2: held-out"):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.6)  # sooner, and it would be the same one
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        train_reference(TrainSpec.model_validate(train_spec(max_steps=4, eval_every=1)), say)
    assert not staging_of(tmp_path / "reference").root.exists(), "there was nothing to keep"


def test_an_interrupt_before_the_first_step_is_heeded_at_once(train_spec: Make, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(train_spec(), lines, signal.SIGINT, at="held out: ")
    assert lines[-1].startswith("held out: ") and not staging_of(tmp_path / "reference").root.exists()


def test_another_thread_than_the_main_one_trains_as_ever(train_spec: Make) -> None:
    results: list[TrainResult] = []
    worker = threading.Thread(target=lambda: results.append(train(train_spec(max_steps=1), [])))
    worker.start()
    worker.join()
    assert results[0].steps == 1


def test_a_worker_of_ray_leaves_when_it_is_told(train_spec: Make, tmp_path: Path) -> None:
    mailbox: Queue[tuple[str, Any]] = Queue()
    wishes: Queue[bool] = Queue()
    wishes.put(True)
    given = {"spec": train_spec(max_steps=4), "folder": os.getcwd(), "failed": str(tmp_path / "failed")}
    _work({**given, "post": _Post(mailbox, wishes)})
    progress = find_progress(staging_of(tmp_path / "reference").resume)
    assert progress is not None and progress.step == 1
    *said, last = [mailbox.get_nowait() for _ in range(mailbox.qsize())]
    assert ("began", None) in said and last == ("line", "interrupted; the same command goes on from step 1")
    assert not (tmp_path / "failed").exists(), "nothing failed"


class RaysQueue(Queue[Any]):
    """As Ray's, in this process."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return super().get(block, timeout)
        except Empty:
            raise ray.util.queue.Empty from None

    def shutdown(self) -> None:
        """Nothing runs."""


@pytest.fixture
def rays_handler() -> Iterator[None]:
    """Takes SIGTERM as Ray does when it is connected."""
    before = signal.getsignal(signal.SIGTERM)

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(number)

    leave.__module__ = "ray._private.worker"
    signal.signal(signal.SIGTERM, leave)
    yield
    assert signal.getsignal(signal.SIGTERM) is leave, "it is as it was before"
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("rays_handler")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_ends_the_workers_at_a_resume_point(
    train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("step 3: held-out"):
            signal.raise_signal(number)

    monkeypatch.setattr(ray.util.queue, "Queue", lambda actor_options: RaysQueue())
    spec = train_spec(max_steps=100_000, epochs=1e6, eval_every=1)
    given = {"spec": spec, "folder": os.getcwd(), "failed": str(tmp_path / "failed")}
    with pytest.raises(KeyboardInterrupt):
        _follow(lambda post: _work({**given, "post": post}), say)
    progress = find_progress(staging_of(tmp_path / "reference").resume)
    assert progress is not None and progress.step >= 3
    assert any(line.startswith("ending after the step") for line in lines)
    assert lines[-1] == f"interrupted; the same command goes on from step {progress.step:,}"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.filterwarnings("ignore:.use_.*deprecated")  # Ray's own, when it copies its settings
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_of_ray_save_before_they_leave(
    train_spec: Make, tmp_path: Path, ray_cluster: None, number: signal.Signals
) -> None:
    lines: list[str] = []
    spec = train_spec(max_steps=100_000, epochs=1e6, eval_every=1, run={"workers": 2, "gpus_per_worker": 0})
    with pytest.raises(KeyboardInterrupt):
        train(spec, lines, number, at="step 3: held-out")
    progress = find_progress(staging_of(tmp_path / "reference").resume)
    assert progress is not None and progress.step >= 3
    assert any(line.startswith("ending after the step") for line in lines)
    assert lines[-1] == f"interrupted; the same command goes on from step {progress.step:,}"
    assert not ray_folder_of(tmp_path / "reference").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_command_that_is_stopped_goes_on(
    train_spec: Make, tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    spec, output = tmp_path / "spec.yaml", tmp_path / "reference"
    spec.write_text(yaml.safe_dump(train_spec(max_steps=2000, eval_every=5)))
    curator = [str(Path(sys.executable).with_name("curator")), "train-reference", str(spec)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--no-python"]
    command = curator if processes == 1 else [*launcher, *curator]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while not list(staging_of(output).best.glob("*.safetensors")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal does: launcher and workers get it
    _, errors = process.communicate(timeout=100)
    progress = find_progress(staging_of(output).resume)
    assert progress is not None and progress.step >= 5, errors[-3000:]
    if processes == 1:
        assert process.returncode == INTERRUPTED
