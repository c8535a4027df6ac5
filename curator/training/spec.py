"""The spec of a training run: what `curator train-reference` reads."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from curator.corpora import CorpusConfig
from curator.data import StrictModel
from curator.tokens.tokenizer import TokensConfig

Say = Callable[[str], None]
"""Takes one line of progress."""


class TrainSpec(StrictModel):
    """How to train a reference. Training ends at whichever of `epochs`, `max_steps`, `max_minutes` comes first."""

    base: str = Field(min_length=1, description="model to start from: hub name, directory or .gguf file")
    revision: str | None = Field(default=None, description="hub revision; null = the default branch")
    corpus: CorpusConfig = Field(description="the good data, as in a curation spec; held in memory, 4 bytes a token")
    output: str = Field(min_length=1, description="directory of the reference; must be absent or empty")
    tokens: TokensConfig = Field(default=TokensConfig(), description="as in the curation spec that will score with it")
    sequence_length: int = Field(default=1024, ge=2, description="tokens per row; longer documents are cut into rows")
    epochs: float = Field(default=3.0, gt=0, description="passes over the good data")
    max_steps: int | None = Field(default=None, ge=1, description="optimiser steps at most")
    max_minutes: float | None = Field(default=None, gt=0, description="minutes of training at most, loading excluded")
    learning_rate: float = Field(default=5e-5, gt=0, description="at the start; it falls to 0 along a cosine")
    batch_tokens: int = Field(default=8192, ge=2, description="tokens per optimiser step, about")
    micro_batch_tokens: int = Field(default=2048, ge=2, description="tokens per forward; bounds memory, not results")
    eval_fraction: float = Field(default=0.05, ge=0, lt=1, description="share of the tokens held out to measure loss")
    seed: int = Field(default=0, ge=0, description="of the held-out documents and of the order")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="of the matrix products; weights and optimiser stay float32. auto = bfloat16 where the hardware "
        "multiplies it (measured 3x faster on a CPU with avx512_bf16), else float32",
    )
