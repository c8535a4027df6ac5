"""Selection methods: one file each, and one line each in `PolicyConfig`.

A policy holds its settings and two pure functions, `score` and `weigh` (see `curator.data.Policy`). What population
the cut is taken over is the business of `curator.selection`.
"""

from typing import Annotated

from pydantic import Field

from curator.policies.excess_loss import ExcessLoss
from curator.policies.keep_all import KeepAll
from curator.policies.loss import Loss
from curator.policies.random import RandomTokens
from curator.policies.threshold import Threshold

PolicyConfig = Annotated[
    ExcessLoss
    | Loss
    | Threshold
    | RandomTokens
    | KeepAll,
    Field(discriminator="kind"),
]  # fmt: skip
