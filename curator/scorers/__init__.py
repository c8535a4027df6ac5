"""The engines that say how likely each token is: one file each, one line each in the union below.

A file here holds an engine's config (`curator.data.EngineConfig`) and its scorer (`curator.data.Scorer`). It imports
the engine only inside `build` or below, so that a spec can be checked on a machine that has none. Engines know nothing
of shards, files or windows: they take token ids no longer than the model's context and return aligned scores.
"""

from typing import Annotated

from pydantic import Field

from curator.scorers.auto import AutoModel
from curator.scorers.bigram import BigramModel
from curator.scorers.openai import OpenAIModel
from curator.scorers.transformers import TransformersModel
from curator.scorers.vllm import VllmModel

ScorerConfig = Annotated[
    AutoModel | BigramModel | OpenAIModel | TransformersModel | VllmModel,
    Field(discriminator="engine"),
]
"""A model of a spec, with the engine that runs it; `engine` picks the kind."""

__all__ = ["AutoModel", "BigramModel", "OpenAIModel", "ScorerConfig", "TransformersModel", "VllmModel"]
