"""How a score becomes a weight, once the cut is known: hard or soft, the same for every policy that cuts.

Invariants: weights are float32 in [0, 1] before normalisation, they never fall as the score rises, and an unscored
token (NaN) gets 0. Scores arrive rounded to float16 (see `curator.selection.histogram`), so equality with the cut
is exact. Shape T: tokens.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from curator.data import Cut, FloatArray, Scope, StrictModel
from curator.errors import PolicyError

UNIFORM = "uniform"
"""Column that selection supplies itself: a reproducible uniform number in [0, 1) for each token that has context."""


class Soft(StrictModel):
    """Weights that rise smoothly through the cut, instead of the indicator.

    With s the score, c the cut and T the temperature, in the score's unit:

    - `sigmoid`: 1 / (1 + exp(-(s - c) / T)); every scored token keeps some weight. The soft reweighting that Rho-1
      leaves as future work (Lin et al. 2024, arXiv:2404.07965, section 5).
    - `linear`: (s - c) / (2 T) + 1/2, clipped to [0, 1]; tokens below c - T are dropped, those above c + T count
      in full.

    Both give the cut itself 1/2 and tend to the hard weights as T goes to 0.
    """

    form: Literal["sigmoid", "linear"] = Field(description="shape of the rise: sigmoid or linear")
    temperature: float = Field(gt=0, allow_inf_nan=False, description="width of the rise, in the score's unit (nats)")


class KeepShare(StrictModel):
    """What the policies have in common that keep the best-scored share of the tokens, hard or soft."""

    kind: str
    keep: float = Field(default=0.6, gt=0, le=1, description="share of the scored tokens to keep")
    scope: Scope = Field(default="corpus", description="the population over which `keep` holds")
    soft: Soft | None = Field(default=None, description="null = weights 0 or 1")
    seed: int = Field(default=0, description="breaks ties at the cut")

    @property
    def binary(self) -> bool:
        """Whether weights are 0 or 1."""
        return self.soft is None

    def weigh(self, score_T: FloatArray, cut: Cut, tie_T: FloatArray) -> FloatArray:
        """Weights, shape (T,), before normalisation."""
        return weigh(score_T, cut, tie_T, self.soft)


def weigh(score_T: FloatArray, cut: Cut, tie_T: FloatArray, soft: Soft | None) -> FloatArray:
    """Weigh tokens by a cut: hard when `soft` is None, else in the form that it names.

    Hard weights are the indicator I_k% of Rho-1 (arXiv:2404.07965, eq. 5), with the cut taken over the caller's scope
    instead of a training batch.

    Args:
        score_T: scores rounded to float16, shape (T,), higher = keep; NaN where unscored.
        cut: the score at the boundary and the share to keep of the tokens that are exactly at it.
        tie_T: tie-breaks in [0, 1), shape (T,); read only where the score equals the cut, and by hard weights only.
        soft: the form of soft weights, or None.

    Returns:
        Weights, shape (T,), before normalisation; unscored tokens get 0.

    Raises:
        PolicyError: the arrays are not one-dimensional and of one length.
    """
    if score_T.ndim != 1 or score_T.shape != tie_T.shape:
        raise PolicyError(f"scores and tie-breaks must share one flat shape (T,), got {score_T.shape}, {tie_T.shape}")
    value = np.float32(cut.value)
    if soft is None:
        kept_T = score_T > value
        kept_T |= (score_T == value) & (tie_T < cut.share)
        return kept_T.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        distance_T = np.where(score_T == value, np.float32(0), (score_T - value) / np.float32(soft.temperature))
        rising_T = 1 / (1 + np.exp(-distance_T)) if soft.form == "sigmoid" else np.clip(distance_T / 2 + 0.5, 0, 1)
    rising_T = rising_T.astype(np.float32, copy=False)
    return np.where(np.isnan(score_T), np.float32(0), rising_T)


def subtract(left_T: FloatArray, right_T: FloatArray) -> FloatArray:
    """`left_T - right_T` in float32; NaN where either is NaN or both are the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.subtract(left_T, right_T, dtype=np.float32)


def pick(columns: Mapping[str, FloatArray], name: str, kind: str) -> FloatArray:
    """The score column `name`; raises PolicyError that says what there is."""
    if name not in columns:
        raise PolicyError(f"policy '{kind}' needs the score column '{name}'; there are {sorted(columns)}")
    return columns[name]
