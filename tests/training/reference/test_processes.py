"""Several processes share each step: the trajectory of one process, whoever started them."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from curator.errors import ClusterError, OutputError, TrainingError
from curator.training import TrainSpec, train_reference
from curator.training.reference import ray_train
from curator.training.reference.ray_train import _Post, _work
from curator.training.reference.record import TrainResult
from curator.training.reference.schedule import Schedule, collate

pytestmark = pytest.mark.alone

Make = Callable[..., dict[str, Any]]
SETTINGS = {"max_steps": 10, "eval_every": 4, "keep_every": 5, "micro_batch_tokens": 100}


def train(spec: dict[str, Any], lines: list[str] | None = None) -> TrainResult:
    return train_reference(TrainSpec.model_validate(spec), (lambda line: None) if lines is None else lines.append)


@pytest.mark.parametrize("batches", [1, 7, 12])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_a_step_is_the_same_for_any_number_of_processes(batches: int, processes: int) -> None:
    rows = [[np.arange(start, start + 9, dtype=np.int32)] for start in range(0, 10 * batches, 10)]
    alone, shared = (Schedule(rows, 30, number, seed=1) for number in (1, processes))
    assert alone.per_step == shared.per_step and alone.steps_per_epoch == shared.steps_per_epoch
    for schedule in (alone, shared):
        schedule.steps = 3 * schedule.steps_per_epoch
    slots = shared.accumulate * processes
    assert len(shared) == shared.steps * slots
    for step in range(shared.steps):
        dealt = [shared[step * slots + slot] for slot in range(slots)]
        learned = [int(batch[0][0]) for batch in dealt if len(batch)]
        assert learned == [int(batch[0][0]) for batch in alone.step(step)]
        assert shared.tokens(step) == 9 * len(learned)
    for epoch in range(3):
        first = epoch * shared.steps_per_epoch
        seen = [int(b[0][0]) for step in range(first, first + shared.steps_per_epoch) for b in shared.step(step)]
        assert sorted(seen) == list(range(0, 10 * batches, 10)), "every token once an epoch"


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("batch_tokens", [63, 64, 100_000, 10**24, 10**400])
def test_a_step_that_holds_all_the_data_forwards_it_once(batch_tokens: int, processes: int) -> None:
    rows = [[np.arange(start, start + 9, dtype=np.int32)] for start in range(0, 70, 10)]
    schedule = Schedule(rows, batch_tokens, processes, seed=1)
    assert (schedule.per_step, schedule.steps_per_epoch) == (7, 1)
    assert schedule.accumulate == {1: 7, 3: 3}[processes] and len(schedule) == schedule.accumulate * processes
    assert schedule.tokens(0) == 63


def test_an_empty_micro_batch_weighs_nothing() -> None:
    batch = collate([[]])
    assert batch["input_ids"].shape == (1, 2) and not batch["token_weights"].any()


def assert_alike(one: Path, other: Path) -> None:
    """Up to rounding: far closer to each other than either is to the base."""
    for folder in ("", "checkpoints/step-000005/"):
        left, right = (load_file(place / folder / "model.safetensors") for place in (one, other))
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "method"), [(3, "lora")])  # two with all weights: Ray, below
def test_torchrun_gives_the_trajectory_of_one_process(
    train_spec: Make, good_texts: Path, tmp_path: Path, processes: int, method: str
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(good_texts.read_text() + "\nnot json")
    settings = {**SETTINGS, "method": method, "corpus": {"kind": "jsonl", "uri": str(texts)}}
    alone = train(train_spec(output=str(tmp_path / "alone"), **settings))
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(train_spec(output=str(tmp_path / "shared"), **settings)))
    curator = str(Path(sys.executable).parent / "curator")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--no-python",
        curator, "train-reference", str(spec),
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"torchrun takes any other status for a failure: {done.stderr[-3000:]}"
    assert done.stdout.count("good data: ") == 1, "one process speaks for all"
    shared = TrainResult.model_validate_json((tmp_path / "shared" / "training.json").read_bytes())
    assert shared.bad_rows == {"not_json": 1}
    assert (shared.processes, shared.steps, shared.trained_tokens) == (processes, alone.steps, alone.trained_tokens)
    assert shared.loss_before == pytest.approx(alone.loss_before, rel=1e-6)
    for here, there in zip(alone.evaluations, shared.evaluations, strict=True):
        assert (here.step, here.loss) == (there.step, pytest.approx(there.loss, rel=1e-4))
    assert_alike(tmp_path / "alone", tmp_path / "shared")
    assert not list(tmp_path.glob(".shared*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("relative", "message"),
    [
        ({"output": "reference"}, r"1 of 2 processes do not see '.*\.reference-training'.*storage that all"),
        ({"corpus": {"kind": "jsonl", "uri": "good.jsonl"}}, "1 of 2 processes read another good data than the main"),
    ],
    ids=["output", "data"],
)
def test_machines_that_see_other_files_are_refused(
    train_spec: Make, good_texts: Path, tmp_path: Path, relative: dict[str, Any], message: str
) -> None:
    for rank, texts in enumerate((good_texts.read_text(), good_texts.read_text() + '\n{"text": "And one more."}')):
        (tmp_path / f"machine-{rank}").mkdir()
        (tmp_path / f"machine-{rank}" / "good.jsonl").write_text(texts)
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(train_spec(max_steps=2, **relative)))
    curator = str(Path(sys.executable).parent / "curator")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python",
        "sh", "-c", f"cd {tmp_path}/machine-$RANK && exec {curator} train-reference {spec}",
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode != 0 and re.search(message, " ".join(done.stderr.split())), done.stderr[-3000:]
    assert not list(tmp_path.rglob(".reference*")), "nothing half-made is left behind"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.use_.*deprecated")  # Ray's own, when it copies its settings
def test_ray_train_gives_the_trajectory_of_one_process(train_spec: Make, tmp_path: Path, ray_cluster: None) -> None:
    run = {"workers": 2, "gpus_per_worker": 0}
    lines: list[str] = []
    alone = train(train_spec(output=str(tmp_path / "alone"), **SETTINGS))
    shared = train(train_spec(output=str(tmp_path / "shared"), run=run, **SETTINGS), lines)
    assert (shared.processes, shared.steps) == (2, alone.steps)
    assert sum(line.startswith("good data: ") for line in lines) == 1
    assert any(line.startswith("step 4: held-out loss") for line in lines)
    assert_alike(tmp_path / "alone", tmp_path / "shared")
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".shared")} == set()
    with pytest.raises(ClusterError, match=r"999 workers need 999 CPUs.*lower run\.workers"):
        train(train_spec(output=str(tmp_path / "more"), run={"workers": 999, "gpus_per_worker": 0}))


def test_a_taken_output_is_refused_before_any_worker_is_started(train_spec: Make, tmp_path: Path) -> None:
    import ray

    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "thesis.tex").write_text("years of work")
    before = ray.is_initialized()
    with pytest.raises(OutputError, match="already holds something else"):
        train(train_spec(run={"workers": 2, "gpus_per_worker": 0, "address": "no-such-host:1"}))
    assert {path.name for path in tmp_path.iterdir()} == {"reference"} and ray.is_initialized() == before


@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_worker_reports_its_error_and_raises_it_and_no_further_attempt_is_made(
    train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """Whoever waits for a worker that only reported would wait for ever; Ray ends the group when one raises."""
    monkeypatch.setenv("RANK", rank)
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "thesis.tex").write_text("years of work")
    mailbox: Queue[Any] = Queue()
    post = _Post(mailbox, Queue())
    given = {"spec": train_spec(), "folder": os.getcwd(), "post": post, "failed": str(tmp_path / "failed")}
    with pytest.raises(OutputError, match="already holds something else"):
        _work(given)
    kind, (sender, error) = mailbox.get_nowait()
    assert (kind, sender, type(error)) == ("error", int(rank), OutputError)
    with pytest.raises(TrainingError, match="an earlier attempt failed"):
        _work(given)
    assert mailbox.empty()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.use_.*deprecated")
def test_an_error_of_one_worker_ends_those_that_wait_for_it(
    train_spec: Make, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")

    def work(given: dict[str, Any]) -> None:
        import os
        from pathlib import Path

        from curator.training.reference.ray_train import _work

        starts = Path(given["spec"]["output"]).parent / f"start-{os.environ['RANK']}"
        assert not starts.exists(), "a further attempt"
        starts.touch()
        other = {**given["spec"], "output": str(taken)}
        _work(given if os.environ["RANK"] == "0" else {**given, "spec": other})

    monkeypatch.setattr(ray_train, "_work", work)
    monkeypatch.setattr(ray_train, "_FURTHER_ATTEMPTS", 50)  # each costs seconds: none is made
    with pytest.raises(OutputError, match="taken' already holds something else"):
        train(train_spec(run={"workers": 2, "gpus_per_worker": 0}))
    assert [path.name for path in taken.iterdir()] == ["thesis.tex"]
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "start-0", "start-1"}, "one attempt, nothing left"


def test_processes_that_were_started_are_not_started_again(train_spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"run\.workers is 3.*processes already"):
        train(train_spec(run={"workers": 3}))
