"""Every known way to get token weights wrong is built into every adapter, and the parity check catches it.

A check that passes is worth as much as the faults it would have seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from curator.training.objective import Objective

LIMIT = 1e-6
MICRO_BATCHES = 3
OTHERS = ("hf_trainer", "trl_sft", "lightning")
ADAPTERS = ("accelerate", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS))


@dataclass(frozen=True)
class Mutant(Objective):
    """An objective whose loss pairs logits, targets and weights in its own way."""

    pair: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    per_micro_batch: bool = False

    def loss(self, model: Any, batch: Any, denominator: Any = None) -> tuple[Tensor, Any]:
        taken = {n: v for n, v in batch.items() if n in ("input_ids", "attention_mask", "position_ids")}
        outputs = model(**taken, use_cache=False)
        assert self.pair is not None
        logits, targets, weights = self.pair(outputs.logits, batch["input_ids"], batch["token_weights"].float())
        losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        total = (losses * weights.flatten()).sum()
        if self.per_micro_batch:  # each micro-batch is an equal part of the step, whatever it weighs
            return total / weights.sum().clamp(min=1e-6) / MICRO_BATCHES, outputs
        return total / denominator, outputs

    def amount(self, batch: Any) -> Tensor:
        if self.per_micro_batch:  # Lightning divides by the sum of these
            return torch.tensor(1.0 / MICRO_BATCHES)
        return super().amount(batch)


def shifted(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return logits[:, :-1], ids[:, 1:], weights[:, 1:]


def not_shifted(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return logits, ids, weights


def shifted_twice(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return logits[:, :-2], ids[:, 2:], weights[:, 2:]


def wrapped_around(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return logits, ids.roll(-1, 1), weights.roll(-1, 1)


def cast_to_integers(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return shifted(logits, ids, weights.int().float())


def cast_to_bfloat16(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return shifted(logits, ids, weights.bfloat16().float())


MUTANTS = {
    "no shift": Mutant(pair=not_shifted),
    "double shift": Mutant(pair=shifted_twice),
    "wrap-around": Mutant(pair=wrapped_around),
    "per-micro-batch mean": Mutant(pair=shifted, per_micro_batch=True),
    "int-cast weights": Mutant(pair=cast_to_integers),
    "bf16 weights": Mutant(pair=cast_to_bfloat16),
}


@pytest.fixture(scope="module")
def check(drivers: ModuleType, oracle: ModuleType) -> Callable[..., float]:
    """Relative difference of an adapter's gradients to the oracle's, for rows padded in three micro-batches."""
    documents = drivers.make_documents()
    expected = oracle.gradients(drivers.make_model(), documents, "padded", {})

    def run(adapter: str, **task: Any) -> float:
        return float(oracle.difference(drivers.record(adapter, drivers.Task(documents, 3, **task)), expected))

    return run


def test_the_unmutated_copy_passes(check: Callable[..., float]) -> None:
    assert check("accelerate", objective=Mutant(pair=shifted)) < LIMIT


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_known_fault_of_the_loss_is_caught(check: Callable[..., float], adapter: str, name: str) -> None:
    assert check(adapter, objective=MUTANTS[name]) > 100 * LIMIT


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_dropped_weights_are_caught(check: Callable[..., float], adapter: str) -> None:
    assert check(adapter, drop_columns=True) > 100 * LIMIT


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_documents_that_see_each_other_are_caught(drivers: ModuleType, oracle: ModuleType, adapter: str) -> None:
    documents = drivers.make_documents()
    rows = [{n: v for n, v in row.items() if n != "position_ids"} for row in drivers.lay_out(documents, "packed")]
    expected = oracle.gradients(drivers.make_model(), documents, "padded", {})
    assert oracle.difference(drivers.record(adapter, drivers.Task(rows)), expected) > 100 * LIMIT
