"""What an efficacy run is made of: the size of its models, its data, and where the prepared parts lie."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size:
    """A model and how long it is trained; tokens are positions forwarded.

    Attributes:
        step_tokens: positions of one optimiser step.
        base_tokens: positions that the base is trained on, at most two passes over its part of the mix.
        base_decay: last share of the base's training, in which its rate falls to 0.
        steps: optimiser steps of every arm.
        retain_documents: of held-out mix, which the base's training is watched on.
        guard_documents: those of them that every arm is measured on at each look.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    sequence_length: int
    step_tokens: int
    base_tokens: int
    base_rate: float
    base_decay: float
    reference_rate: float
    steps: int
    rate: float
    target_documents: int
    retain_documents: int
    guard_documents: int

    @property
    def config(self) -> LlamaConfig:
        """The model's architecture."""
        return LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.heads, intermediate_size=self.feed_forward,
            max_position_embeddings=max(1024, self.sequence_length), tie_word_embeddings=True, bos_token_id=0,
            eos_token_id=0, initializer_range=0.02, rope_theta=10000.0,
        )  # fmt: skip


SIZES = {
    "smoke": Size(64, 2, 2, 172, 1024, 128, 1024, 200_000, 3e-3, 0.7, 2e-3, 20, 1e-3, 20, 10, 10),
    "4m": Size(224, 6, 7, 608, 4096, 256, 2048, 12_000_000, 2e-3, 0.7, 5e-4, 300, 1e-4, 300, 150, 50),
    "124m": Size(768, 12, 12, 2048, 16384, 1024, 65_536, 400_000_000, 6e-4, 0.7, 1e-4, 1000, 1e-4, 1319, 300, 300),
}


@dataclass(frozen=True)
class Setting:
    """One size over one folder of data; everything prepared lies in `folder`."""

    size_name: str
    data: Path
    folder: Path

    @property
    def size(self) -> Size:
        """The model and its training."""
        return SIZES[self.size_name]

    def describe(self) -> dict[str, Any]:
        """What decides the results."""
        return {"size": self.size_name, **asdict(self.size), "device": self.device.type, "torch": torch.__version__}

    @property
    def device(self) -> torch.device:
        """A GPU if there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def path(self, *names: str) -> Path:
        """A prepared part."""
        return self.folder.joinpath(*names)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a plain JSON Lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
