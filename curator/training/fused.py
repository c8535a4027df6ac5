"""The losses over hidden states instead of logits, for large vocabularies.

Same definitions as `curator.training.losses`, same alignment; the output head is applied inside, in chunks, and only
to positions that count: with 60% of the tokens kept, 40% of the head's work is never done. What it is applied to is
the last hidden state after the final norm, what a model's head takes in.

Precision is that of the plain losses or better: sums and logits are float32 (float64 for float64 inputs) whatever the
inputs, and the gradient of the head's weight is summed in float32 and rounded once. Factors of products are the
inputs', under `torch.autocast` rounded to its type, as a plain head's would be; what counts is autocast around the
model's forward, which the hidden states remember by their type: the HF Trainer and accelerate take the loss outside.
Beside half-precision hidden states, a float32 weight is rounded to their type. No second derivatives.

    B   sequences     T   positions     H   hidden size     V   vocabulary
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curator.errors import ScorerError, TrainingError
from curator.scorers.head import Head, read_head
from curator.training.counted import Counted, divide, scored_rows, select_highest, weighted_rows
from curator.training.head_losses import check_head, sum_losses, token_losses

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def fused_weighted_cross_entropy(
    hidden: Tensor,
    head: Head,
    input_ids: Tensor,
    token_weights: Tensor,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """`weighted_cross_entropy` without logits: sum over t >= 1 of w_t * CE_t, divided by the sum of those w_t.

    Gradients reach the hidden states, the head's weight and its bias, whichever need one. They are computed in this
    call, a chunk of rows at a time; the backward scales and hands them over. Call it under `torch.no_grad()` where no
    backward follows: that is a third of the work.

    Args:
        hidden: what the head takes in, shape (B, T, H); row t predicts token t + 1.
        head: the output head, as `curator.scorers.head.read_head` reads it; `rounded` is ignored.
        input_ids: shape (B, T); ids at positions of weight 0 are never looked at.
        token_weights: shape (B, T), finite and not negative; index 0 is ignored. They receive no gradient.
        denominator: divide by this instead of the sum of weights: that of the whole step under gradient accumulation
            or data parallelism, as in `weighted_cross_entropy`.

    Returns:
        A scalar in nats: float64 for float64 hidden states, else float32. When the weights sum to 0 it is 0, and its
        gradient is zero everywhere.

    Raises:
        TrainingError: as `weighted_cross_entropy`, or a head that does not fit the hidden states, is sharded over
            processes or quantized.
    """
    check_head(hidden, head)
    rows = weighted_rows(hidden, "hidden", len(head.weight_VH), input_ids, token_weights)
    total = sum_losses(hidden.flatten(0, 1), head, rows)
    return divide(total, denominator, rows.values_K.sum(), len(rows.index_K), "weight sum")


def fused_selective_loss(
    hidden: Tensor,
    head: Head,
    input_ids: Tensor,
    ref_logprobs: Tensor,
    keep: float,
    *,
    denominator: Tensor | float | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """`selective_loss` without logits: mean loss over the tokens with the highest excess loss.

    One pass of the head over all scored tokens ranks them; a second, with gradients, sees only the selected ones. In
    products that is 1 + 3 * keep of the head's size, where plain logits take 3: less work up to keep = 2/3.

    Args:
        hidden: what the head takes in, shape (B, T, H).
        head: the output head, as `curator.scorers.head.read_head` reads it.
        input_ids: shape (B, T).
        ref_logprobs: as in `selective_loss`.
        keep: share of the scored tokens to train on, in (0, 1].
        denominator: divide by this instead of the number selected, as in `selective_loss`.
        group: processes whose tokens are ranked together, as in `selective_loss`; a trainer that averages gradients
            over its ranks must multiply the loss by their number.

    Returns:
        A scalar in nats, as `selective_loss`.

    Raises:
        TrainingError: as `selective_loss`, or a head that does not fit the hidden states, is sharded over processes or
            quantized.
    """
    check_head(hidden, head)
    rows = scored_rows(hidden, "hidden", len(head.weight_VH), input_ids, ref_logprobs)
    hidden_NH = hidden.flatten(0, 1)
    chosen, count = select_highest(rows, keep, lambda scored: token_losses(hidden_NH, head, scored), group)
    selected = Counted(rows.index_K[chosen], rows.targets_K[chosen], torch.ones_like(rows.values_K[chosen]))
    total = sum_losses(hidden_NH, head, selected)
    return divide(total, denominator, count, len(chosen), "number of selected tokens")


@contextmanager
def hidden_instead_of_logits(model: Any) -> Iterator[Head]:
    """Let `model(**inputs).logits` be the hidden states that its head takes in, in its products' type; give the head.

        with hidden_instead_of_logits(model) as head:
            hidden = model(input_ids=input_ids).logits
        loss = fused_weighted_cross_entropy(hidden, head, input_ids, token_weights)

    Works through wrappers (PEFT, DistributedDataParallel, torch.compile), and leaves parameters and module tree as
    they are: while the block runs, only what the head's module computes is replaced, by a probe of a few numbers. What
    the model makes of the probe must be what `read_head` says of scale and soft-cap, so an architecture that does
    something else to its logits is found out, not trained wrongly. Pass no `labels`: there are no logits to use them.
    DistributedDataParallel must not follow the graph of its outputs, which the probe has not.

    Args:
        model: a `transformers` causal language model, or a wrapper around one.

    Raises:
        TrainingError: the head cannot be taken out (quantized, adapted or sharded; read_head says which), or the
            model's output is not that of one linear head with `read_head`'s scale and soft-cap; or gradients are taken
            under DistributedDataParallel with `find_unused_parameters=True` or `static_graph=True`.
    """
    inner = _unwrap(model)
    try:
        head = read_head(inner)
    except (ScorerError, AttributeError) as error:
        raise TrainingError(f"the output head of {type(inner).__name__} cannot be taken out: {error}") from error
    linear = inner.get_output_embeddings()
    seen: list[Tensor] = []

    def keep_input(hidden: Tensor) -> Tensor:
        seen.append(_as_factor(hidden))
        return _make_probe(len(head.weight_VH), hidden.device)

    def put_hidden(_: Any, __: Any, outputs: Any) -> Any:
        outputs.logits = _check_answer(inner, head, seen, getattr(outputs, "logits", None))
        seen.clear()
        return outputs

    own_forward = linear.__dict__.get("forward")
    hook = model.register_forward_hook(put_hidden)
    linear.forward = keep_input
    try:
        yield head
    finally:
        hook.remove()
        if own_forward is None:
            del linear.forward
        else:
            linear.forward = own_forward


def can_be_fused(model: Any) -> bool:
    """Whether the losses over hidden states are for this model; tried on two tokens, without a trace."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), hidden_instead_of_logits(model) as head:
            ids = torch.zeros(1, 2, dtype=torch.int64, device=head.weight_VH.device)
            hidden = model(input_ids=ids, use_cache=False).logits
        check_head(hidden, head)
    except TrainingError:
        return False
    finally:
        model.train(was_training)
    return True


def _unwrap(model: Any) -> Any:
    """The model that has the head, below wrappers that do not forward what they are asked."""
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            _check_parallel(model)
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        else:
            return model


def _check_parallel(model: torch.nn.parallel.DistributedDataParallel) -> None:
    # Both options act through the graph of the outputs, which the probe has not: the one takes every parameter for
    # unused and fails in the backward, the other leaves gradients unaveraged, in silence.
    for option in ("find_unused_parameters", "static_graph"):
        if torch.is_grad_enabled() and getattr(model, option):
            raise TrainingError(
                f"DistributedDataParallel has {option}=True, which does not go with the fused losses: build it with "
                f"{option}=False (in TrainingArguments ddp_{option}=False), or use the losses over logits"
            )


def _as_factor(hidden: Tensor) -> Tensor:
    """Hidden states in the type that the head would multiply in; the loss may be computed outside of autocast."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return hidden
    return hidden.to(torch.get_autocast_dtype(device))


def _make_probe(vocabulary: int, device: torch.device) -> Tensor:
    return torch.linspace(-64, 64, vocabulary, device=device).view(1, 1, -1)


def _check_answer(inner: Any, head: Head, seen: list[Tensor], answer: Tensor | None) -> Tensor:
    """The hidden states, once it is sure that logits would have become what the head says."""
    if len(seen) != 1 or answer is None:
        raise TrainingError(
            f"{type(inner).__name__} applied its output head {len(seen)} times and gave "
            f"{'no logits' if answer is None else 'logits'}; expected once, and an output with logits. Use the losses "
            "over logits"
        )
    expected = _make_probe(len(head.weight_VH), answer.device) * head.scale
    if head.softcap is not None:
        expected = head.softcap * torch.tanh(expected / head.softcap)
    answer = answer.detach().float()
    if answer.shape != expected.shape or not torch.allclose(answer, expected, rtol=1e-4, atol=1e-4):
        raise TrainingError(
            f"{type(inner).__name__} does more to its logits than scale={head.scale} and softcap={head.softcap}, which "
            "is all that the fused losses know; use the losses over logits"
        )
    return seen[0]
