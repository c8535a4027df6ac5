"""Say from one training step whether a trainer used the weights: which gradient did its update follow?

The update of the canary (parameters after minus before) is compared with every candidate gradient (see
`canary_candidates`) in two ways: as the step of a plain optimiser, which goes along -g, and as the first step of the
Adam family, which goes along -sign(g). A candidate's misfit is the sine of its angle to the update. The learning rate
and any scaling of the loss fall out.

Invariant: `correct` is only said when it fits, and when nothing that is wrong fits about as well. For signs, only those
entries count whose sign every candidate is sure of. This module imports torch, transformers and safetensors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from curator.errors import OutputError, TrainingError
from curator.training.canary import DATA, MODEL
from curator.training.canary_candidates import CORRECT, Candidate, Row, make_candidates

SGD, ADAM = "SGD", "Adam"
HARMLESS = (CORRECT, "weights in bf16")
"""What may fit as well as the correct gradient without harm: few optimisers show a difference of 0.3%."""

_NOTHING = (
    "nothing was trained: the parameters are those of the canary (a learning rate of 0 during warm-up, or a checkpoint "
    "from before the step?)"
)
_UNKNOWN = (
    "more than one step, weight decay, clipping of single entries, dropout, a fault that is not known here, or an "
    "optimiser that is neither SGD-like nor Adam-like?"
)
_FITS = 0.45  # sine of the angle: cosine 0.89
_ALIKE = 1.5  # a candidate whose misfit is below this times the best one's is not told apart from it
_NOISE = 1e-5
_SURE = 1e-5  # of the largest entry: far above Adam's epsilon for any usual scale of the loss


@dataclass(frozen=True)
class Fit:
    """How well one candidate explains the update.

    Attributes:
        name: the kind of fault, or `correct`.
        says: what the trainer would have done.
        optimizer: whose first step the update is compared with, SGD or Adam.
        cosine: between update and expected step; 1 = the same direction.
        misfit: sine of that angle.
    """

    name: str
    says: str
    optimizer: str
    cosine: float
    misfit: float


@dataclass(frozen=True)
class Verdict:
    """What a step says of a trainer.

    Attributes:
        sound: the weights reach the loss.
        summary: one line.
        fits: the best candidate of every kind, best first (the correct one leads those that fit alike); empty when
            there is no update to explain.
        notes: what else was seen.
    """

    sound: bool
    summary: str
    fits: tuple[Fit, ...]
    notes: tuple[str, ...] = ()


def check_trainer(folder: Path, checkpoint: Path) -> Verdict:
    """Compare a trained canary with what it was.

    Args:
        folder: what `write_canary` wrote.
        checkpoint: a folder with safetensors, or one such file, after one optimiser step.

    Raises:
        OutputError: the folder is no canary, or the checkpoint has no safetensors.
        TrainingError: the checkpoint has not all of the canary's parameters.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny products: threads only wait for each other, 20 times as long
    try:
        return _check(folder, checkpoint)
    finally:
        torch.set_num_threads(threads)


def _check(folder: Path, checkpoint: Path) -> Verdict:
    model, rows, end_id, padding_id = _read_canary(folder)
    after, notes = _read_checkpoint(checkpoint, model)
    before_P = torch.cat([p.detach().flatten() for p in model.parameters()])
    after_P = torch.cat([after[name].flatten() for name, _ in model.named_parameters()])
    update_P = after_P - before_P
    if not bool(torch.isfinite(update_P).all()):
        return Verdict(False, "the trained parameters hold NaN or infinity", (), notes)
    if float(update_P.norm()) <= 1e-9 * float(before_P.norm()):
        return Verdict(False, _NOTHING, (), notes)
    return judge(update_P, make_candidates(model, rows, end_id, padding_id), notes)


def judge(update_P: Tensor, candidates: list[Candidate], notes: tuple[str, ...] = ()) -> Verdict:
    """Which candidates fit the update, and what follows.

    Args:
        update_P: parameters after minus before, float64.
        candidates: what it may have followed.
        notes: to pass on.
    """
    fits = sorted(_measure(update_P, candidates), key=lambda fit: fit.misfit)
    kinds = {fit.name: fit for fit in reversed(fits)}
    limit = max(_ALIKE * fits[0].misfit, _NOISE)
    ranked = tuple(sorted(kinds.values(), key=lambda fit: (fit.misfit > limit, fit.name != CORRECT, fit.misfit)))
    best = ranked[0]
    if best.misfit > _FITS:
        summary = f"nothing known explains the update; closest, with cosine {best.cosine:.3f}: {best.says} ({_UNKNOWN})"
        return Verdict(False, summary, ranked, notes)
    alike = [fit for fit in ranked if fit.misfit <= limit]
    wrong = [fit for fit in alike if fit.name not in HARMLESS]
    names = " or ".join(fit.name for fit in alike)
    if any(fit.name == CORRECT for fit in alike):
        if wrong:
            return Verdict(False, f"cannot tell apart: {names}; train in float32, or with SGD", ranked, notes)
        if len(alike) > 1:
            notes = (*notes, "whether weights were rounded to bfloat16 does not show with this optimiser or precision")
        return Verdict(True, "the weights reach the loss", ranked, notes)
    if len(alike) > 1:
        return Verdict(
            False, f"the weights do not reach the loss as they should; this looks like: {names}", ranked, notes
        )
    return Verdict(False, f"this looks like: {best.name}: {best.says}", ranked, notes)


def _measure(update_P: Tensor, candidates: list[Candidate]) -> list[Fit]:
    fits = [_fit(candidate, SGD, update_P, -candidate.gradient_P) for candidate in candidates]
    sure_P = torch.ones_like(update_P, dtype=torch.bool)
    for candidate in candidates:
        sizes_P = candidate.gradient_P.abs()
        sure_P &= sizes_P > _SURE * sizes_P.max()
    if bool(sure_P.any()):
        update_S = update_P[sure_P]
        fits += [_fit(c, ADAM, update_S, -c.gradient_P[sure_P].sign()) for c in candidates]
    return fits


def _fit(candidate: Candidate, optimizer: str, update: Tensor, step: Tensor) -> Fit:
    update, step = update / update.norm().clamp(min=1e-300), step / step.norm()
    cosine = float(update @ step)
    misfit = float((update - cosine * step).norm()) if cosine > 0 else 1.0  # 1 - cosine^2 would lose its small values
    return Fit(candidate.name, candidate.says, optimizer, cosine, misfit)


# ------------------------------------------------------------------------------------------------ reading


def _read_canary(folder: Path) -> tuple[Any, list[Row], int, int]:
    files = sorted((folder / DATA / "curated").glob("*.parquet"))
    if not files or not (folder / MODEL / "config.json").is_file():
        raise OutputError(f"{str(folder)!r} is no canary; write one with `curator check-trainer write {folder}`")
    tokenizer = AutoTokenizer.from_pretrained(folder / MODEL)
    model = LlamaForCausalLM.from_pretrained(folder / MODEL, dtype=torch.float64)
    model.eval()
    rows = [
        Row(torch.tensor(row["input_ids"]), torch.tensor(row["token_weights"], dtype=torch.float64))
        for row in pq.read_table(files[0], columns=["input_ids", "token_weights"]).to_pylist()
    ]
    return model, rows, tokenizer.eos_token_id, tokenizer.pad_token_id


def _read_checkpoint(checkpoint: Path, model: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Parameters by the canary's names, float64; wrappers' prefixes are taken off."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("*.safetensors"))
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise OutputError(f"{str(checkpoint)!r} has no safetensors; save the trained model with safe serialisation")
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    found = {}
    for name, parameter in model.named_parameters():
        keys = [key for key in tensors if key == name or key.endswith(f".{name}")]
        if len(keys) != 1 or tensors[keys[0]].shape != parameter.shape:
            shapes = {key: tuple(tensors[key].shape) for key in keys}
            raise TrainingError(
                f"{str(checkpoint)!r} has {shapes or 'nothing'} for {name!r} of shape {tuple(parameter.shape)}; train "
                "all of the canary's parameters, no adapter, and save the whole model"
            )
        found[name] = tensors[keys[0]]
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found.values()} - {"float32"})
    notes = (f"the checkpoint is in {', '.join(types)}: small updates are lost in rounding",) if types else ()
    return {name: tensor.double() for name, tensor in found.items()}, notes
