"""Training with curated data: losses, the collator, and training a reference model.

`from curator.training import weighted_cross_entropy, selective_loss` needs torch (extra `transformers` or `train`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator.training.collator import Collator
    from curator.training.hf_trainer import WeightedTrainer
    from curator.training.losses import selective_loss, weighted_cross_entropy
    from curator.training.reference import train_reference
    from curator.training.spec import TrainSpec

__all__ = [
    "Collator",
    "TrainSpec",
    "WeightedTrainer",
    "selective_loss",
    "train_reference",
    "weighted_cross_entropy",
]

_HOMES = {
    "Collator": "collator",
    "TrainSpec": "spec",
    "WeightedTrainer": "hf_trainer",
    "selective_loss": "losses",
    "train_reference": "reference",
    "weighted_cross_entropy": "losses",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that reading a spec needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'curator.training' has no attribute {name!r}")
    value = getattr(import_module(f"curator.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
