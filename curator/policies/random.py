"""Tokens kept at random: the control that every other policy has to beat at the same share."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from curator.data import Cut, FloatArray, Scope, StrictModel
from curator.policies.weights import UNIFORM, pick, weigh


class RandomTokens(StrictModel):
    """Keep a random share of the tokens that have context; reads no model's scores."""

    kind: Literal["random"] = "random"
    keep: float = Field(default=0.6, gt=0, le=1, description="share of the tokens to keep")
    scope: Scope = Field(default="corpus", description="the population over which `keep` holds")
    seed: int = Field(default=0, description="another seed keeps other tokens")

    binary: ClassVar[bool] = True

    def columns(self) -> tuple[str, ...]:
        """One uniform number for each token, supplied by selection."""
        return (UNIFORM,)

    def score(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """The uniform number itself, shape (T,); NaN at the first token of each document."""
        return pick(columns, UNIFORM, self.kind)

    def weigh(self, score_T: FloatArray, cut: Cut, tie_T: FloatArray) -> FloatArray:
        """Weights 0.0 or 1.0, shape (T,)."""
        return weigh(score_T, cut, tie_T, soft=None)
