"""The fused losses against plain float64 autograd over full logits, written from the definitions."""

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curator.scorers.head import Head
from curator.training import fused_selective_loss, fused_weighted_cross_entropy, head_losses

HEADS = ("plain", "bias", "scale", "softcap")


def assert_same(example: Any, ours: Tensor, expected: Tensor) -> None:
    assert ours.dtype == torch.float64 and ours.dim() == 0
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-13)
    for found, wanted in zip(example.gradients(ours), example.gradients(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


@pytest.fixture
def three_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_losses._CHUNK_ELEMENTS, "cpu", 34)  # 3 rows of 11
    monkeypatch.setattr(head_losses, "_BLOCK_ELEMENTS", 25)  # 2 of them
    monkeypatch.setattr(head_losses, "_TILE_COLUMNS", 4)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.usefixtures("three_rows_at_a_time")
def test_loss_and_gradients_are_those_of_full_logits(oracle: ModuleType, name: str) -> None:
    example = oracle.Example()
    head = oracle.HEADS[name](example.weight, example.bias)
    ours = fused_weighted_cross_entropy(example.hidden, head, example.input_ids, example.token_weights)
    assert_same(example, ours, oracle.expected_weighted(example, head))
    for keep in (0.1, 0.5, 1.0):
        chosen = fused_selective_loss(example.hidden, head, example.input_ids, example.reference, keep)
        assert_same(example, chosen, oracle.expected_selective(example, head, keep))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 6), st.integers(1, 13), st.integers(0, 1000))
def test_any_size_of_batch_chunk_and_vocabulary(oracle: ModuleType, b: int, t: int, h: int, v: int, seed: int) -> None:
    example = oracle.Example(b, t, h, v, seed)
    head = Head(example.weight, example.bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head_losses._CHUNK_ELEMENTS, "cpu", 1 + seed % 40)
        patch.setattr(head_losses, "_BLOCK_ELEMENTS", 1 + seed % 17)
        ours = fused_weighted_cross_entropy(example.hidden, head, example.input_ids, example.token_weights)
        chosen = fused_selective_loss(example.hidden, head, example.input_ids, example.reference, 0.4)
    assert_same(example, ours, oracle.expected_weighted(example, head))
    assert_same(example, chosen, oracle.expected_selective(example, head, 0.4))


@pytest.mark.parametrize("name", ["softcap", *(pytest.param(name, marks=pytest.mark.slow) for name in HEADS[:-1])])
@pytest.mark.usefixtures("three_rows_at_a_time")
def test_the_gradient_agrees_with_finite_differences(oracle: ModuleType, name: str) -> None:
    example = oracle.Example()

    def weighted(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = oracle.HEADS[name](weight, bias)
        return fused_weighted_cross_entropy(hidden, head, example.input_ids, example.token_weights)

    def selective(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused_selective_loss(hidden, oracle.HEADS[name](weight, bias), example.input_ids, example.reference, 0.6)

    for loss in (weighted, selective):
        assert torch.autograd.gradcheck(loss, (example.hidden, example.weight, example.bias))


def test_a_tied_weight_gathers_both_gradients(oracle: ModuleType) -> None:
    example = oracle.Example()
    hidden = torch.nn.functional.embedding(example.input_ids, example.weight).tanh()
    head = Head(example.weight)
    ours = fused_weighted_cross_entropy(hidden, head, example.input_ids, example.token_weights)
    weights = example.token_weights[:, 1:]
    expected = (oracle.full_losses(hidden, head, example.input_ids) * weights).sum() / weights.sum()
    found = torch.autograd.grad(ours, example.weight, retain_graph=True)[0]
    torch.testing.assert_close(found, torch.autograd.grad(expected, example.weight)[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(oracle: ModuleType, frozen: str) -> None:
    example = oracle.Example()
    head = Head(example.weight, example.bias)
    expected_loss = oracle.expected_weighted(example, head)
    expected = dict(zip(("hidden", "weight", "bias"), example.gradients(expected_loss), strict=True))
    getattr(example, frozen).requires_grad_(False)
    fused_weighted_cross_entropy(example.hidden, head, example.input_ids, example.token_weights).backward()
    for name in ("hidden", "weight", "bias"):
        gradient = getattr(example, name).grad
        if name == frozen:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13)


def test_without_gradients_only_losses_are_computed(oracle: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    example = oracle.Example()
    head = Head(example.weight, example.bias)
    expected = oracle.expected_weighted(example, head)
    monkeypatch.delattr(head_losses._Chunks, "add_to_weight")
    monkeypatch.delattr(head_losses._Chunks, "to_hidden")
    with torch.no_grad():
        loss = fused_weighted_cross_entropy(example.hidden, head, example.input_ids, example.token_weights)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)


def test_only_rows_that_count_are_multiplied(oracle: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    example, rows = oracle.Example(4, 20), []
    monkeypatch.setattr(
        head_losses._Chunks,
        "_multiply",
        lambda chunks, states, out: (rows.append(len(states)), torch.mm(states, chunks._weight_VH.t(), out=out)),
    )
    fused_weighted_cross_entropy(example.hidden, Head(example.weight), example.input_ids, example.token_weights)
    assert sum(rows) == int((example.token_weights[:, 1:] > 0).sum()) < 4 * 19


def test_what_has_no_weight_leaks_nothing(oracle: ModuleType) -> None:
    example = oracle.Example()
    head = Head(example.weight, example.bias)
    example.token_weights[0, 3] = example.token_weights[1, 5] = 0
    example.reference[0, 3] = example.reference[1, 5] = float("nan")
    weighted, selected = oracle.expected_weighted(example, head), oracle.expected_selective(example, head, 0.5)
    wanted = [example.gradients(weighted), example.gradients(selected)]
    example.input_ids[0, 3], example.input_ids[1, 5] = 10**6, -100
    with torch.no_grad():
        example.hidden[0, 2], example.hidden[1, 4] = float("inf"), float("nan")
        example.hidden[:, -1] = float("nan")  # predicts nothing
    losses = [
        fused_weighted_cross_entropy(example.hidden, head, example.input_ids, example.token_weights),
        fused_selective_loss(example.hidden, head, example.input_ids, example.reference, 0.5),
    ]
    for loss, value, gradients in zip(losses, (weighted, selected), wanted, strict=True):
        torch.testing.assert_close(loss, value, rtol=1e-11, atol=1e-13)
        for found, expected in zip(example.gradients(loss), gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("denominator", [None, 3.0])
def test_no_weight_gives_zero_with_zero_gradient(oracle: ModuleType, denominator: float | None) -> None:
    example = oracle.Example()
    only_first = torch.zeros_like(example.token_weights)
    only_first[:, 0] = 5
    unscored = torch.full_like(example.reference, float("nan"))
    head = Head(example.weight, example.bias)
    for loss in (
        fused_weighted_cross_entropy(example.hidden, head, example.input_ids, only_first, denominator=denominator),
        fused_selective_loss(example.hidden, head, example.input_ids, unscored, 0.5, denominator=denominator),
    ):
        assert loss.item() == 0
        assert not any(gradient.any() for gradient in example.gradients(loss))


@pytest.mark.parametrize("split", [1, 2])
def test_a_global_denominator_makes_micro_batches_add_up(oracle: ModuleType, split: int) -> None:
    example = oracle.Example()
    head = Head(example.weight, example.bias)
    pieces = [slice(0, split), slice(split, 3)]
    weighted = sum(
        fused_weighted_cross_entropy(
            example.hidden[piece], head, example.input_ids[piece], example.token_weights[piece],
            denominator=example.token_weights[:, 1:].sum(),
        )
        for piece in pieces
    )  # fmt: skip
    assert_same(example, weighted, oracle.expected_weighted(example, head))
    chosen = sum(
        fused_selective_loss(
            example.hidden[piece], head, example.input_ids[piece], example.reference[piece], 1.0,
            denominator=int(example.reference[:, 1:].isfinite().sum()),
        )
        for piece in pieces
    )  # fmt: skip
    assert_same(example, chosen, oracle.expected_selective(example, head, 1.0))


def test_a_kept_graph_can_be_used_again(oracle: ModuleType) -> None:
    example = oracle.Example()
    head = Head(example.weight, example.bias)
    loss = fused_weighted_cross_entropy(example.hidden, head, example.input_ids, example.token_weights)
    parts = (example.hidden, example.weight, example.bias)
    first = torch.autograd.grad(loss * 3, parts, retain_graph=True)
    for once, thrice in zip(torch.autograd.grad(loss, parts), first, strict=True):
        torch.testing.assert_close(thrice, once * 3, rtol=1e-12, atol=0)
