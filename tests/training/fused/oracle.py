"""A batch, heads of every kind, and what the losses over it are: plain float64 autograd over full logits.

Loaded by conftest.py, as test files are not importable from each other.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from curator.scorers.head import Head

HEADS: dict[str, Callable[[Tensor, Tensor], Head]] = {
    "plain": lambda weight, _: Head(weight),
    "bias": Head,
    "scale": lambda weight, bias: Head(weight, bias, scale=0.25),
    "softcap": lambda weight, bias: Head(weight, bias, scale=1.5, softcap=3.0),
}


class Example:
    """Hidden states, a head's parts and a batch, all float64."""

    def __init__(self, batch: int = 3, length: int = 7, size: int = 5, vocabulary: int = 11, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.hidden = normal(batch, length, size).requires_grad_()
        self.weight = (normal(vocabulary, size) * 1.5).requires_grad_()
        self.bias = normal(vocabulary).requires_grad_()
        self.input_ids = torch.randint(vocabulary, (batch, length), generator=generator)
        kept = torch.rand(batch, length, generator=generator) > 0.4
        self.token_weights = torch.rand(batch, length, generator=generator, dtype=torch.float64) * kept
        self.reference = -torch.rand(batch, length, generator=generator, dtype=torch.float64) * 5
        self.reference[torch.rand(batch, length, generator=generator) < 0.3] = float("nan")

    def gradients(self, loss: Tensor) -> list[Tensor]:
        parts = (self.hidden, self.weight, self.bias)
        found = torch.autograd.grad(loss, parts, allow_unused=True)
        return [torch.zeros_like(part) if each is None else each for part, each in zip(parts, found, strict=True)]


def full_losses(hidden: Tensor, head: Head, input_ids: Tensor) -> Tensor:
    """Cross-entropy of tokens 1..T-1 from full logits, shape (B, T - 1)."""
    logits = hidden[:, :-1] @ head.weight_VH.T
    if head.bias_V is not None:
        logits = logits + head.bias_V
    logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return -logits.log_softmax(-1).gather(2, input_ids[:, 1:, None])[..., 0]


def expected_weighted(example: Example, head: Head) -> Tensor:
    weights = example.token_weights[:, 1:]
    losses = full_losses(example.hidden, head, example.input_ids)
    return (losses * weights).sum() / weights.sum() if weights.sum() > 0 else losses.sum() * 0


def expected_selective(example: Example, head: Head, keep: float) -> Tensor:
    """Rho-1 eq. 3-5 by sorting Python tuples."""
    losses, reference = full_losses(example.hidden, head, example.input_ids), example.reference[:, 1:]
    places = [(b, t) for b in range(losses.shape[0]) for t in range(losses.shape[1]) if reference[b, t].isfinite()]
    order = sorted(places, key=lambda place: -(losses[place] + reference[place]).item())
    chosen = order[: round(keep * len(places))]
    return torch.stack([losses[place] for place in chosen]).mean() if chosen else losses.sum() * 0
