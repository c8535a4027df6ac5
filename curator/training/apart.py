"""Does a model keep the documents of a packed row apart? Asked once of each model, with a probe of two short documents.

A packed row tells its documents by `position_ids` that restart. Most architectures of transformers make their attention
mask from them when they get neither a mask nor a cache. Some do not look at them (gpt_oss, Falcon, OPT, bloom), and
some carry a state across the border (lfm2, qwen3_next, mamba). FlashAttention looks only when the batch is one row.

Invariant: a model that lets packed documents see each other is refused before it has learned anything from them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from curator.errors import TrainingError

_LENGTH = 6
"""Tokens of each document of the probe."""

_known: "WeakSet[torch.nn.Module]" = WeakSet()


def is_packed(batch: Mapping[str, Any]) -> bool:
    """Whether documents share a row: then `Collator` gives positions and no mask."""
    return "position_ids" in batch and "attention_mask" not in batch


def check_mask(batch: Mapping[str, Any]) -> None:
    """Refuse a plain attention mask beside positions that restart: with it transformers does not look at positions.

    Collators that pad add one by themselves, such as `DataCollatorWithPadding`, also to packed rows.

    Raises:
        TrainingError: a document that begins inside a row would see those before it.
    """
    mask_BT, positions_BT = batch.get("attention_mask"), batch.get("position_ids")
    if mask_BT is None or positions_BT is None or mask_BT.shape != positions_BT.shape:
        return
    begins_BT = (positions_BT[:, 1:] == 0) & (mask_BT[:, 1:] != 0) & (mask_BT[:, :-1] != 0)
    if bool(begins_BT.any()):
        raise TrainingError(
            f"the batch has an attention_mask, and position_ids that restart at {int(begins_BT.sum())} places inside "
            "its rows: with a mask transformers lets these documents see each other; use curator.training.Collator, "
            "or take attention_mask out of the batch"
        )


def check_apart(model: Any, device: torch.device) -> None:
    """Refuse a model in which one document of a packed row changes the logits of the next.

    Four forwards of twelve tokens, without gradients and in evaluation mode, the first time a model is seen.

    Raises:
        TrainingError: the documents see each other.
    """
    inner = _unwrap(model)
    if inner in _known:
        return
    with _evaluating(inner), torch.no_grad():
        packed, noise = (_second_moves(inner, rows, device) for rows in (1, 2))
    if packed > max(8 * noise, 1e-5):
        raise TrainingError(
            f"{type(inner).__name__} with attention {attention_of(model)!r} lets the documents of a packed row see "
            f"each other: a change in one moves the logits of the next by {packed:.2g} of their size; train on whole "
            "rows (curator.load without sequence_length), or load the model with another attn_implementation ('sdpa')"
        )
    _known.add(inner)


def attention_of(model: Any) -> str:
    """Name of the model's attention, such as `sdpa`; empty where it does not say."""
    return str(getattr(getattr(_unwrap(model), "config", None), "_attn_implementation", None) or "")


def _second_moves(model: Any, rows: int, device: torch.device) -> float:
    """How far the second document's logits move when the first changes, relative to their size.

    In one row that is a leak. In two rows it is rounding: experts, for one, compute the tokens of a batch together.
    """
    first, other, second = torch.arange(3 * _LENGTH, device=device).view(3, _LENGTH)
    positions = torch.arange(_LENGTH, device=device).repeat(2).view(rows, -1)
    logits: list[Tensor] = []
    for document in (first, other):
        ids = torch.cat([document, second]).view(rows, -1)
        out = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        logits.append(out.flatten(0, 1)[_LENGTH:].float())
    return float((logits[0] - logits[1]).abs().max() / logits[0].abs().max().clamp(min=1e-12))


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _unwrap(model: Any) -> Any:
    """The model below wrappers that a forward without gradients does not need."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)  # torch.compile
