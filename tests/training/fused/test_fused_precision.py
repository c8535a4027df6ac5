"""What the fused losses round, how much memory they take, and what they refuse."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from curator.errors import TrainingError
from curator.scorers.head import Head
from curator.training import fused_selective_loss, fused_weighted_cross_entropy, head_losses, weighted_cross_entropy


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_rounds_factors_and_results_but_no_logits(oracle: ModuleType, dtype: torch.dtype) -> None:
    example = oracle.Example(4, 40, 64, 9000, seed=3)
    low = [part.detach().to(dtype).requires_grad_() for part in (example.hidden, example.weight, example.bias)]
    with torch.no_grad():
        for part, rounded in zip((example.hidden, example.weight, example.bias), low, strict=True):
            part.copy_(rounded)
    expected = oracle.expected_weighted(example, Head(example.weight, example.bias))
    loss = fused_weighted_cross_entropy(low[0], Head(low[1], low[2]), example.input_ids, example.token_weights)
    assert loss.dtype == torch.float32
    # Logits rounded to bfloat16 would be off by 0.06 each; the loss, a mean of 90 of them, by 1e-3 and more.
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    limit = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 2e-6}[dtype]
    found = torch.autograd.grad(loss, low)
    for gradient, wanted, part in zip(found, example.gradients(expected), low, strict=True):
        assert gradient.dtype == part.dtype
        assert relative(gradient, wanted) < limit


def test_chunks_of_a_half_precision_weight_gradient_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed in bfloat16, 2,000 chunks would lose most of what they add."""
    torch.manual_seed(0)
    hidden = torch.ones(1, 2001, 4, dtype=torch.bfloat16)
    weight = torch.zeros(5, 4, dtype=torch.bfloat16, requires_grad=True)
    monkeypatch.setitem(head_losses._CHUNK_ELEMENTS, "cpu", 5)
    input_ids, ones = torch.zeros(1, 2001, dtype=torch.int64), torch.ones(1, 2001)
    fused_weighted_cross_entropy(hidden, Head(weight), input_ids, ones, denominator=1.0).backward()
    expected = torch.full((5, 4), 400.0)
    expected[0] = -1600
    torch.testing.assert_close(weight.grad.float(), expected, rtol=5e-3, atol=0)


def test_under_autocast_the_factors_are_those_of_a_plain_head(oracle: ModuleType) -> None:
    example = oracle.Example(4, 30, 64, 500, seed=1)
    hidden, weight = (part.detach().float().requires_grad_() for part in (example.hidden, example.weight))
    rounded = Head(example.weight.detach().bfloat16().double().requires_grad_())
    example.hidden = example.hidden.detach().bfloat16().double().requires_grad_()
    expected = oracle.expected_weighted(example, rounded)
    wanted = torch.autograd.grad(expected, (example.hidden, rounded.weight_VH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused_weighted_cross_entropy(hidden, Head(weight), example.input_ids, example.token_weights)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    for gradient, value in zip(torch.autograd.grad(loss, (hidden, weight)), wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert relative(gradient, value) < 6e-3


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: Head(e.weight[:, :4]), r"the head's weight has shape \(11, 4\)"),
        (lambda e: Head(e.weight.detach().to(torch.int8)), "torch.int8"),
        (lambda e: Head(torch.empty(0, dtype=torch.float64)), "sharded"),
        (lambda e: Head(e.weight, first=3), "starts at token 3"),
        (lambda e: Head(e.weight.float()), "float64 for both or neither"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(oracle: ModuleType, change: Callable[[Any], Head], message: str) -> None:
    example = oracle.Example()
    with pytest.raises(TrainingError, match=message):
        fused_weighted_cross_entropy(example.hidden, change(example), example.input_ids, example.token_weights)
    with pytest.raises(TrainingError, match=message):
        fused_selective_loss(example.hidden, change(example), example.input_ids, example.reference, 0.5)


def test_what_the_plain_losses_refuse_is_refused(oracle: ModuleType) -> None:
    example = oracle.Example()
    head = Head(example.weight)
    with pytest.raises(TrainingError, match=r"keep=1\.5"):
        fused_selective_loss(example.hidden, head, example.input_ids, example.reference, 1.5)
    with pytest.raises(TrainingError, match="denominator"):
        fused_weighted_cross_entropy(example.hidden, head, example.input_ids, example.token_weights, denominator=0.0)
    with pytest.raises(TrainingError, match=r"token_weights has shape \(2, 7\), but hidden has shape \(3, 7, 5\)"):
        fused_weighted_cross_entropy(example.hidden, head, example.input_ids, example.token_weights[:2])
    with pytest.raises(TrainingError, match="11 at positions that count"):
        ids = torch.full_like(example.input_ids, 11)
        fused_weighted_cross_entropy(example.hidden, head, ids, torch.ones(3, 7))
    with pytest.raises(TrainingError, match="NaN, infinite or negative"):
        fused_weighted_cross_entropy(example.hidden, head, example.input_ids, -torch.ones(3, 7))


def test_fused_and_plain_agree_in_float32(oracle: ModuleType) -> None:
    example = oracle.Example(4, 33, 48, 700)
    hidden, weight = (part.detach().float().requires_grad_() for part in (example.hidden, example.weight))
    ours = fused_weighted_cross_entropy(hidden, Head(weight), example.input_ids, example.token_weights)
    plain = weighted_cross_entropy(hidden @ weight.T, example.input_ids, example.token_weights)
    torch.testing.assert_close(ours, plain, rtol=2e-6, atol=0)
    pairs = zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, plain)), strict=True)
    for found, expected in pairs:
        assert relative(found, expected.double()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "dtype", "keep"),
    [("weighted", "float32", 1.0), ("weighted", "bfloat16", 1.0), ("selective", "float32", 0.6)],
)
def test_peak_memory_at_a_large_vocabulary_is_below_a_quarter_of_the_naive_form(
    loss: str, dtype: str, keep: float
) -> None:
    script = Path(__file__).parents[3] / "benchmarks" / "losses.py"
    case = {"loss": loss, "vocabulary": 131_072, "dtype": dtype, "keep": keep}
    case |= {"hidden": 128, "tokens": 2048, "rounds": 0}
    found = {}
    for form in ("naive", "fused"):
        command = [sys.executable, str(script), "--case", json.dumps(case | {"form": form})]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout
        found[form] = json.loads(answer)
    assert found["fused"]["peak_bytes"] < found["naive"]["peak_bytes"] / 4
    assert found["fused"]["loss"] == pytest.approx(found["naive"]["loss"], rel=1e-5 if dtype == "float32" else 1e-2)
