"""Any causal language model that `transformers` knows, on a CPU or a GPU; the engine to check every other one by.

Reads a directory, a .gguf file (dequantized) or a hub model, from safetensors or GGUF only: never pickle, never a
model's own code. This file holds the config and resolves it; `causal_lm` runs the model and `head` turns its hidden
states into scores.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import Field

from curator.data import ModelConfig, ModelIdentity, Scorer, StrictModel
from curator.errors import ScorerError
from curator.scorers.checkpoint import Checkpoint, inspect_checkpoint

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_LONGEST_DEFAULT_CONTEXT = 8192


class TransformersArguments(StrictModel):
    """What may be set for this engine alone."""

    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens of a batch, padding included; null = 4,096 on a CPU, 32,768 on a GPU",
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = Field(
        default=None,
        description="null = eager for models with capped attention, a faster one for bfloat16 on some CPUs, else what "
        "transformers picks for the model, mostly sdpa",
    )


class TransformersModel(ModelConfig):
    """A causal language model run by `transformers`."""

    engine: Literal["transformers"]
    dtype: Dtype = Field(
        default="auto",
        description="of weights and activations; auto = float32 for float32 checkpoints, else bfloat16 "
        "(but float16 for float16 checkpoints on a GPU, and float32 on a CPU without bfloat16 instructions)",
    )
    engine_args: TransformersArguments = TransformersArguments()

    def tokenizer_source(self) -> str:
        """The model's own place."""
        return self.model

    def identify(self) -> ModelIdentity:
        """Check that the checkpoint is whole and safe, and resolve revision, dtype and context; loads no weights."""
        found = inspect_checkpoint(self.model, self.revision)
        return ModelIdentity(
            id=self.model,
            revision=found.revision,
            weights_digest=found.weights_digest,
            engine="transformers",
            engine_version=_engine_version(),
            dtype=_resolve_dtype(self.dtype, found.stored_type, on_gpu=self.gpus > 0),
            context=self._resolve_context(found),
            parameters=found.parameters,
        )

    def build(self, identity: ModelIdentity, threads: int) -> Scorer:
        """Load the weights and check the head against the model's own output."""
        from curator.scorers.causal_lm import CausalScorer, load_model

        model = load_model(
            self.model, identity.revision, identity.dtype, self.engine_args.attn_implementation, self.gpus > 0, threads
        )
        return CausalScorer(model, self.features, self.engine_args.batch_tokens)

    def _resolve_context(self, found: Checkpoint) -> int:
        own = found.context
        if self.context is None:
            return min(own or _LONGEST_DEFAULT_CONTEXT, _LONGEST_DEFAULT_CONTEXT)
        if own is not None and self.context > own:
            raise ScorerError(
                f"context {self.context} is longer than the {own} tokens that model {self.model!r} was made for; set "
                f"context to at most {own}, or leave it out"
            )
        return self.context


def _engine_version() -> str:
    """Versions of both libraries, as either can change a score."""
    try:
        return f"{version('transformers')}+torch{version('torch')}"
    except PackageNotFoundError as error:
        raise ScorerError(
            f"engine transformers needs {error.name}, which is not installed: install token-curator[transformers]"
        ) from error


def _resolve_dtype(dtype: Dtype, stored_type: str, *, on_gpu: bool) -> str:
    if dtype != "auto":
        return dtype
    if stored_type in ("F32", "F64"):
        return "float32"
    if on_gpu:
        return "float16" if stored_type == "F16" else "bfloat16"
    return "bfloat16" if _cpu_multiplies_bfloat16() else "float32"


def _cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 products; without them bfloat16 is emulated, slower than float32."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    lines = (line for line in info.read_text().splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, "").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
