"""What every trainer is held to: gradients computed in float64, document by document, from the weights themselves.

A script of this folder runs in its trainer's own environment. It trains a tiny model for one step on exported files
with the trainer's own data pipeline and loss, then hands gradients (or the update) to `check`. The oracle is a plain
loop: sum over documents of sum over t >= 1 of w_t * CE_t, divided by the sum of those w_t. It needs torch and numpy.

Usage of every script: train.py CANARY_FOLDER, as made by make_canary.py; it exits non-zero on failure.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

TOLERANCE = 1e-6
"""Greatest relative difference of gradients in float32."""

SENSITIVITY = 100 * TOLERANCE
"""Smallest relative difference that each known mistake must make here, or the comparison would prove nothing."""

LEARNING_RATE = 100.0
"""Of one SGD step; large, so that rounding of the parameters does not hide the gradient in the update."""

SEQUENCE_LENGTH = 64
VOCABULARY = 1024
END_OF_TEXT = 0

Logits = Callable[[nn.Module, Tensor], Tensor]
"""Gives logits (1, T, V) for ids (1, T) of one document."""


@dataclass(frozen=True)
class Document:
    """One document: ids and token-aligned weights, each of shape (T,)."""

    input_ids: Tensor
    token_weights: Tensor


def canary_folder() -> Path:
    """The folder named on the command line."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "truth").is_dir():
        sys.exit("usage: train.py FOLDER, made by make_canary.py")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return Path(sys.argv[1]).resolve()


def load_example(name: str) -> ModuleType:
    """An example of this repository as a module; by path, so that its neighbours cannot hide installed packages."""
    path = Path(__file__).resolve().parents[2] / "examples" / "trainers" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def read_documents(folder: Path, name: str) -> list[Document]:
    """Documents of the dataset `hard` or `soft`, from the truth beside the exports."""
    truth = np.load(folder / "truth" / f"{name}.npz")
    lengths = truth["lengths"].tolist()
    ids = torch.from_numpy(truth["input_ids"]).split(lengths)
    weights = torch.from_numpy(truth["token_weights"]).split(lengths)
    return [Document(*pair) for pair in zip(ids, weights, strict=True)]


def pieces(documents: list[Document], length: int) -> Iterator[Document]:
    """Documents cut as packing cuts them: a piece that goes on begins with the last token of the one before."""
    room = length
    for document in documents:
        start, total = 0, len(document.input_ids)
        while True:
            stop = min(total, start + room)
            weights = document.token_weights[start:stop].clone()
            weights[0] = 0
            yield Document(document.input_ids[start:stop], weights)
            room = room - (stop - start) or length
            if stop == total:
                break
            start = stop - 1


def cut(documents: list[Document], length: int) -> list[Document]:
    """Documents cut to a length, each by itself; a piece begins with the last token of the one before."""
    parts = []
    for document in documents:
        for start in range(0, max(1, len(document.input_ids) - 1), length - 1):
            weights = document.token_weights[start : start + length].clone()
            weights[0] = 0
            if weights.any():
                parts.append(Document(document.input_ids[start : start + length], weights))
    return parts


def windows(documents: list[Document], length: int) -> list[Document]:
    """Packed sequences of one length, for models that attend to all of a window; the last one is shorter."""
    joined: list[list[Document]] = [[]]
    for piece in pieces(documents, length):
        if sum(len(part.input_ids) for part in joined[-1]) == length:
            joined.append([])
        joined[-1].append(piece)
    return [
        Document(torch.cat([p.input_ids for p in parts]), torch.cat([p.token_weights for p in parts]))
        for parts in joined
    ]


def expected_gradients(model: nn.Module, documents: list[Document], logits: Logits) -> dict[str, Tensor]:
    """Gradients of the weighted mean loss in float64, by parameter name; the model has none when this returns.

    The model itself is turned into float64 and back, which is exact: not all models can be copied.
    """
    model.double().zero_grad(set_to_none=True)
    total = sum(float(document.token_weights[1:].sum()) for document in documents)
    for document in documents:
        if not document.token_weights[1:].any():
            continue
        logprobs = torch.log_softmax(logits(model, document.input_ids[None])[0, :-1].double(), dim=-1)
        losses = -logprobs.gather(1, document.input_ids[1:, None]).squeeze(1)
        (losses @ document.token_weights[1:].double() / total).backward()
    exact = gradients(model)
    model.float().zero_grad(set_to_none=True)
    return exact


def check(title: str, model: nn.Module, seen: dict[str, Tensor], documents: list[Document], logits: Logits) -> None:
    """Compare gradients with the oracle, and the oracle with the mistakes that it must tell apart.

    Exits with status 1 when they differ by more than `TOLERANCE`.
    """
    expected = expected_gradients(model, documents, logits)
    difference = relative(seen, expected)
    print(f"{title}: relative difference to the float64 oracle {difference:.1e}")
    weights = [document.token_weights for document in documents]
    soft = any(((one != 0) & (one != 1)).any() for one in weights)
    for mistake, change in (MISTAKES | (MISTAKES_OF_SOFT_WEIGHTS if soft else {})).items():
        wrong = [Document(d.input_ids, one) for d, one in zip(documents, change(weights), strict=True)]
        distance = relative(expected_gradients(model, wrong, logits), expected)
        if distance < SENSITIVITY:
            sys.exit(f"{title}: the canary cannot tell '{mistake}' from the truth ({distance:.1e})")
    if not difference < TOLERANCE:
        sys.exit(f"{title}: FAILED, more than {TOLERANCE}")


def relative(seen: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of what was expected, over all parameters together."""
    if seen.keys() != expected.keys():
        sys.exit(f"gradients of other parameters: {sorted(seen.keys() ^ expected.keys())}")
    error = sum(float((seen[name].double() - value).square().sum()) for name, value in expected.items())
    return (error / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


def updated(folder: Path, after: dict[str, Tensor], learning_rate: float) -> tuple[nn.Module, dict[str, Tensor]]:
    """The canary's Llama, and the gradient that an SGD step must have had to lead to the parameters `after`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = {name: value.detach() for name, value in model.named_parameters()}
    if before.keys() != after.keys():
        sys.exit(f"saved other parameters: {sorted(before.keys() ^ after.keys())}")
    return model, {name: (value.double() - after[name].double()) / learning_rate for name, value in before.items()}


def causal_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of a transformers model."""
    return model(ids).logits


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that a model has now, by parameter name."""
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


Change = Callable[[list[Tensor]], list[Tensor]]
"""What a mistake makes of the weights of all documents."""


def _of_each(change: Callable[[Tensor], Tensor]) -> Change:
    def changed(weights: Tensor) -> Tensor:
        weights = change(weights.clone())
        weights[0] = 0
        return weights

    return lambda all_weights: [changed(weights) for weights in all_weights]


def _mean_of_groups(weights: list[Tensor]) -> list[Tensor]:
    """As if each micro-batch of three were averaged by itself: each group's weights then sum to the same."""
    groups = [weights[start : start + 3] for start in range(0, len(weights), 3)]
    sums = [sum(float(one[1:].sum()) for one in group) for group in groups]
    return [one / (total or 1.0) for group, total in zip(groups, sums, strict=True) for one in group]


MISTAKES: dict[str, Change] = {
    "weights ignored": _of_each(torch.ones_like),
    "no shift": _of_each(lambda weights: torch.roll(weights, 1)),
    "shifted twice": _of_each(lambda weights: torch.roll(weights, -1)),
    "mean of groups": _mean_of_groups,
}
MISTAKES_OF_SOFT_WEIGHTS: dict[str, Change] = {
    "weights cut to integers": _of_each(torch.trunc),
    "weights in bfloat16": _of_each(lambda weights: weights.bfloat16().to(weights.dtype)),
}
