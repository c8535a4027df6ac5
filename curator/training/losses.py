"""Losses that use a curated dataset: stored weights (soft or hard), and Rho-1's online selection.

Both are token-aligned, as every array here: index t concerns predicting token t, so `logits_BTV[:, t - 1]` predicts
`input_ids_BT[:, t]`. The losses do the shift; callers never do. Index 0 has no context and is always ignored.

Only the positions that count are touched: cross-entropy is computed in chunks of gathered rows, in float32 for half
precision logits and float64 for float64, and its backward recomputes a chunk at a time. So no full-size upcast copy
of the logits is made here, and a position with weight 0 cannot leak anything, not even an infinity. One may come from
outside: in mixed precision (`bf16=True`) accelerate, and with it the HF Trainer and TRL, turns all outputs of the model
to float32 before a loss sees them.

`curator.training.fused` has the same losses over hidden states, for which no full-size logits exist at all, so there
is nothing for accelerate to copy.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curator.training.counted import Counted, compute_dtype, divide, scored_rows, select_highest, weighted_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

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
        denominator: divide by this instead of the sum of weights; one finite number above 0.

    Returns:
        A scalar in nats: float64 for float64 logits, else float32. When the weights sum to 0 it is 0, and its
        gradient is zero everywhere.

    Raises:
        TrainingError: shapes that do not agree, weights that are NaN, infinite or negative, ids outside the vocabulary,
            or a denominator that is not one positive finite number.
    """
    rows = weighted_rows(logits, "logits", logits.shape[-1], input_ids, token_weights)
    total = (_token_losses(logits, rows) * rows.values_K).sum()
    return divide(total, denominator, rows.values_K.sum(), len(rows.index_K), "weight sum")


def selective_loss(
    logits: Tensor,
    input_ids: Tensor,
    ref_logprobs: Tensor,
    keep: float,
    *,
    denominator: Tensor | float | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """Online Selective Language Modeling: mean loss over the tokens with the highest excess loss in this batch.

    Rho-1 (Lin et al. 2024, arXiv:2404.07965, eq. 3-5): excess loss is the live model's loss minus the reference's,
    L_theta(x_t) - L_ref(x_t), where L_ref is minus the stored log-prob. The top `keep` share of the scored tokens of
    the batch is selected; ranking has no gradient.

    Under data parallelism each rank ranks its own batch, unless it gets a `group`: then the tokens of all its ranks
    are ranked together, whatever number each of them holds, and every rank's loss is its own part of the sum divided
    by the number selected on all of them. So the losses of the ranks add up to the loss of one big batch; a trainer
    that averages gradients over its ranks must multiply by their number. Every rank must make the call.

    Under accumulation each micro-batch is ranked for itself. Pass the same `denominator` to all of a step: the number
    selected in all its micro-batches, which is the sum of their round(keep * n), known from the data beforehand.

    Args:
        logits: shape (B, T, V) of the model being trained.
        input_ids: shape (B, T).
        ref_logprobs: log-probs under the reference model in nats, shape (B, T), token-aligned. NaN = not scored, never
            selected and not part of the population; index 0 is ignored.
        keep: share of the scored tokens to train on, in (0, 1].
        denominator: divide by this instead of the number selected; one finite number above 0.
        group: processes whose tokens are ranked together; None = this one's alone.

    Returns:
        A scalar in nats: the mean over the round(keep * n) selected of n scored tokens, ties going to the lower rank,
        then to the earlier token of the batch. 0 with zero gradient when none is selected.

    Raises:
        TrainingError: shapes that do not agree, a log-prob of +inf, `keep` outside (0, 1], ids outside the vocabulary,
            or a denominator that is not one positive finite number.
    """
    rows = scored_rows(logits, "logits", logits.shape[-1], input_ids, ref_logprobs)
    losses_K = _token_losses(logits, rows)
    chosen, count = select_highest(rows, keep, lambda _: losses_K, group)
    return divide(losses_K[chosen].sum(), denominator, count, len(chosen), "number of selected tokens")


# ------------------------------------------------------------------------------------------------ cross-entropy


def _token_losses(logits: Tensor, rows: Counted) -> Tensor:
    """Cross-entropy of the tokens that `rows` predict, shape (K,)."""
    losses: Tensor = _ChunkedCrossEntropy.apply(logits.flatten(0, 1), rows.index_K, rows.targets_K)  # type: ignore[no-untyped-call]
    return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of selected rows; keeps the logits, one logsumexp per row, and nothing else for backward."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, index_K: Tensor, targets_K: Tensor) -> Tensor:
        dtype = compute_dtype(logits_NV)
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
