"""Any causal language model that `transformers` knows, on a CPU or a GPU; the engine to check every other one by.

Reads a directory, a .gguf file (dequantized) or a hub model, from safetensors or GGUF only: never pickle, never a
model's own code. This file holds the config; `local` resolves it, `causal_lm` runs the model and `head` turns its
hidden states into scores.
"""

from typing import ClassVar, Literal

from pydantic import Field

from curator.data import ModelIdentity, Scorer, StrictModel
from curator.scorers.local import HEAD_DESCRIPTION, HeadPrecision, LocalModel, versions_of


class TransformersArguments(StrictModel):
    """What may be set for this engine alone."""

    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens of a batch, padding included; null = 4,096 on a CPU, 32,768 on a GPU",
    )
    head: HeadPrecision = Field(default="exact", description=HEAD_DESCRIPTION)
    compile: bool = Field(
        default=False,
        description="compile the layers with torch.compile: a minute or more per worker at its start, then about a "
        "tenth faster on a CPU; it pays from some millions of tokens per worker on",
    )
    packing: bool | None = Field(
        default=None,
        description="lay documents end to end instead of padding them; null = with flash attention alone, which keeps "
        "them apart at no cost",
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = Field(
        default=None,
        description="null = eager for models with capped attention, a faster one for bfloat16 on some CPUs, else what "
        "transformers picks for the model, mostly sdpa",
    )


class TransformersModel(LocalModel):
    """A causal language model run by `transformers`."""

    packages: ClassVar[tuple[str, ...]] = ("transformers", "torch")

    engine: Literal["transformers"]
    engine_args: TransformersArguments = TransformersArguments()

    def identify(self) -> ModelIdentity:
        """Check that the checkpoint is whole and safe, and resolve revision, dtype and context; loads no weights."""
        return self.identify_checkpoint("transformers", versions_of("transformers", *self.packages))

    def build(self, identity: ModelIdentity, threads: int) -> Scorer:
        """Load the weights and check the head against the model's own output."""
        from curator.scorers.causal_lm import CausalScorer, compile_layers, load_model

        model = load_model(
            self.model, identity.revision, identity.dtype, self.engine_args.attn_implementation, self.gpus > 0, threads
        )
        if self.engine_args.compile:
            compile_layers(model)
        arguments = self.engine_args
        return CausalScorer(
            model, self.features, arguments.batch_tokens, rounded=arguments.head == "rounded", packing=arguments.packing
        )
