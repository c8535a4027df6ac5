"""Training with curated data: losses, trainers that use them, and training a reference model.

`from curator.training import weighted_cross_entropy, selective_loss` needs torch (extra `transformers` or `train`);
`WeightedSFTTrainer` needs TRL, `WeightedModule` and `CuratedDataModule` Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator.training.collator import Collator
    from curator.training.endless import Endless
    from curator.training.fused import (
        fused_selective_loss,
        fused_weighted_cross_entropy,
        hidden_instead_of_logits,
    )
    from curator.training.hf_trainer import WeightedTrainer
    from curator.training.lightning_data import CuratedDataModule
    from curator.training.lightning_module import WeightedModule
    from curator.training.losses import selective_loss, weighted_cross_entropy
    from curator.training.objective import Objective
    from curator.training.reference.spec import TrainSpec
    from curator.training.reference.train import train_reference
    from curator.training.trl_trainer import WeightedSFTTrainer

__all__ = [
    "Collator",
    "CuratedDataModule",
    "Endless",
    "Objective",
    "TrainSpec",
    "WeightedModule",
    "WeightedSFTTrainer",
    "WeightedTrainer",
    "fused_selective_loss",
    "fused_weighted_cross_entropy",
    "hidden_instead_of_logits",
    "selective_loss",
    "train_reference",
    "weighted_cross_entropy",
]

_HOMES = {
    "Collator": "collator",
    "CuratedDataModule": "lightning_data",
    "Endless": "endless",
    "Objective": "objective",
    "TrainSpec": "reference.spec",
    "WeightedModule": "lightning_module",
    "WeightedSFTTrainer": "trl_trainer",
    "WeightedTrainer": "hf_trainer",
    "fused_selective_loss": "fused",
    "fused_weighted_cross_entropy": "fused",
    "hidden_instead_of_logits": "fused",
    "selective_loss": "losses",
    "train_reference": "reference.train",
    "weighted_cross_entropy": "losses",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that reading a spec needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'curator.training' has no attribute {name!r}")
    value = getattr(import_module(f"curator.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
