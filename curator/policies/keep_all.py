"""Every token that has context is kept: plain training, and a way to publish scores without choosing."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from curator.data import Cut, FloatArray, Scope, StrictModel
from curator.policies.weights import UNIFORM, pick


class KeepAll(StrictModel):
    """Weight 1 for every token but the first of each document, which has no context."""

    kind: Literal["keep_all"] = "keep_all"

    keep: ClassVar[None] = None
    scope: ClassVar[Scope] = "corpus"
    seed: ClassVar[int] = 0
    binary: ClassVar[bool] = True

    def columns(self) -> tuple[str, ...]:
        """The uniform column, for its NaN at tokens without context."""
        return (UNIFORM,)

    def score(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """0.0 for every token that has context, NaN for the others, shape (T,)."""
        uniform_T = pick(columns, UNIFORM, self.kind)
        return np.where(np.isnan(uniform_T), np.float32(np.nan), np.float32(0))

    def weigh(self, score_T: FloatArray, cut: Cut, tie_T: FloatArray) -> FloatArray:
        """1.0 for every scored token, shape (T,); `cut` and `tie_T` are not read."""
        return (~np.isnan(score_T)).astype(np.float32)
