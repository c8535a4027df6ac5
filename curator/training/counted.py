"""Which positions of a batch count, and what their loss is divided by: shared by the plain and the fused losses.

Everything here is token-aligned (index t concerns predicting token t) until it leaves as `Counted`, whose `index_K`
names rows of the flattened (B*T) logits or hidden states: the row before each token. The shift happens here only.

    B   sequences     T   positions     N   B*T rows     K   rows that count
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curator.errors import TrainingError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Counted:
    """The rows that count, what each predicts, and its weight or its reference's log-prob."""

    index_K: Tensor
    targets_K: Tensor
    values_K: Tensor

    def take(self, chosen: Tensor) -> "Counted":
        """The same for some of them."""
        return Counted(self.index_K[chosen], self.targets_K[chosen], self.values_K[chosen])


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """What losses are computed in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def weighted_rows(states: Tensor, name: str, vocabulary: int, input_ids: Tensor, token_weights: Tensor) -> Counted:
    """The rows whose token has weight above 0. `states` are logits or hidden states, called `name` in errors."""
    _check_shapes(states, name, input_ids, token_weights=token_weights)
    weights_N = _next(token_weights.detach().to(states.device), 0.0).to(compute_dtype(states))
    if not bool((torch.isfinite(weights_N) & (weights_N >= 0)).all()):
        raise TrainingError(
            "token_weights holds NaN, infinite or negative values at t >= 1; weights are finite and at least 0, "
            "and a token without a score has weight 0"
        )
    return _gather(weights_N, weights_N > 0, input_ids, vocabulary)


def scored_rows(states: Tensor, name: str, vocabulary: int, input_ids: Tensor, ref_logprobs: Tensor) -> Counted:
    """The rows whose token the reference has scored."""
    _check_shapes(states, name, input_ids, ref_logprobs=ref_logprobs)
    reference_N = _next(ref_logprobs.detach().to(states.device), float("nan")).to(compute_dtype(states))
    if bool(torch.isposinf(reference_N).any()):
        raise TrainingError(
            "ref_logprobs holds +inf at t >= 1, which would rank first; log-probs are at most 0, NaN says not scored"
        )
    return _gather(reference_N, ~torch.isnan(reference_N), input_ids, vocabulary)


def divide(total: Tensor, denominator: Tensor | float | None, own: Tensor | float, rows: int, unit: str) -> Tensor:
    """`total / denominator`, or by `own` where there is none.

    `rows` is how many rows count here: with none of them nothing is divided, so that the loss is 0 and keeps its graph.
    """
    if rows == 0:
        return total
    if denominator is None:
        return total / own
    divisor = torch.as_tensor(denominator, dtype=total.dtype, device=total.device).detach()
    if divisor.numel() != 1:
        raise TrainingError(
            f"denominator has shape {tuple(divisor.shape)}; pass one number: the {unit} of the whole step"
        )
    divisor = divisor.reshape(())
    if not bool((divisor > 0) & torch.isfinite(divisor)):
        raise TrainingError(
            f"denominator={float(divisor)} with kept tokens in the batch; pass the {unit} of the whole step (t >= 1)"
        )
    return total / divisor


def select_highest(
    rows: Counted, keep: float, losses_of: Callable[[Counted], Tensor], group: "ProcessGroup | None"
) -> tuple[Tensor, int]:
    """Rho-1's choice: the `keep` share of the scored tokens with the highest excess loss, over all ranks of `group`.

    Args:
        rows: the scored tokens of this rank, with the reference's log-probs.
        keep: share to select.
        losses_of: gives the live losses, shape (K,); only asked when there is something to rank.
        group: rank the tokens of all its processes together; None = these alone.

    Returns:
        Which of this rank's `rows` are selected, ascending, and how many all ranks selected.
    """
    if not 0 < keep <= 1:
        raise TrainingError(f"keep={keep} is not a share; use a value above 0 and at most 1, such as 0.6")
    sizes = _gather_sizes(len(rows.index_K), rows.index_K.device, group)
    count = round(keep * sum(sizes))
    if count == sum(sizes):
        return torch.arange(len(rows.index_K), device=rows.index_K.device), count
    excess_K = losses_of(rows).detach() + rows.values_K
    rank, every_excess = _gather_values(excess_K, sizes, group)
    # Stable, and ranks lie one behind the other: ties go to the lower rank, then to the earlier token.
    order = torch.sort(every_excess, descending=True, stable=True).indices[:count]
    first = sum(sizes[:rank])
    own = order[(order >= first) & (order < first + sizes[rank])] - first
    return own.sort().values, count


# ------------------------------------------------------------------------------------------------ between ranks


def _gather_sizes(size: int, device: torch.device, group: "ProcessGroup | None") -> list[int]:
    if group is None:
        return [size]
    own = torch.tensor([size], device=device)
    sizes = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(sizes, own, group=group)
    return [int(each) for each in sizes]


def _gather_values(values: Tensor, sizes: list[int], group: "ProcessGroup | None") -> tuple[int, Tensor]:
    """This rank's number in the group, and the values of all ranks, lowest rank first."""
    if group is None:
        return 0, values
    padded = values.new_zeros(max(sizes))  # every rank sends the same number
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded, group=group)
    joined = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return torch.distributed.get_rank(group), joined


# ------------------------------------------------------------------------------------------------ one batch


def _check_shapes(states: Tensor, name: str, input_ids: Tensor, **others: Tensor) -> None:
    last = "V" if name == "logits" else "H"
    if states.dim() != 3 or not states.is_floating_point():
        raise TrainingError(
            f"{name} has shape {tuple(states.shape)} and {states.dtype}; expected floats (B, T, {last})"
        )
    if input_ids.is_floating_point() or input_ids.is_complex():
        raise TrainingError(f"input_ids is {input_ids.dtype}; token ids are integers")
    for other, tensor in {"input_ids": input_ids, **others}.items():
        if tensor.shape != states.shape[:2]:
            raise TrainingError(
                f"{other} has shape {tuple(tensor.shape)}, but {name} has shape {tuple(states.shape)}: its first two "
                "sizes (B, T) must agree. Do not shift: the loss does it"
            )


def _next(values_BT: Tensor, filler: float) -> Tensor:
    """Move token-aligned values onto the rows that predict them: flat (B*T,), `filler` behind each last token."""
    shifted = torch.full_like(values_BT, filler)
    shifted[:, :-1] = values_BT[:, 1:]
    return shifted.flatten()


def _gather(values_N: Tensor, counts_N: Tensor, input_ids: Tensor, vocabulary: int) -> Counted:
    index_K = counts_N.nonzero().squeeze(1)
    targets_K = _next(input_ids.to(values_N.device, torch.int64), 0)[index_K]
    if bool(((targets_K < 0) | (targets_K >= vocabulary)).any()):
        raise TrainingError(
            f"input_ids holds {int(targets_K.min())}..{int(targets_K.max())} at positions that count, outside the "
            f"{vocabulary} ids of the logits; model and dataset have different tokenizers, or padding has weight"
        )
    return Counted(index_K, targets_K, values_N[index_K])
