"""Cross-entropy straight from hidden states: head and loss in one, a chunk of rows at a time.

Full logits of 4,096 tokens over 128k ids are 2 GiB in float32, and autograd keeps or makes several such tensors. Here
one chunk exists at a time, in one buffer. The sum of weighted losses is linear in the tokens' losses, so a chunk's
gradients are final as soon as its losses are: they are taken at once, in the forward pass, and the backward only
scales them. Recomputing the logits in the backward instead would cost a fourth large product on top of three.

Logits, losses and all sums are float32 (float64 for float64). The factors of the three products have the type that
the model multiplies in, its own or autocast's. Of half-precision factors a GPU gives float32 products. A CPU does so
for the logits alone: there a chunk's part of the other two comes rounded to bfloat16, once, and is then added up in
float32, for twice the speed.

    V   vocabulary     H   hidden size     N   all rows     K   rows that count     n   rows of one chunk
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from curator.errors import TrainingError
from curator.scorers.head import Head
from curator.training.counted import Counted, compute_dtype

_CHUNK_ELEMENTS = {"cpu": 1 << 25, "cuda": 1 << 27}
"""Logits that exist at a time, 128 MiB and 512 MiB in float32; products over fewer rows spend their time on reading
the head's weight."""

_BLOCK_ELEMENTS = 1 << 20
"""Logits that one pass of the softmax takes on a CPU: 4 MiB in float32, so that the next pass finds them in a cache."""

_TILE_COLUMNS = 4096
"""Part of the vocabulary that one product takes where factors and sums have different types."""


def sum_losses(hidden_NH: Tensor, head: Head, rows: Counted) -> Tensor:
    """The weighted sum of the rows' losses, differentiable in hidden states, head weight and bias."""
    chunks = _Chunks(hidden_NH, head)
    taking = torch.is_grad_enabled()
    with torch.autocast(hidden_NH.device.type, enabled=False):
        total: Tensor = _HeadLoss.apply(hidden_NH, head.weight_VH, head.bias_V, chunks, rows, taking)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def token_losses(hidden_NH: Tensor, head: Head, rows: Counted) -> Tensor:
    """Each row's loss, without gradient, shape (K,)."""
    chunks = _Chunks(hidden_NH, head)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        losses = [losses_n for _, losses_n, _, _ in chunks.walk(hidden_NH, rows, with_gradient=False)]
    return torch.cat(losses) if losses else hidden_NH.new_zeros(0, dtype=compute_dtype(hidden_NH))


def check_head(hidden: Tensor, head: Head) -> None:
    """Raise TrainingError for a head that cannot be used with these hidden states."""
    weight = head.weight_VH
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or not weight.is_floating_point():
        raise TrainingError(
            f"the head's weight has shape {tuple(weight.shape)} and {weight.dtype}, the hidden states "
            f"{tuple(hidden.shape)}; expected floats (V, H) and (B, T, H). A weight that is sharded (FSDP, ZeRO-3) or "
            "quantized cannot be used here: use the losses over logits"
        )
    if hasattr(weight, "device_mesh"):
        raise TrainingError(
            f"the head's weight is a {type(weight).__name__}, spread over processes; use the losses over logits"
        )
    if head.first != 0:
        raise TrainingError(f"the head starts at token {head.first}; a loss needs the whole vocabulary on each rank")
    if (weight.dtype == torch.float64) != (hidden.dtype == torch.float64) or weight.device != hidden.device:
        raise TrainingError(
            f"the head's weight is {weight.dtype} on {weight.device}, the hidden states are {hidden.dtype} on "
            f"{hidden.device}; move one to the other's device, and use float64 for both or neither"
        )


class _HeadLoss(torch.autograd.Function):
    """Sum of weight times loss; what it saves for the backward are the finished gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        chunks: "_Chunks",
        rows: Counted,
        taking: bool,
    ) -> Tensor:
        for_hidden, for_weight, for_bias = (needed and taking for needed in ctx.needs_input_grad[:3])
        dtype = compute_dtype(hidden_NH)
        total = torch.zeros((), dtype=dtype, device=hidden_NH.device)
        hidden_KH = hidden_NH.new_empty(len(rows.index_K), hidden_NH.shape[1]) if for_hidden else None
        gradient_VH = torch.zeros_like(weight_VH, dtype=dtype) if for_weight else None
        gradient_V = torch.zeros_like(bias_V, dtype=dtype) if for_bias and bias_V is not None else None
        for part, losses_n, logits_nV, states_nH in chunks.walk(hidden_NH, rows, for_hidden or for_weight or for_bias):
            total += (losses_n * rows.values_K[part]).sum()
            factor_n = rows.values_K[part] * chunks.head.scale
            if gradient_V is not None:
                gradient_V.addmv_(logits_nV.t(), factor_n)
            factors_nV = chunks.narrow(logits_nV) if for_hidden or for_weight else logits_nV
            if hidden_KH is not None:
                hidden_KH[part] = (chunks.to_hidden(factors_nV) * factor_n[:, None]).to(hidden_KH.dtype)
            if gradient_VH is not None:
                chunks.add_to_weight(gradient_VH, factors_nV, states_nH.to(dtype) * factor_n[:, None])
        ctx.save_for_backward(rows.index_K, hidden_KH, gradient_VH, gradient_V)
        ctx.like = hidden_NH.shape, weight_VH.dtype, None if bias_V is None else bias_V.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        index_K, hidden_KH, gradient_VH, gradient_V = ctx.saved_tensors
        shape, weight_dtype, bias_dtype = ctx.like
        for_hidden = None
        if hidden_KH is not None:
            for_hidden = hidden_KH.new_zeros(shape)
            for_hidden[index_K] = (hidden_KH * gradients[0]).to(for_hidden.dtype)
        for_weight = None
        if gradient_VH is not None:
            scaled_VH = gradient_VH * gradients[0] if _graph_is_kept() else gradient_VH.mul_(gradients[0])
            for_weight = scaled_VH.to(weight_dtype)
        for_bias = None if gradient_V is None else (gradient_V * gradients[0]).to(bias_dtype)
        return for_hidden, for_weight, for_bias, None, None, None


def _graph_is_kept() -> bool:
    """Whether the backward that runs may be followed by another; if not, no second copy of a head's size is needed."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or bool(asked())


class _Chunks:
    """The large products of a chunk, and the buffer that its logits live in."""

    def __init__(self, hidden_NH: Tensor, head: Head) -> None:
        self.head = head
        self._on_cpu = hidden_NH.device.type == "cpu"
        self._dtype = compute_dtype(hidden_NH)
        self._weight_VH = head.weight_VH.detach().to(_factor_dtype(hidden_NH, head.weight_VH))
        self._narrow = self._weight_VH.dtype != self._dtype
        vocabulary = max(1, len(self._weight_VH))
        self._tiles = [slice(first, first + _TILE_COLUMNS) for first in range(0, vocabulary, _TILE_COLUMNS)]
        self._rows = max(1, _CHUNK_ELEMENTS["cpu" if self._on_cpu else "cuda"] // vocabulary)
        self._block_rows = max(1, _BLOCK_ELEMENTS // vocabulary) if self._on_cpu else self._rows

    def walk(
        self, hidden_NH: Tensor, rows: Counted, with_gradient: bool
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Per chunk: which of the rows, their losses, the gradient in the logits (before scale), the hidden states."""
        count = len(rows.index_K)
        buffer = hidden_NH.new_empty(min(count, self._rows), len(self._weight_VH), dtype=self._dtype)
        for first in range(0, count, self._rows):
            part = slice(first, min(first + self._rows, count))
            states_nH = hidden_NH[rows.index_K[part]].to(self._weight_VH.dtype)
            logits_nV = buffer[: len(states_nH)]
            self._multiply(states_nH, logits_nV)
            targets_n = rows.targets_K[part]
            blocks = [slice(start, start + self._block_rows) for start in range(0, len(targets_n), self._block_rows)]
            losses = [_take_losses_(logits_nV[some], targets_n[some], self.head, with_gradient) for some in blocks]
            yield part, torch.cat(losses), logits_nV, states_nH

    def _multiply(self, states_nH: Tensor, logits_nV: Tensor) -> None:
        if not self._narrow:
            torch.mm(states_nH, self._weight_VH.t(), out=logits_nV)
        elif not self._on_cpu:
            for tile in self._tiles:
                logits_nV[:, tile] = torch.mm(states_nH, self._weight_VH[tile].t(), out_dtype=self._dtype)
        else:
            widened_CH = self._weight_VH.new_empty(_TILE_COLUMNS, states_nH.shape[1], dtype=self._dtype)
            wide_nH = states_nH.to(self._dtype)
            with _bfloat16_factors():
                for tile in self._tiles:
                    weight_CH = self._weight_VH[tile]
                    wide_CH = widened_CH[: len(weight_CH)].copy_(weight_CH)
                    torch.mm(wide_nH, wide_CH.t(), out=logits_nV[:, tile])

    def narrow(self, gradient_nV: Tensor) -> Tensor:
        """The gradient in the logits as a factor of the next two products."""
        return gradient_nV.to(self._weight_VH.dtype)

    def to_hidden(self, gradient_nV: Tensor) -> Tensor:
        """Gradient in the hidden states, from the narrowed one in the logits."""
        if self._narrow and not self._on_cpu:
            return torch.mm(gradient_nV, self._weight_VH, out_dtype=self._dtype)
        return torch.mm(gradient_nV, self._weight_VH).to(self._dtype)

    def add_to_weight(self, total_VH: Tensor, gradient_nV: Tensor, states_nH: Tensor) -> None:
        """Add a chunk's part of the gradient in the head's weight."""
        states_nH = states_nH.to(self._weight_VH.dtype)
        if not self._narrow:
            total_VH.addmm_(gradient_nV.t(), states_nH)
            return
        for tile in self._tiles:
            part_Vn = gradient_nV[:, tile].t()
            if self._on_cpu:
                total_VH[tile].add_(torch.mm(part_Vn, states_nH))
            else:
                total_VH[tile].add_(torch.mm(part_Vn, states_nH, out_dtype=self._dtype))


def _take_losses_(logits_nV: Tensor, targets_n: Tensor, head: Head, with_gradient: bool) -> Tensor:
    """The losses of some rows; on request their logits become the gradient: softmax minus one at the target.

    The soft-cap is y = c tanh(x / c), its slope 1 - (y / c)^2; the scale in front of it is left to the caller.
    """
    if head.bias_V is not None:
        logits_nV.add_(head.bias_V.to(logits_nV.dtype))
    if head.scale != 1:
        logits_nV.mul_(head.scale)
    slopes_nV = None
    if head.softcap is not None:
        logits_nV.div_(head.softcap).tanh_()
        slopes_nV = 1 - logits_nV.square() if with_gradient else None
        logits_nV.mul_(head.softcap)
    target_n1 = logits_nV.gather(1, targets_n[:, None])
    highest_n1 = logits_nV.amax(1, keepdim=True)
    logits_nV.sub_(highest_n1).exp_()
    sum_n1 = logits_nV.sum(1, keepdim=True)
    if with_gradient:
        logits_nV.div_(sum_n1).scatter_add_(1, targets_n[:, None], torch.full_like(sum_n1, -1))
    if slopes_nV is not None:
        logits_nV.mul_(slopes_nV)
    return (highest_n1 + sum_n1.log() - target_n1).squeeze(1)


def _factor_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The type that a plain head would multiply in; a CPU widens float16, for which it has no fast product."""
    device = hidden.device.type
    narrowed = weight.dtype == torch.float32 and hidden.dtype in (torch.bfloat16, torch.float16)
    dtype = hidden.dtype if narrowed else torch.promote_types(hidden.dtype, weight.dtype)
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return torch.float32 if device == "cpu" and dtype == torch.float16 else dtype


@contextmanager
def _bfloat16_factors() -> Iterator[None]:
    """Let oneDNN multiply float32 values that came from bfloat16 as such, with float32 sums and results.

    Torch has no product of bfloat16 with a float32 result on a CPU, and this is several times as fast as one of
    widened factors.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
