"""The first optimiser step of every real trainer has the gradient of the definition, in float32 to 1e-6."""

import itertools
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from curator.training.objective import Objective

LIMIT = 1e-6
ADAPTERS = ("hf_trainer", "trl_sft", "lightning", "accelerate")
LAYOUTS = ("padded", "truncated", "packed", "split")
QUICK = ("split", 3)
TWO_RANKS = ("padded/logits", "split/logits", "split/fused")
FASTEST = ("accelerate", *(pytest.param(name, marks=pytest.mark.slow) for name in ADAPTERS[:-1]))


@pytest.fixture(scope="module")
def expected(drivers: ModuleType, oracle: ModuleType) -> Any:
    lengths = {"truncated": drivers.TRUNCATED, "split": drivers.SPLIT}

    @cache
    def compute(layout: str, hard: bool = False) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = oracle.gradients(
            drivers.make_model(), drivers.make_documents(hard), layout, lengths
        )
        return found

    return compute


@pytest.mark.parametrize(
    ("adapter", "layout", "accumulate"),
    [
        pytest.param(*case, marks=() if case[1:] == QUICK else pytest.mark.slow)
        for case in itertools.product(ADAPTERS, LAYOUTS, (1, 3))
    ],
)
def test_first_step(
    drivers: ModuleType, oracle: ModuleType, expected: Any, adapter: str, layout: str, accumulate: int
) -> None:
    rows = drivers.lay_out(drivers.make_documents(), layout)
    found = drivers.record(adapter, drivers.Task(rows, accumulate))
    assert oracle.difference(found, expected(layout)) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_two_ranks(tmp_path: Path, oracle: ModuleType, expected: Any, adapter: str) -> None:
    script, output = Path(__file__).parent / "drivers.py", tmp_path / "gradients.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, adapter, str(output), *TWO_RANKS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(output, weights_only=True)
    for case in TWO_RANKS:
        assert oracle.difference(found[case], expected(case.partition("/")[0])) < LIMIT, case


@pytest.mark.parametrize("adapter", FASTEST)
def test_hard_masks_work_through_labels_alone(
    drivers: ModuleType, oracle: ModuleType, expected: Any, adapter: str
) -> None:
    rows = [{n: row[n] for n in ("input_ids", "labels")} for row in drivers.make_documents(hard=True)]
    found = drivers.record(adapter, drivers.Task(rows, 3))
    assert oracle.difference(found, expected("padded", hard=True)) < LIMIT


@pytest.mark.parametrize("adapter", FASTEST)
def test_online_selection_is_exact_over_micro_batches(drivers: ModuleType, oracle: ModuleType, adapter: str) -> None:
    torch.manual_seed(0)  # the Trainers shuffle: all rows alike, so that every order gives the same micro-batches
    documents = drivers.make_documents()
    halves = [[documents[index]] * 6 for index in (1, 3)]
    rows = halves[0] + halves[1] if adapter in ("lightning", "accelerate") else halves[0] * 2
    batches = [rows[:6], rows[6:]]
    wanted = oracle.selected_gradients(drivers.make_model(), batches, 0.37)
    found = drivers.record(adapter, drivers.Task(rows, 2, Objective(keep=0.37)))
    assert oracle.difference(found, wanted) < LIMIT


@pytest.mark.parametrize("adapter", FASTEST)
def test_the_fused_loss_gives_the_same_step(
    drivers: ModuleType, oracle: ModuleType, expected: Any, adapter: str
) -> None:
    rows = drivers.lay_out(drivers.make_documents(), "split")
    found = drivers.record(adapter, drivers.Task(rows, 3, Objective(fused=True)))
    assert oracle.difference(found, expected("split")) < LIMIT


# ------------------------------------------------------------------------------------------------ TRL's own trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("padded", {}),
        ("truncated", {"max_length": 9}),
        ("padded", {"packing": True, "max_length": 24}),
        ("padded", {"padding_free": True, "max_length": None}),
    ],
)
def test_plain_sft_trainer_takes_hard_masks(
    drivers: ModuleType, oracle: ModuleType, expected: Any, layout: str, options: dict[str, Any]
) -> None:
    task = drivers.Task(drivers.make_documents(hard=True), 1)
    found = drivers.record("plain_sft", task, **options)
    assert oracle.difference(found, expected(layout, hard=True)) < LIMIT
