"""Say from one training step whether a trainer used the weights: which gradient did its update follow?

The update of the canary (parameters after minus before) is compared with every candidate gradient (see
`candidates`) in two ways: as the step of a plain optimiser, which goes along -g, and as the first step of the
Adam family, which goes along -sign(g). A candidate's misfit is the sine of its angle to the update. The learning rate
and any scaling of the loss fall out.

Weight decay pulls along the parameters themselves, so that direction is left out of the comparison.

Invariant: `correct` is only said when it explains nearly all of the update, and when nothing that is wrong explains it
about as well; what is too small to show is named. For signs, only those entries count whose sign every candidate is
sure of. This module imports torch, transformers and safetensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from curator.training.check.candidates import CORRECT, SMOOTHED, Candidate, make_candidates
from curator.training.check.files import read_canary, read_checkpoint

SGD, ADAM = "SGD", "Adam"
HARMLESS = (CORRECT, "weights in bf16", SMOOTHED)
"""What may fit as well as the correct gradient: it is told, as few optimisers show a difference of 0.3%."""

_NOTHING = (
    "nothing was trained: the parameters are those of the canary (a learning rate of 0 during warm-up, or a checkpoint "
    "from before the step?)"
)
_UNKNOWN = (
    "more than one step, clipping of single entries, dropout, a fault that is not known here, or an "
    "optimiser that is neither SGD-like nor Adam-like?"
)
_FITS = 0.45  # sine of the angle: cosine 0.89
_ALIKE = 1.5  # a candidate whose misfit is below this times the best one's is not told apart from it
_NOISE = 1e-5
_UNEXPLAINED = 1e-3  # far above what a step in float32 leaves
_SOUND = {SGD: 0.02, ADAM: 0.1}  # two to four times what mixed precision leaves of a right step
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
        OutputError: the folder is no sound canary, or the checkpoint no sound safetensors.
        TrainingError: the checkpoint has not all of the canary's parameters.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny products: threads only wait for each other, 20 times as long
    try:
        return _check(folder, checkpoint)
    finally:
        torch.set_num_threads(threads)


def _check(folder: Path, checkpoint: Path) -> Verdict:
    model, rows, end_id, padding_id = read_canary(folder)
    after, types = read_checkpoint(checkpoint, model)
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in types)
    notes = () if types == (torch.float32,) else (f"the checkpoint is in {names}: small updates are lost in rounding",)
    before_P = torch.cat([p.detach().flatten() for p in model.parameters()])
    after_P = torch.cat([after[name].double().flatten() for name, _ in model.named_parameters()])
    update_P = after_P - before_P
    if not bool(torch.isfinite(update_P).all()):
        return Verdict(False, "the trained parameters hold NaN or infinity", (), notes)
    if _is_untrained(before_P, after_P):
        return Verdict(False, _NOTHING, (), notes)
    candidates = make_candidates(model, rows, end_id, padding_id)
    return judge(update_P, candidates, notes, before_P, _share_of_rounding(before_P, update_P, types))


def _is_untrained(before_P: Tensor, after_P: Tensor) -> bool:
    """Whether only rounding moved the parameters: saving or loading in another type does."""
    if float((after_P - before_P).norm()) <= 1e-9 * float(before_P.norm()):
        return True
    return any(torch.equal(after_P, before_P.to(dtype).double()) for dtype in (torch.bfloat16, torch.float16))


def _share_of_rounding(before_P: Tensor, update_P: Tensor, types: tuple[torch.dtype, ...]) -> float:
    """About which part of the update the rounding of stored parameters is."""
    unit = max(torch.finfo(dtype).eps if dtype.is_floating_point else 1.0 for dtype in types) / 4
    return float(unit * before_P.norm() / update_P.norm())


def judge(
    update_P: Tensor,
    candidates: list[Candidate],
    notes: tuple[str, ...] = (),
    before_P: Tensor | None = None,
    rounding: float = 0.0,
) -> Verdict:
    """Which candidates fit the update, and what follows.

    Args:
        update_P: parameters after minus before, float64.
        candidates: what it may have followed.
        notes: to pass on.
        before_P: parameters before, along which weight decay pulls; None = it is not looked for.
        rounding: the part of the update that the rounding of parameters is, about.
    """
    fits = sorted(_measure(update_P, candidates, before_P), key=lambda fit: fit.misfit)
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
            return Verdict(False, f"cannot tell apart: {names}; {_clearer(best, rounding)}", ranked, notes)
        if best.misfit > _SOUND[best.optimizer]:
            summary = f"{best.misfit:.0%} of the update is not explained by the weights alone"
            return Verdict(False, f"{summary} ({_UNKNOWN}); {_clearer(best, rounding)}", ranked, notes)
        notes = (*notes, *_not_excluded(best, fits, limit, rounding))
        return Verdict(True, "the weights reach the loss", ranked, notes)
    if len(alike) > 1:
        return Verdict(
            False, f"the weights do not reach the loss as they should; this looks like: {names}", ranked, notes
        )
    return Verdict(False, f"this looks like: {best.name}: {best.says}", ranked, notes)


def _not_excluded(best: Fit, fits: list[Fit], limit: float, rounding: float) -> Iterator[str]:
    """What a sound verdict leaves open."""
    alike = {fit.name: fit for fit in fits if fit.misfit <= limit}
    if "weights in bf16" in alike:
        yield "whether weights were rounded to bfloat16 does not show with this optimiser or precision"
    if SMOOTHED in alike:
        yield f"label smoothing is not excluded: that {alike[SMOOTHED].says} would hardly show here"
    if best.misfit > _UNEXPLAINED:
        yield (
            f"{best.misfit:.1%} of the update is not explained: something besides that is no larger would not show; "
            f"{_clearer(best, rounding)}"
        )


def _clearer(best: Fit, rounding: float) -> str:
    """What to do so that more can be said."""
    if rounding > 0.3 * best.misfit:
        return "the step is hardly larger than the rounding of parameters: raise the learning rate, save in float32"
    optimizer = "" if best.optimizer == SGD else ", with SGD"
    return f"train in float32{optimizer}, without mixed precision, dropout, clipping or a loss term besides"


def _measure(update_P: Tensor, candidates: list[Candidate], before_P: Tensor | None) -> list[Fit]:
    decay_P = torch.zeros_like(update_P) if before_P is None else before_P
    fits = [_fit(candidate, SGD, update_P, -candidate.gradient_P, decay_P) for candidate in candidates]
    sure_P = torch.ones_like(update_P, dtype=torch.bool)
    for candidate in candidates:
        sizes_P = candidate.gradient_P.abs()
        sure_P &= sizes_P > _SURE * sizes_P.max()
    if bool(sure_P.any()):
        update_S, decay_S = update_P[sure_P], decay_P[sure_P]
        fits += [_fit(c, ADAM, update_S, -c.gradient_P[sure_P].sign(), decay_S) for c in candidates]
    return fits


def _fit(candidate: Candidate, optimizer: str, update: Tensor, step: Tensor, decay: Tensor) -> Fit:
    update, step = _unit(_without(update, decay)), _unit(_without(step, decay))
    cosine = float(update @ step)
    misfit = float((update - cosine * step).norm()) if cosine > 0 else 1.0  # 1 - cosine^2 would lose its small values
    return Fit(candidate.name, candidate.says, optimizer, cosine, misfit)


def _without(vector: Tensor, direction: Tensor) -> Tensor:
    direction = _unit(direction)
    rest: Tensor = vector - (vector @ direction) * direction
    return rest


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm().clamp(min=1e-300)
    return unit
