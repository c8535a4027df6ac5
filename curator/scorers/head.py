"""The output head of a causal language model, fused with what is wanted of it: a few numbers per token.

A plain head writes V logits per token, in float32 400 MB for 2,048 tokens of a 49,152-token vocabulary, and then reads
them again to reduce them to one log-prob. Here tiles of logits live just long enough to be reduced.

Logits are accumulated in float32, and kept so unless `rounded` heads are asked for: rounding them to bfloat16 costs
0.009 nats in the mean error of a log-prob, half as much again as all the rest of a bfloat16 model. On CPUs whose
kernels give bfloat16 results only, that rounding doubles the head's speed.

    N   rows: positions to predict     H   hidden size     C   columns of one tile of the vocabulary
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from curator.data import Feature
from curator.errors import ScorerError

_TILE_ROWS = 512  # 512 x 4,096 float32 are 8 MB: large enough for a fast product, small enough for a cache
_TILE_COLUMNS = 4096
_CUDA_TILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Head:
    """A linear head and what its architecture does to the logits: `softcap(scale * (hidden @ weight.T + bias))`.

    `weight_VH` may be one rank's part of the vocabulary, whose first token is `first`. With `rounded`, a CPU's products
    are rounded to the weight's type, the target's as all others, so that their errors cancel as far as they can.
    """

    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    first: int = 0
    rounded: bool = False


class Ranks(Protocol):
    """Processes that hold a part of the vocabulary each; every rank gets the same answer."""

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks."""
        ...

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Largest over ranks."""
        ...


@dataclass(frozen=True)
class RowScores:
    """What the head says of each row's target, float32, shape (N,)."""

    logprobs_N: torch.Tensor
    entropy_N: torch.Tensor | None
    rank_N: torch.Tensor | None


def read_head(model: Any) -> Head:
    """Take the head out of a `transformers` causal language model; raises ScorerError when it is not linear."""
    linear = model.get_output_embeddings()
    if not isinstance(linear, torch.nn.Linear):
        raise ScorerError(
            f"{type(model).__name__} has {type(linear).__name__} as output head, not a plain linear layer; use a "
            f"checkpoint with an unquantized head, or engine vllm"
        )
    config = model.config.get_text_config()
    scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
    scale *= getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return Head(linear.weight, linear.bias, float(scale), softcap)


def score_rows(
    head: Head,
    hidden_NH: torch.Tensor,
    target_N: torch.Tensor,
    features: tuple[Feature, ...],
    ranks: Ranks | None = None,
) -> RowScores:
    """Log-probs of the targets, and on request the entropy of each row's distribution and the target's rank.

    log p(y) = x_y - logsumexp(x) with a running maximum over tiles (Milakov and Gimelshein 2018, arXiv:1805.02867).
    Entropy is logsumexp(x) - sum(p x). Rank is 1 + the number of tokens with a higher logit.

    Args:
        head: the output head.
        hidden_NH: last hidden states after the final norm, in the model's dtype.
        target_N: token ids to predict, int64.
        features: what to compute besides the log-prob.
        ranks: who else holds a part of the vocabulary; at most five floats per row travel between them.
    """
    rows = hidden_NH.shape[0]
    target_N = target_N - head.first
    target_logit_N = torch.cat(
        [_target_logits(head, hidden_NH[part], target_N[part]) for part in _slices(rows, _TILE_ROWS)]
    )
    if ranks is not None:
        target_logit_N = ranks.total(target_logit_N)
    state = _Sums.start(rows, hidden_NH.device)
    columns = _TILE_COLUMNS
    on_cpu = hidden_NH.device.type == "cpu"
    block = _TILE_ROWS if on_cpu else _CUDA_TILE_BYTES // (4 * columns)
    multiply = _Products(head.rounded) if on_cpu else _multiply_on_gpu
    for column in _slices(head.weight_VH.shape[0], columns):
        weight_CH = head.weight_VH[column]
        bias_C = None if head.bias_V is None else head.bias_V[column].float()
        for part in _slices(rows, block):
            tile_NC = multiply(hidden_NH[part], weight_CH)
            _finish_logits_(tile_NC, head, bias_C)
            if "rank" in features:
                state.count_higher(part, tile_NC, target_logit_N[part], target_N[part] - column.start)
            state.add(part, tile_NC, with_entropy="entropy" in features)
    if ranks is not None:
        state = state.merge(ranks)
    return state.finish(target_logit_N, features)


def score_logits(logits_NV: torch.Tensor, target_N: torch.Tensor, features: tuple[Feature, ...]) -> RowScores:
    """The same from finished logits, float32, which are overwritten: for heads that cannot be taken apart."""
    target_logit_N = logits_NV.gather(1, target_N[:, None])[:, 0]
    state = _Sums.start(len(target_N), logits_NV.device)
    if "rank" in features:
        state.count_higher(slice(None), logits_NV, target_logit_N, target_N)
    state.add(slice(None), logits_NV, with_entropy="entropy" in features)
    return state.finish(target_logit_N, features)


def join_rows(parts: list[RowScores]) -> RowScores:
    """Lay the rows of several calls end to end."""

    def join(name: str) -> torch.Tensor | None:
        first = getattr(parts[0], name)
        return None if first is None else torch.cat([getattr(part, name) for part in parts])

    logprobs_N = join("logprobs_N")
    assert logprobs_N is not None
    return RowScores(logprobs_N, join("entropy_N"), join("rank_N"))


@dataclass
class _Sums:
    """Per row over the tiles seen so far: max x, sum e^(x - max), sum (x - max) e^(x - max), count of higher logits."""

    maximum_N: torch.Tensor
    sum_N: torch.Tensor
    weighted_N: torch.Tensor
    higher_N: torch.Tensor
    flags: torch.Tensor | None = None

    @classmethod
    def start(cls, rows: int, device: torch.device) -> "_Sums":
        lowest_N = torch.full((rows,), -1e30, device=device)  # finite: -inf times a sum of 0 would be NaN
        return cls(lowest_N, *(torch.zeros(rows, device=device) for _ in range(3)))

    def add(self, part: slice, tile_NC: torch.Tensor, *, with_entropy: bool) -> None:
        """Fold one tile in, overwriting it."""
        before_N = self.maximum_N[part]
        maximum_N = torch.maximum(before_N, tile_NC.amax(1))
        change_N = before_N - maximum_N
        decay_N = change_N.exp()
        tile_NC.sub_(maximum_N[:, None])
        if with_entropy:
            powers_NC = tile_NC.exp()
            moved_N = decay_N * (self.weighted_N[part] + change_N * self.sum_N[part])
            self.weighted_N[part] = moved_N + tile_NC.mul_(powers_NC).sum(1)
        else:
            powers_NC = tile_NC.exp_()
        self.sum_N[part] = decay_N * self.sum_N[part] + powers_NC.sum(1)
        self.maximum_N[part] = maximum_N

    def finish(self, target_logit_N: torch.Tensor, features: tuple[Feature, ...]) -> RowScores:
        """What was asked for, once every tile is in."""
        logsumexp_N = self.maximum_N + self.sum_N.log()
        return RowScores(
            logprobs_N=(target_logit_N - logsumexp_N).clamp_(max=0),
            entropy_N=self.sum_N.log() - self.weighted_N / self.sum_N if "entropy" in features else None,
            rank_N=self.higher_N + 1.0 if "rank" in features else None,
        )

    def merge(self, ranks: Ranks) -> "_Sums":
        """The same over the whole vocabulary."""
        maximum_N = ranks.maximum(self.maximum_N)
        change_N = self.maximum_N - maximum_N
        decay_N = change_N.exp()
        weighted_N = decay_N * (self.weighted_N + change_N * self.sum_N)
        return _Sums(maximum_N, *ranks.total(torch.stack([decay_N * self.sum_N, weighted_N, self.higher_N])))

    def count_higher(
        self, part: slice, tile_NC: torch.Tensor, target_logit_N: torch.Tensor, column_N: torch.Tensor
    ) -> None:
        """Count logits above the target's; the target's own column is left out, whatever its rounding."""
        higher_N = self._count(tile_NC, target_logit_N)
        inside_N = (column_N >= 0) & (column_N < tile_NC.shape[1])
        own_N = tile_NC.gather(1, column_N.clamp(0, tile_NC.shape[1] - 1)[:, None])[:, 0] > target_logit_N
        self.higher_N[part] += higher_N - (own_N & inside_N).float()

    def _count(self, tile_NC: torch.Tensor, target_logit_N: torch.Tensor) -> torch.Tensor:
        """Logits above the target's; on a CPU as a sum of floats, four times as fast as one of booleans."""
        if tile_NC.device.type != "cpu":
            return (tile_NC > target_logit_N[:, None]).sum(1)
        if self.flags is None or self.flags.numel() < tile_NC.numel():
            self.flags = torch.empty(tile_NC.numel())
        flags_NC = self.flags[: tile_NC.numel()].view_as(tile_NC)
        return torch.gt(tile_NC, target_logit_N[:, None], out=flags_NC).sum(1)


def _target_logits(head: Head, hidden_NH: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Logits of the targets that this part of the vocabulary holds, 0 for the others."""
    held_N = (target_N >= 0) & (target_N < head.weight_VH.shape[0])
    target_N = target_N.where(held_N, 0)
    logit_N = (hidden_NH.float() * head.weight_VH[target_N].float()).sum(1, keepdim=True)
    if head.rounded and hidden_NH.device.type == "cpu":
        logit_N = logit_N.to(hidden_NH.dtype).float()
    bias_N = None if head.bias_V is None else head.bias_V[target_N].float()[:, None]
    return _finish_logits_(logit_N, head, bias_N)[:, 0].where(held_N, 0)


def _finish_logits_(logits_NC: torch.Tensor, head: Head, bias: torch.Tensor | None) -> torch.Tensor:
    """Bias, scale and soft-cap, in place and in float32."""
    if bias is not None:
        logits_NC.add_(bias)
    if head.scale != 1:
        logits_NC.mul_(head.scale)
    if head.softcap is not None:
        logits_NC.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits_NC


def _multiply_on_gpu(hidden_NH: torch.Tensor, weight_CH: torch.Tensor) -> torch.Tensor:
    if hidden_NH.dtype == torch.float32:
        return torch.mm(hidden_NH, weight_CH.t())
    return torch.mm(hidden_NH, weight_CH.t(), out_dtype=torch.float32)


class _Products:
    """Tiles of logits in float32 on a CPU, in one buffer for all: fresh memory costs page faults.

    Torch has no product of bfloat16 with a float32 result there. Exact ones widen both factors; rounded ones take the
    product in the weight's type and widen that.
    """

    def __init__(self, rounded: bool) -> None:
        self._rounded = rounded
        self._wide = torch.empty(_TILE_ROWS * _TILE_COLUMNS)
        self._narrow: torch.Tensor | None = None
        self._weight: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, hidden_NH: torch.Tensor, weight_CH: torch.Tensor) -> torch.Tensor:
        rows, columns = hidden_NH.shape[0], weight_CH.shape[0]
        tile_NC = self._wide[: rows * columns].view(rows, columns)
        if self._rounded and hidden_NH.dtype != torch.float32:
            if self._narrow is None:
                self._narrow = torch.empty_like(self._wide, dtype=hidden_NH.dtype)
            narrow_NC = self._narrow[: rows * columns].view(rows, columns)
            return tile_NC.copy_(torch.mm(hidden_NH, weight_CH.t(), out=narrow_NC))
        if self._weight is None or self._weight[0] is not weight_CH:
            self._weight = weight_CH, weight_CH.float().t()
        with _exact_products(weight_CH.dtype):
            return torch.mm(hidden_NH.float(), self._weight[1], out=tile_NC)


@contextmanager
def _exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Let oneDNN multiply float32 values that came from bfloat16 as such, with float32 sums and results.

    Nothing is lost, as every factor is a bfloat16 number; where the processor has matrix units it is several times
    faster, and elsewhere oneDNN's float32 product still beats the default one on AMD (measured 2.7 times).
    """
    if dtype != torch.bfloat16:
        yield
        return
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _slices(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
