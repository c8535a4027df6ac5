"""What the gradient of one optimiser step is, from the definition: float64, one document at a time, plain loops.

Shares nothing with the code under test but the weights of the model: documents are cut by a loop of its own, the loss
is written out token by token, and there are no batches, padding, packing, collators or denominators passed around.
"""

import types
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def _norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """RMSNorm without the float32 that transformers puts into it."""
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def in_double(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model in float64 throughout."""
    model = model.double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = types.MethodType(_norm, module)  # type: ignore[method-assign]
    return model


def cut(document: dict[str, Any], layout: str, lengths: dict[str, int], room: int) -> tuple[list[dict[str, Any]], int]:
    """The pieces in which a layout shows a document, and the room left in the packed row."""
    size = len(document["input_ids"])
    if layout in ("padded", "packed"):  # whole documents
        return [document], room
    if layout == "truncated":
        return [{name: values[: lengths[layout]] for name, values in document.items()}], room
    pieces, begin = [], 0
    while True:  # a piece goes on with the last token of the one before
        end = min(size, begin + room)
        pieces.append({name: values[begin:end] for name, values in document.items()})
        room = room - (end - begin) or lengths[layout]
        if end == size:
            return pieces, room
        begin = end - 1


def losses(model: LlamaForCausalLM, ids: Any) -> list[torch.Tensor]:
    """Minus log p(token t | tokens before), t = 1, 2, ..., of one piece alone."""
    logits = model(input_ids=torch.tensor([list(map(int, ids))]), use_cache=False).logits[0]
    out = []
    for t in range(1, len(ids)):
        row = logits[t - 1]
        out.append(torch.log(torch.exp(row - row.max()).sum()) + row.max() - row[int(ids[t])])
    return out


def gradients(
    model: LlamaForCausalLM, documents: list[dict[str, Any]], layout: str, lengths: dict[str, int]
) -> dict[str, torch.Tensor]:
    """Gradient of sum(w * CE) / sum(w) over all tokens that have a context."""
    model = in_double(model)
    total, weight_sum, room = torch.zeros((), dtype=torch.float64), 0.0, lengths.get(layout, 0)
    for document in documents:
        pieces, room = cut(document, layout, lengths, room)
        for piece in pieces:
            for t, loss in enumerate(losses(model, piece["input_ids"]), start=1):
                total = total + float(piece["token_weights"][t]) * loss
                weight_sum += float(piece["token_weights"][t])
    (total / weight_sum).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def selected_gradients(
    model: LlamaForCausalLM, micro_batches: list[list[dict[str, Any]]], keep: float
) -> dict[str, torch.Tensor]:
    """Gradient of online selection: in each micro-batch the top tokens by excess loss, all of the step averaged."""
    model = in_double(model)
    chosen: list[torch.Tensor] = []
    for rows in micro_batches:
        scored = []
        for row in rows:
            for t, loss in enumerate(losses(model, row["input_ids"]), start=1):
                scored.append((float(loss.detach()) + float(row["logprobs_reference"][t]), loss))
        scored.sort(key=lambda pair: -pair[0])
        chosen += [loss for _, loss in scored[: round(keep * len(scored))]]
    (sum(chosen, torch.zeros((), dtype=torch.float64)) / len(chosen)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over all parameters, relative to the expected gradient's."""
    assert found.keys() == expected.keys()
    squared = sum(float((found[name].double() - expected[name]).pow(2).sum()) for name in expected)
    return float((squared / sum(float(g.pow(2).sum()) for g in expected.values())) ** 0.5)
