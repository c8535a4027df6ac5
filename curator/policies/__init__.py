"""Selection methods: one file each, and one line each in `PolicyConfig`.

A policy holds its settings and two pure functions, `score` and `weigh` (see `curator.data.Policy`). What population
the cut is taken over is the business of `curator.selection`.
"""

from typing import Annotated, get_args

from pydantic import Field

from curator.data import Feature, Policy
from curator.policies.excess_loss import ExcessLoss
from curator.policies.keep_all import KeepAll
from curator.policies.loss import Loss
from curator.policies.noise import Noise
from curator.policies.random import RandomTokens
from curator.policies.threshold import Threshold

PolicyConfig = Annotated[
    ExcessLoss
    | Loss
    | Threshold
    | Noise
    | RandomTokens
    | KeepAll,
    Field(discriminator="kind"),
]  # fmt: skip


def policy_features(policy: Policy) -> dict[str, tuple[str, Feature]]:
    """What the policy reads of models besides log-probs: by its name for it the model and the stored column."""
    return {
        column: (column.removeprefix(f"{feature}_"), feature)
        for column in policy.columns()
        for feature in get_args(Feature)
        if column.startswith(f"{feature}_")
    }
