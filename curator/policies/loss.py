"""The loss under one model: keep what it finds likely (self-reference), or what it finds hard."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from curator.data import Cut, FloatArray, ModelName, Scope, StrictModel
from curator.policies.weights import Soft, pick, weigh


class Loss(StrictModel):
    """Keep the tokens with the lowest (or highest) loss under one model."""

    kind: Literal["loss"] = "loss"
    model: ModelName = Field(default="reference", description="whose loss")
    prefer: Literal["lowest", "highest"] = Field(default="lowest", description="which end to keep")
    keep: float = Field(default=0.6, gt=0, le=1, description="share of the scored tokens to keep")
    scope: Scope = Field(default="corpus", description="the population over which `keep` holds")
    soft: Soft | None = Field(default=None, description="null = weights 0 or 1")
    seed: int = Field(default=0, description="breaks ties at the cut")

    @property
    def binary(self) -> bool:
        """Whether weights are 0 or 1."""
        return self.soft is None

    def columns(self) -> tuple[str, ...]:
        """The model's log-probs."""
        return (f"logprobs_{self.model}",)

    def score(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Log-prob in nats, shape (T,), or its negative, the loss, when the highest loss is preferred."""
        logprobs_T = pick(columns, f"logprobs_{self.model}", self.kind)
        return logprobs_T if self.prefer == "lowest" else np.negative(logprobs_T)

    def weigh(self, score_T: FloatArray, cut: Cut, tie_T: FloatArray) -> FloatArray:
        """Weights, shape (T,), before normalisation."""
        return weigh(score_T, cut, tie_T, self.soft)
