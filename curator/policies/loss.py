"""The loss under one model: keep what it finds likely (self-reference), or what it finds hard."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from curator.data import FloatArray, ModelName
from curator.policies.weights import KeepShare, pick


class Loss(KeepShare):
    """Keep the tokens with the lowest (or highest) loss under one model."""

    kind: Literal["loss"] = "loss"
    model: ModelName = Field(default="reference", description="whose loss")
    prefer: Literal["lowest", "highest"] = Field(default="lowest", description="which end to keep")

    def columns(self) -> tuple[str, ...]:
        """The model's log-probs."""
        return (f"logprobs_{self.model}",)

    def score(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Log-prob in nats, shape (T,), or its negative, the loss, when the highest loss is preferred."""
        logprobs_T = pick(columns, f"logprobs_{self.model}", self.kind)
        return logprobs_T if self.prefer == "lowest" else np.negative(logprobs_T)
