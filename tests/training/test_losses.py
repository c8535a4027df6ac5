"""The losses against explicit float64 loops over the definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curator.errors import TrainingError
from curator.training import losses as losses_module
from curator.training import selective_loss, weighted_cross_entropy


def example(batch: int = 3, length: int = 7, vocabulary: int = 11, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, vocabulary, generator=generator, dtype=torch.float64) * 3
    input_ids = torch.randint(vocabulary, (batch, length), generator=generator)
    weights = torch.rand(batch, length, generator=generator) * (torch.rand(batch, length, generator=generator) > 0.4)
    return logits, input_ids, weights


def loss_of_token(logits: Tensor, input_ids: Tensor, b: int, t: int) -> float:
    row = logits.detach()[b, t - 1].tolist()
    top = max(row)
    return top + math.log(sum(math.exp(x - top) for x in row)) - row[int(input_ids[b, t])]


def weighted_loop(logits: Tensor, input_ids: Tensor, weights: Tensor) -> tuple[float, float]:
    """Sum of w * CE and sum of w over t >= 1, in Python floats."""
    total = weight_sum = 0.0
    for b in range(logits.shape[0]):
        for t in range(1, logits.shape[1]):
            weight = float(weights[b, t])
            weight_sum += weight
            if weight > 0:
                total += weight * loss_of_token(logits, input_ids, b, t)
    return total, weight_sum


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 13), st.integers(0, 1000))
def test_the_loss_is_the_weighted_mean_over_predicted_tokens(b: int, t: int, v: int, seed: int) -> None:
    logits, input_ids, weights = example(b, t, v, seed)
    total, weight_sum = weighted_loop(logits, input_ids, weights)
    loss = weighted_cross_entropy(logits, input_ids, weights)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(total / weight_sum if weight_sum else 0.0, abs=1e-12, rel=1e-12)


def test_the_gradient_agrees_with_finite_differences() -> None:
    logits, input_ids, weights = example()
    assert torch.autograd.gradcheck(
        lambda x: weighted_cross_entropy(x, input_ids, weights), logits.clone().requires_grad_()
    )
    reference = -torch.rand(input_ids.shape, dtype=torch.float64) * 5
    assert torch.autograd.gradcheck(
        lambda x: selective_loss(x, input_ids, reference, 0.6), logits.clone().requires_grad_()
    )


def test_chunks_do_not_change_loss_or_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, input_ids, weights = example(4, 9, 5)
    whole, parts = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = weighted_cross_entropy(whole, input_ids, weights)
    loss.backward()
    monkeypatch.setattr(losses_module, "_CHUNK_ELEMENTS", 15)  # three rows at a time
    chunked = weighted_cross_entropy(parts, input_ids, weights)
    chunked.backward()
    assert chunked.item() == pytest.approx(loss.item(), rel=1e-14)
    assert torch.allclose(whole.grad, parts.grad, rtol=1e-13, atol=1e-16)


def test_uniform_weights_give_torchs_own_cross_entropy_and_gradient() -> None:
    logits, input_ids, _ = example()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    weighted_cross_entropy(ours, input_ids, torch.ones(3, 7)).backward()
    torch.nn.functional.cross_entropy(theirs[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()).backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("split", [1, 2])
def test_a_global_denominator_makes_micro_batches_add_up(split: int) -> None:
    logits, input_ids, weights = example()
    whole, parts = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = weighted_cross_entropy(whole, input_ids, weights)
    loss.backward()
    denominator = weights[:, 1:].sum()
    pieces = [(parts[:split], input_ids[:split], weights[:split]), (parts[split:], input_ids[split:], weights[split:])]
    accumulated = [weighted_cross_entropy(*piece, denominator=denominator) for piece in pieces]
    sum(accumulated).backward()
    assert sum(accumulated).item() == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(whole.grad, parts.grad, rtol=1e-6)


def test_no_weight_gives_zero_with_zero_gradient() -> None:
    logits, input_ids, weights = example()
    logits.requires_grad_()
    only_first = torch.zeros_like(weights)
    only_first[:, 0] = 5.0
    for denominator in (None, 3.0):
        loss = weighted_cross_entropy(logits, input_ids, only_first, denominator=denominator)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None and not logits.grad.any()
        logits.grad = None


def test_what_has_no_weight_leaks_nothing() -> None:
    logits, input_ids, weights = example()
    weights[:, 3] = 0
    expected = weighted_cross_entropy(logits, input_ids, weights)
    poisoned, ids = logits.clone(), input_ids.clone()
    poisoned[0, 2], poisoned[1, 2], poisoned[2, 2] = float("nan"), float("inf"), float("-inf")
    poisoned[:, -1] = float("nan")
    ids[:, 3], ids[:, 0], weights[:, 0] = -100, 10**6, float("nan")
    poisoned.requires_grad_()
    loss = weighted_cross_entropy(poisoned, ids, weights)
    loss.backward()
    assert loss.item() == expected.item()
    assert poisoned.grad is not None and torch.isfinite(poisoned.grad).all()
    assert not poisoned.grad[:, 2].any() and not poisoned.grad[:, -1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    logits, input_ids, weights = example(vocabulary=500)
    half = logits.to(dtype).requires_grad_()
    total, weight_sum = weighted_loop(half.detach().double(), input_ids, weights)
    loss = weighted_cross_entropy(half, input_ids, weights)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(total / weight_sum, rel=1e-6)
    assert half.grad is not None and half.grad.dtype == dtype


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5])
def test_unusable_weights_are_refused(bad: float) -> None:
    logits, input_ids, weights = example()
    weights[1, 2] = bad
    with pytest.raises(TrainingError, match="token_weights"):
        weighted_cross_entropy(logits, input_ids, weights)


def test_shapes_that_disagree_are_named() -> None:
    logits, input_ids, weights = example()
    with pytest.raises(TrainingError, match=r"token_weights has shape \(3, 6\).*\(3, 7, 11\)"):
        weighted_cross_entropy(logits, input_ids, weights[:, 1:])
    with pytest.raises(TrainingError, match=r"input_ids has shape \(7,\)"):
        weighted_cross_entropy(logits, input_ids[0], weights)
    with pytest.raises(TrainingError, match=r"logits has shape \(7, 11\)"):
        weighted_cross_entropy(logits[0], input_ids[0], weights[0])
    with pytest.raises(TrainingError, match=r"ref_logprobs has shape \(2, 7\)"):
        selective_loss(logits, input_ids, weights[:2], 0.5)


@pytest.mark.parametrize("denominator", [0.0, -1.0, float("nan"), float("inf")])
def test_a_denominator_that_cannot_be_a_weight_sum_is_refused(denominator: float) -> None:
    with pytest.raises(TrainingError, match="denominator"):
        weighted_cross_entropy(*example(), denominator=denominator)


def test_a_denominator_is_one_number() -> None:
    expected = weighted_cross_entropy(*example(), denominator=3.0)
    for shape in ((), (1,), (1, 1)):
        assert weighted_cross_entropy(*example(), denominator=torch.full(shape, 3.0)) == expected
    with pytest.raises(TrainingError, match=r"denominator has shape \(2,\); pass one number: the weight sum"):
        weighted_cross_entropy(*example(), denominator=torch.ones(2))


def test_an_infinite_reference_is_not_selected_first() -> None:
    logits, input_ids, weights = example()
    reference = torch.zeros_like(weights)
    reference[0, 1] = float("inf")
    with pytest.raises(TrainingError, match=r"ref_logprobs holds \+inf.*NaN says not scored"):
        selective_loss(logits, input_ids, reference, 0.5)


def test_ids_outside_the_vocabulary_are_named_where_they_count() -> None:
    logits, input_ids, _ = example()
    input_ids[0, 4] = 11
    with pytest.raises(TrainingError, match=r"11 at positions that count"):
        weighted_cross_entropy(logits, input_ids, torch.ones(3, 7))


def selective_loop(logits: Tensor, input_ids: Tensor, reference: Tensor, keep: float) -> float:
    """Rho-1 eq. 3-5 by sorting Python tuples; ties go to the earlier token."""
    scored = []
    for b in range(logits.shape[0]):
        for t in range(1, logits.shape[1]):
            if not math.isnan(float(reference[b, t])):
                loss = loss_of_token(logits, input_ids, b, t)
                scored.append((-(loss + float(reference[b, t])), len(scored), loss))
    chosen = sorted(scored)[: round(keep * len(scored))]
    return sum(loss for _, _, loss in chosen) / len(chosen) if chosen else 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_selective_loss_is_the_mean_over_the_highest_excess(b: int, t: int, keep: float, seed: int) -> None:
    logits, input_ids, _ = example(b, t, 8, seed)
    generator = torch.Generator().manual_seed(seed)
    reference = -torch.rand(b, t, generator=generator, dtype=torch.float64) * 6
    reference[torch.rand(b, t, generator=generator) < 0.3] = float("nan")
    loss = selective_loss(logits.requires_grad_(), input_ids, reference, keep)
    loss.backward()
    assert loss.item() == pytest.approx(selective_loop(logits, input_ids, reference, keep), rel=1e-10, abs=1e-12)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_ties_go_to_the_earlier_token_and_unselected_tokens_get_no_gradient() -> None:
    logits = torch.zeros(2, 5, 4, dtype=torch.float64, requires_grad=True)
    loss = selective_loss(logits, torch.zeros(2, 5, dtype=torch.int64), torch.full((2, 5), -1.0), 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4))
    assert logits.grad is not None
    assert logits.grad.abs().sum(2).gt(0).tolist() == [[True, True, True, True, False], [False] * 5]


def test_selection_follows_the_live_model_not_the_reference_alone() -> None:
    logits, input_ids, _ = example(1, 5, 4)
    known = torch.full((1, 5, 4), -20.0, dtype=torch.float64)
    known[0, :-1].scatter_(1, input_ids[0, 1:, None], 20.0)  # the live model is sure of every token
    known[0, 2] = logits[0, 2]  # but of the third
    known.requires_grad_()
    selective_loss(known, input_ids, torch.full((1, 5), -0.1), 0.25).backward()
    assert known.grad is not None
    assert known.grad.abs().sum(2)[0].gt(1e-6).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
def test_a_keep_that_is_no_share_is_refused(keep: float) -> None:
    logits, input_ids, weights = example()
    with pytest.raises(TrainingError, match="keep"):
        selective_loss(logits, input_ids, weights, keep)


def test_a_denominator_makes_selections_of_micro_batches_add_up() -> None:
    logits, input_ids, _ = example(4, 9)
    reference = -torch.rand(4, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 5
    pieces = [slice(0, 1), slice(1, 4)]
    counts = [round(0.3 * 8), round(0.3 * 24)]
    parts = [
        selective_loss(logits[piece], input_ids[piece], reference[piece], 0.3, denominator=sum(counts))
        for piece in pieces
    ]
    expected = sum(
        selective_loop(logits[piece], input_ids[piece], reference[piece], 0.3) * count
        for piece, count in zip(pieces, counts, strict=True)
    )
    assert sum(parts).item() == pytest.approx(expected / sum(counts), rel=1e-12)
    with pytest.raises(TrainingError, match="number of selected tokens"):
        selective_loss(logits, input_ids, reference, 0.3, denominator=0)


def test_nothing_scored_gives_zero_with_zero_gradient() -> None:
    logits, input_ids, weights = example()
    logits.requires_grad_()
    loss = selective_loss(logits, input_ids, torch.full_like(weights, float("nan")), 0.6)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()
