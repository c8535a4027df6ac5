"""Explicit bounds in nats instead of a share: what is kept of one document never depends on the others."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from curator.data import Cut, FloatArray, ModelName, Scope, StrictModel
from curator.policies.weights import pick, subtract


class Threshold(StrictModel):
    """Keep the tokens whose excess loss, or loss, lies within bounds; both bounds are inclusive.

    Bounds are rounded to float16 as scores are, so a token at a bound is kept whatever the bound's last digits.
    """

    kind: Literal["threshold"] = "threshold"
    measure: Literal["excess_loss", "loss"] = Field(
        default="excess_loss", description="loss under the base less loss under the reference, or loss under `model`"
    )
    minimum: float | None = Field(default=None, ge=-65504, le=65504, description="in nats; null = no lower bound")
    maximum: float | None = Field(default=None, ge=-65504, le=65504, description="in nats; null = no upper bound")
    reference: ModelName = Field(default="reference", description="for `excess_loss`: the model trained on good data")
    base: ModelName = Field(default="base", description="for `excess_loss`: the model about to be trained")
    model: ModelName = Field(default="reference", description="for `loss`: whose loss")

    keep: ClassVar[None] = None
    scope: ClassVar[Scope] = "corpus"
    seed: ClassVar[int] = 0
    binary: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.minimum is None and self.maximum is None:
            raise ValueError("policy 'threshold' has no bound; set minimum or maximum, or use 'keep_all'")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(
                f"minimum {self.minimum} is above maximum {self.maximum}: nothing could be kept; swap them"
            )
        return self

    def columns(self) -> tuple[str, ...]:
        """The log-probs that the measure reads."""
        names = (self.reference, self.base) if self.measure == "excess_loss" else (self.model,)
        return tuple(f"logprobs_{name}" for name in names)

    def score(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """The measure itself in nats, shape (T,); with an upper bound, higher is not better."""
        logprobs = [pick(columns, name, self.kind) for name in self.columns()]
        return subtract(*logprobs) if self.measure == "excess_loss" else np.negative(logprobs[0])

    def weigh(self, score_T: FloatArray, cut: Cut, tie_T: FloatArray) -> FloatArray:
        """1.0 within the bounds, else 0.0, shape (T,); `cut` and `tie_T` are not read."""
        low, high = (np.float32(np.float16(bound)) for bound in (self._low(), self._high()))
        return ((score_T >= low) & (score_T <= high)).astype(np.float32)

    def _low(self) -> float:
        return -np.inf if self.minimum is None else self.minimum

    def _high(self) -> float:
        return np.inf if self.maximum is None else self.maximum
