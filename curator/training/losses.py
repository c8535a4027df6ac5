"""Losses that use a curated dataset: stored weights (soft or hard), and Rho-1's online selection.

Both are token-aligned, as every array here: index t concerns predicting token t, so `logits_BTV[:, t - 1]` predicts
`input_ids_BT[:, t]`. The losses do the shift; callers never do. Index 0 has no context and is always ignored.

Only the positions that count are touched: cross-entropy is computed in chunks of gathered rows, in float32 for half
precision logits and float64 for float64, and its backward recomputes a chunk at a time. So no full-size upcast copy
of the logits ever exists, and a position with weight 0 cannot leak anything, not even an infinity.
"""

from typing import Any

import torch
from torch import Tensor

from curator.errors import TrainingError

_CHUNK_ELEMENTS = 1 << 24
"""Logits upcast at a time: 64 MiB in float32."""


def weighted_cross_entropy(
    logits: Tensor, input_ids: Tensor, token_weights: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Weighted mean cross-entropy: sum over t >= 1 of w_t * CE_t, divided by the sum of those w_t.

    Under gradient accumulation or data parallelism pass the same `denominator` to every micro-batch: the weight sum of
    the whole step (all ranks, all micro-batches, t >= 1). The parts then add up to exactly the loss of one big batch.
    A trainer that averages gradients over its ranks needs the loss multiplied by their number.

    Args:
        logits: shape (B, T, V), any floating type; row t predicts token t + 1.
        input_ids: shape (B, T); ids at positions of weight 0 are never looked at.
        token_weights: shape (B, T), finite and not negative; index 0 is ignored. They receive no gradient.
        denominator: divide by this instead of the sum of weights.

    Returns:
        A scalar in nats: float64 for float64 logits, else float32. When the weights sum to 0 it is 0, and its
        gradient is zero everywhere.

    Raises:
        TrainingError: shapes that do not agree, weights that are NaN, infinite or negative, ids outside the vocabulary,
            or a denominator that is not positive.
    """
    _check_shapes(logits, input_ids, token_weights=token_weights)
    weights = _next(token_weights.detach().to(logits.device), 0.0).to(_compute_dtype(logits))
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise TrainingError(
            "token_weights holds NaN, infinite or negative values at t >= 1; weights are finite and at least 0, "
            "and a token without a score has weight 0"
        )
    index = weights.nonzero().squeeze(1)
    weights = weights[index]
    losses = _token_losses(logits, input_ids, index)
    return (losses * weights).sum() / _divisor(denominator, weights)


def selective_loss(logits: Tensor, input_ids: Tensor, ref_logprobs: Tensor, keep: float) -> Tensor:
    """Online Selective Language Modeling: mean loss over the tokens with the highest excess loss in this batch.

    Rho-1 (Lin et al. 2024, arXiv:2404.07965, eq. 3-5): excess loss is the live model's loss minus the reference's,
    L_theta(x_t) - L_ref(x_t), where L_ref is minus the stored log-prob. The top `keep` share of the scored tokens of
    the batch is selected; ranking has no gradient. Under data parallelism each rank ranks its own batch.

    Args:
        logits: shape (B, T, V) of the model being trained.
        input_ids: shape (B, T).
        ref_logprobs: log-probs under the reference model in nats, shape (B, T), token-aligned. NaN = not scored, never
            selected and not part of the population; index 0 is ignored.
        keep: share of the scored tokens to train on, in (0, 1].

    Returns:
        A scalar in nats: the mean over the round(keep * n) selected of n scored tokens, ties going to the earlier
        token of the batch. 0 with zero gradient when none is selected.

    Raises:
        TrainingError: shapes that do not agree, `keep` outside (0, 1], or ids outside the vocabulary.
    """
    _check_shapes(logits, input_ids, ref_logprobs=ref_logprobs)
    if not 0 < keep <= 1:
        raise TrainingError(f"keep={keep} is not a share; use a value above 0 and at most 1, such as 0.6")
    reference = _next(ref_logprobs.detach().to(logits.device), float("nan")).to(_compute_dtype(logits))
    index = (~torch.isnan(reference)).nonzero().squeeze(1)
    losses = _token_losses(logits, input_ids, index)
    excess = losses.detach() + reference[index]
    count = round(keep * len(index))
    selected = torch.sort(excess, descending=True, stable=True).indices[:count]
    return losses[selected].sum() / max(count, 1)


# ------------------------------------------------------------------------------------------------ checks


def _check_shapes(logits: Tensor, input_ids: Tensor, **others: Tensor) -> None:
    if logits.dim() != 3 or not logits.is_floating_point():
        raise TrainingError(f"logits has shape {tuple(logits.shape)} and {logits.dtype}; expected floats (B, T, V)")
    if input_ids.is_floating_point() or input_ids.is_complex():
        raise TrainingError(f"input_ids is {input_ids.dtype}; token ids are integers")
    for name, tensor in {"input_ids": input_ids, **others}.items():
        if tensor.shape != logits.shape[:2]:
            raise TrainingError(
                f"{name} has shape {tuple(tensor.shape)}, but logits has shape {tuple(logits.shape)}: its first two "
                "sizes (B, T) must agree. Do not shift: the loss does it"
            )


def _divisor(denominator: Tensor | float | None, weights: Tensor) -> Tensor:
    """What to divide by: 1 where there is nothing to divide, so that the loss is 0 and keeps its graph."""
    if len(weights) == 0:
        return torch.ones((), dtype=weights.dtype, device=weights.device)
    if denominator is None:
        return weights.sum()
    divisor = torch.as_tensor(denominator, dtype=weights.dtype, device=weights.device).detach()
    if divisor.dim() != 0 or not bool(divisor > 0):
        raise TrainingError(
            f"denominator={denominator} with kept tokens in the batch; pass the weight sum (t >= 1) of the whole step"
        )
    return divisor


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _next(values_BT: Tensor, filler: float) -> Tensor:
    """Move token-aligned values onto the logits that predict them: flat (B*T,), `filler` behind each last token."""
    shifted = torch.full_like(values_BT, filler)
    shifted[:, :-1] = values_BT[:, 1:]
    return shifted.flatten()


# ------------------------------------------------------------------------------------------------ cross-entropy


def _token_losses(logits: Tensor, input_ids: Tensor, index_K: Tensor) -> Tensor:
    """Cross-entropy of the tokens that the rows `index_K` of the flattened logits predict, shape (K,)."""
    vocabulary = logits.shape[2]
    targets_K = _next(input_ids.to(logits.device, torch.int64), 0)[index_K]
    if bool(((targets_K < 0) | (targets_K >= vocabulary)).any()):
        raise TrainingError(
            f"input_ids holds {int(targets_K.min())}..{int(targets_K.max())} at positions that count, outside the "
            f"{vocabulary} ids of the logits; model and dataset have different tokenizers, or padding has weight"
        )
    losses: Tensor = _ChunkedCrossEntropy.apply(logits.flatten(0, 1), index_K, targets_K)  # type: ignore[no-untyped-call]
    return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of selected rows; keeps the logits, one logsumexp per row, and nothing else for backward."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, index_K: Tensor, targets_K: Tensor) -> Tensor:
        dtype = _compute_dtype(logits_NV)
        normaliser_K = torch.empty(len(index_K), dtype=dtype, device=logits_NV.device)
        losses_K = torch.empty_like(normaliser_K)
        for part in _chunks(logits_NV, len(index_K)):
            rows = logits_NV[index_K[part]].to(dtype)
            normaliser_K[part] = torch.logsumexp(rows, dim=1)
            losses_K[part] = normaliser_K[part] - rows.gather(1, targets_K[part, None]).squeeze(1)
        ctx.save_for_backward(logits_NV, index_K, targets_K, normaliser_K)
        return losses_K

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, index_K, targets_K, normaliser_K = ctx.saved_tensors
        used = gradients[0].nonzero().squeeze(1)
        gradient_K, index_K, targets_K, normaliser_K = (
            values[used] for values in (gradients[0], index_K, targets_K, normaliser_K)
        )
        gradient_NV = torch.zeros_like(logits_NV)
        for part in _chunks(logits_NV, len(index_K)):
            rows = logits_NV[index_K[part]].to(normaliser_K.dtype)
            rows = torch.exp(rows - normaliser_K[part, None])
            rows.scatter_add_(1, targets_K[part, None], torch.full_like(rows[:, :1], -1))
            gradient_NV[index_K[part]] = (rows * gradient_K[part, None]).to(gradient_NV.dtype)
        return gradient_NV, None, None


def _chunks(logits_NV: Tensor, count: int) -> list[slice]:
    step = max(1, _CHUNK_ELEMENTS // max(1, logits_NV.shape[1]))
    return [slice(start, start + step) for start in range(0, count, step)]
