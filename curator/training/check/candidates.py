"""What a trainer's first step may have followed: the right gradient, and that of every known way to get it wrong.

Each candidate is the gradient of sum(c * -log p(target | context)) over pairs of a position and the token that it is
said to predict; they differ in the pairs, in their coefficients c, and in what rows are divided by. Computed in
float64, one row at a time, from the definition: nothing here is shared with this package's losses and collators.

Shapes: P parameters laid end to end, R rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CORRECT, SMOOTHED = "correct", "label smoothing"
_SMOOTHINGS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Close enough together that any between them is nearer to one of them than to none at all."""


@dataclass(frozen=True)
class Row:
    """A row of the canary: ids and weights, each of shape (T,)."""

    ids: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Candidate:
    """A gradient that a step may have followed.

    Attributes:
        name: the kind of fault, or `correct`.
        says: what the trainer would have done, as a clause.
        gradient_P: float64, of any scale.
    """

    name: str
    says: str
    gradient_P: Tensor


Pairs = list[tuple[int, int, float]]
"""Position, index of the token that it predicts, coefficient."""


def _shifted(weights: Tensor) -> Pairs:
    return [(t - 1, t, float(weights[t])) for t in range(1, len(weights))]


def _not_shifted(weights: Tensor) -> Pairs:
    return [(t, t, float(weights[t])) for t in range(len(weights))]


def _shifted_twice(weights: Tensor) -> Pairs:
    return [(t - 2, t, float(weights[t])) for t in range(2, len(weights))]


def _weights_late(weights: Tensor) -> Pairs:
    return [(t - 1, t, float(weights[t - 1])) for t in range(1, len(weights))]


def _weights_late_wrapped(weights: Tensor) -> Pairs:
    return [*_weights_late(weights), (len(weights) - 1, 0, float(weights[-1]))]


def _weights_early(weights: Tensor) -> Pairs:
    return [(t - 1, t, float(weights[t + 1])) for t in range(1, len(weights) - 1)]


def _first_too(weights: Tensor) -> Pairs:
    return [*_shifted(weights), (len(weights) - 1, 0, 1.0)]


@dataclass(frozen=True)
class _Fault:
    name: str
    says: str
    weigh: Callable[[Tensor], Tensor] = lambda weights: weights
    pair: Callable[[Tensor], Pairs] = _shifted


def _ones(weights: Tensor) -> Tensor:
    return torch.ones_like(weights)


def _mask(weights: Tensor) -> Tensor:
    return (weights > 0).to(weights)


def _instead_of_zero(weights: Tensor, least: float) -> Tensor:
    return torch.where(weights == 0, least, weights)


_FAULTS = (
    _Fault(CORRECT, "each token counts by its weight"),
    _Fault("weights ignored", "every token counts the same: the weights do not reach the loss", _ones),
    _Fault("hard instead of soft", "every kept token counts the same: weights became a mask", _mask),
    _Fault("weights cast to integers", "weights lost their fractions", torch.trunc),
    _Fault("weights cast to integers", "weights were rounded to integers", torch.round),
    _Fault("weights in bf16", "weights were rounded to bfloat16", lambda weights: weights.bfloat16().to(weights)),
    _Fault("dropped tokens learned", "tokens of weight 0 count 0.1", lambda w: _instead_of_zero(w, 0.1)),
    _Fault("dropped tokens learned", "tokens of weight 0 count 0.3", lambda w: _instead_of_zero(w, 0.3)),
    _Fault("weights inverted", "the tokens of weight 0 are the ones that are learned", lambda w: (w == 0).to(w)),
    _Fault("not shifted", "each position learns its own token: nobody shifted the labels", pair=_not_shifted),
    _Fault("not shifted", "each position learns its own token, and weights are ignored", _ones, _not_shifted),
    _Fault("not shifted", "each position learns its own token, and weights became a mask", _mask, _not_shifted),
    _Fault("shifted twice", "each position learns the token after the next: two shifts", pair=_shifted_twice),
    _Fault("shifted twice", "labels are shifted twice, and weights are ignored", _ones, _shifted_twice),
    _Fault("shifted twice", "labels are shifted twice, and weights became a mask", _mask, _shifted_twice),
    _Fault("weights not shifted", "labels are shifted but weights are not: each token has its left neighbour's weight",
           pair=_weights_late),
    _Fault("wrap-around", "weights are not shifted, and a row's end learns its beginning (roll instead of shift)",
           pair=_weights_late_wrapped),
    _Fault("wrap-around", "a row's end learns its beginning (roll instead of shift)", pair=_first_too),
    _Fault("wrap-around", "a row's end learns its beginning, and weights are ignored", _ones, _first_too),
    _Fault("weights shifted twice", "each token has its right neighbour's weight", pair=_weights_early),
)  # fmt: skip


def make_candidates(model: Any, rows: list[Row], end_id: int, padding_id: int) -> list[Candidate]:
    """All candidates, the right one first; faults that change nothing are left out (hard weights have fewer of them).

    Args:
        model: the canary's model before training, in float64.
        rows: the canary's rows.
        end_id: token that trainers add at either end of a row.
        padding_id: token that they pad with.
    """
    correct, *faults = _all(model, rows, end_id, padding_id)
    return [correct, *(fault for fault in faults if _differs(fault.gradient_P, correct.gradient_P))]


def _differs(fault_P: Tensor, correct_P: Tensor) -> bool:
    norms = float(fault_P.norm() * correct_P.norm())
    return norms > 0 and float(fault_P @ correct_P) < norms * (1 - 1e-12)


def _all(model: Any, rows: list[Row], end_id: int, padding_id: int) -> Iterator[Candidate]:
    correct_P: Tensor | None = None
    for fault in _FAULTS:
        parts_RP = torch.stack([_gradient(model, row.ids, fault.pair(fault.weigh(row.weights))) for row in rows])
        whole_P = parts_RP.sum(0)
        yield Candidate(fault.name, fault.says, whole_P)
        combines = fault.pair is _shifted and fault.weigh in (_FAULTS[0].weigh, _ones, _mask)
        if combines and (correct_P is None or _differs(whole_P, correct_P)):  # hard weights are a mask already
            yield from _divided_apart(fault, parts_RP, rows)
            yield from _smoothed(fault, whole_P, model, rows)
        correct_P = whole_P if correct_P is None else correct_P
    yield from _with_added_tokens(model, rows, end_id, padding_id)
    ids = torch.cat([row.ids for row in rows])
    pairs = _shifted(torch.cat([row.weights for row in rows]))
    yield Candidate("documents see each other", "rows are packed without a boundary", _gradient(model, ids, pairs))


def _divided_apart(fault: _Fault, parts_RP: Tensor, rows: list[Row]) -> Iterator[Candidate]:
    """Means of the means of groups of rows, for every way to put the rows into groups."""
    weights = [fault.weigh(row.weights)[1:] for row in rows]
    sums_R = torch.stack([w.sum() for w in weights])
    counts_R = torch.stack([(w > 0).sum() for w in weights]).to(sums_R)
    lengths_R = torch.tensor([float(len(w)) for w in weights]).to(sums_R)
    tail = "" if fault.name == CORRECT else f"; besides, {fault.says}"
    kinds = {"kept tokens": counts_R}
    if fault.name == CORRECT:
        kinds |= {"weights": sums_R, "tokens": lengths_R}
        says = "the weights of each row were divided by their mean"
        yield Candidate("normalised row by row", says, (lengths_R / sums_R) @ parts_RP)
    for groups in _partitions(list(range(len(rows)))):
        if len(groups) == 1:
            continue
        for what, amounts_R in kinds.items():
            share_R = torch.zeros_like(sums_R)
            for group in groups:
                share_R[group] = 1 / amounts_R[group].sum()
            says = f"{len(groups)} micro-batches were each divided by their own number of {what}{tail}"
            yield Candidate("per-micro-batch mean", says, share_R @ parts_RP)


def _smoothed(fault: _Fault, gradient_P: Tensor, model: Any, rows: list[Row]) -> Iterator[Candidate]:
    """A part of each token's weight goes to all tokens of the vocabulary alike."""
    spread_P = torch.stack([_spread_gradient(model, row.ids, fault.weigh(row.weights)) for row in rows]).sum(0)
    for share in _SMOOTHINGS:
        says = f"targets are smoothed by about {share:g}"
        name, tail = (SMOOTHED, "") if fault.name == CORRECT else (fault.name, f"; besides, {fault.says}")
        yield Candidate(name, says + tail, (1 - share) * gradient_P + share * spread_P)


def _partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Every way to put items into groups."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for groups in _partitions(rest):
        yield [[first], *groups]
        for index in range(len(groups)):
            yield [*groups[:index], [first, *groups[index]], *groups[index + 1 :]]


def _with_added_tokens(model: Any, rows: list[Row], end_id: int, padding_id: int) -> Iterator[Candidate]:
    """Faults that learn tokens which are not in the dataset, with our weights and with none."""
    width = max(len(row.ids) for row in rows)
    for weigh, tail in ((_FAULTS[0].weigh, ""), (_ones, ", and weights are ignored")):
        for name, before, after in (
            ("first token trained", [end_id], None),
            ("end token trained", [], [end_id]),
            ("padding trained", [], [padding_id]),
            ("padding trained", [], [end_id]),
        ):
            total_P: Tensor | None = None
            for row in rows:
                count = 0 if after is None else (width - len(row.ids) if name == "padding trained" else 1)
                added = (after or [0]) * count
                ids = torch.cat([torch.tensor(before).to(row.ids), row.ids, torch.tensor(added).to(row.ids)])
                weights = weigh(row.weights)
                if before:
                    weights = torch.cat([torch.zeros(1).to(weights), torch.ones(1).to(weights), weights[1:]])
                weights = torch.cat([weights, torch.ones(len(added)).to(weights)])
                part_P = _gradient(model, ids, _shifted(weights))
                total_P = part_P if total_P is None else total_P + part_P
            assert total_P is not None
            says = {
                "first token trained": "a token was put before each row, and the row's first token is learned",
                "end token trained": "a token was put behind each row, and it is learned",
                "padding trained": f"padding (token {after and after[0]}) is learned",
            }[name]
            yield Candidate(name, says + tail, total_P)


def _gradient(model: Any, ids: Tensor, pairs: Pairs) -> Tensor:
    """Gradient of sum(c * -log p) over pairs, all parameters laid end to end."""
    logprobs = _logprobs(model, ids)
    total = torch.zeros((), dtype=logprobs.dtype)
    for position, token, coefficient in pairs:
        if coefficient:
            total = total - coefficient * logprobs[position, ids[token]]
    return _gradient_of(total, model)


def _spread_gradient(model: Any, ids: Tensor, weights: Tensor) -> Tensor:
    """The same where every position learns all tokens alike."""
    logprobs = _logprobs(model, ids)
    return _gradient_of(-(logprobs[:-1].mean(-1) * weights[1:]).sum(), model)


def _logprobs(model: Any, ids: Tensor) -> Tensor:
    model.zero_grad()
    logprobs: Tensor = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
    return logprobs


def _gradient_of(total: Tensor, model: Any) -> Tensor:
    if total.requires_grad:
        torch.autograd.backward(total)
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    ).detach()
