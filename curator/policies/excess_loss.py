"""Excess loss, the score of Rho-1: tokens that the base has still to learn and the reference says can be learnt.

Offline form of Selective Language Modeling: the base is a frozen checkpoint of the model about to be trained,
scored once, instead of the live model of every batch.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from curator.data import FloatArray, ModelName
from curator.policies.weights import KeepShare, pick, subtract


class ExcessLoss(KeepShare):
    """Keep the tokens with the highest loss under the base less loss under the reference."""

    kind: Literal["excess_loss"] = "excess_loss"
    reference: ModelName = Field(default="reference", description="the model trained on good data")
    base: ModelName = Field(default="base", description="the model about to be trained")

    def columns(self) -> tuple[str, ...]:
        """The two models' log-probs."""
        return f"logprobs_{self.reference}", f"logprobs_{self.base}"

    def score(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Excess loss in nats, shape (T,): L_base - L_reference (arXiv:2404.07965, eq. 3)."""
        reference, base = (pick(columns, name, self.kind) for name in self.columns())
        return subtract(reference, base)
