"""Any causal language model that vLLM knows, scored inside the engine by the plug-in in `vllm_plugin`.

The engine runs in the worker's own process, so that it dies with it; only tensor parallel ranks are processes apart.
This file holds the config; `local` and `vllm_arguments` resolve it and `vllm_engine` drives the engine.
"""

from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from curator.data import ModelIdentity, Scorer, StrictModel
from curator.errors import ScorerError
from curator.scorers.local import HEAD_DESCRIPTION, HeadPrecision, LocalModel, versions_of

_SET_ELSEWHERE = {
    "model": "model", "tokenizer": "model", "revision": "revision", "dtype": "dtype", "max_model_len": "context",
    "runner": "scoring", "convert": "scoring", "task": "scoring", "pooler_config": "scoring",
    "hf_overrides": "scoring", "model_class_overrides": "scoring", "load_format": "model",
}  # fmt: skip
_REFUSED = {
    "trust_remote_code": "a checkpoint's own code is never run",
    "speculative_config": "speculative decoding corrupts the log-probs of prompts",
}


class VllmArguments(StrictModel):
    """What may be set for this engine alone: `scoring`, and any engine argument of vLLM in its own name."""

    model_config = ConfigDict(extra="allow")

    scoring: Literal["auto", "in_engine", "prompt_logprobs"] = Field(
        default="auto",
        description="in_engine = a few floats per token leave the engine; prompt_logprobs = vLLM's own way, slower and "
        "without entropy; auto = in_engine where this build of vLLM can",
    )
    head: HeadPrecision = Field(default="exact", description=HEAD_DESCRIPTION)

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        for name in self.model_extra or {}:
            if name in _REFUSED:
                raise ValueError(f"{name} cannot be set: {_REFUSED[name]}")
            if name in _SET_ELSEWHERE:
                raise ValueError(f"{name} cannot be set here: it follows from {_SET_ELSEWHERE[name]!r}")
        return self


class VllmModel(LocalModel):
    """A causal language model run by vLLM; whole `gpus` above 1 are the tensor parallel ranks."""

    packages: ClassVar[tuple[str, ...]] = ("vllm", "torch")

    engine: Literal["vllm"]
    engine_args: VllmArguments = VllmArguments()

    def identify(self) -> ModelIdentity:
        """Check the checkpoint and the engine's arguments, and resolve how to score; loads no weights."""
        versions = versions_of("vllm", *self.packages)
        from curator.scorers.vllm_arguments import check_arguments, choose_scoring

        scoring = choose_scoring(self.engine_args.scoring)
        if scoring == "prompt_logprobs" and "entropy" in self.features:
            raise ScorerError("vLLM's own prompt_logprobs give no entropy; set scoring: auto, or drop the feature")
        check_arguments(self.engine_args.model_extra or {})
        return self.identify_checkpoint("vllm", f"{versions}, {scoring}")

    def build(self, identity: ModelIdentity, threads: int) -> Scorer:
        """Start the engine in this process."""
        from curator.scorers.dequantize import plain_checkpoint
        from curator.scorers.vllm_arguments import EngineSettings
        from curator.scorers.vllm_engine import VllmScorer

        settings = EngineSettings(
            model=plain_checkpoint(self.model, identity),
            identity=identity,
            features=self.features,
            head=self.engine_args.head,
            gpus=self.gpus,
            threads=threads,
            scoring="in_engine" if identity.engine_version.endswith(", in_engine") else "prompt_logprobs",
            overrides=dict(self.engine_args.model_extra or {}),
        )
        return VllmScorer(settings)
