"""The spec of a training run: what `curator train-reference` reads."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from curator.corpora import CorpusConfig
from curator.data import StrictModel
from curator.tokens.tokenizer import TokensConfig

Say = Callable[[str], None]
"""Takes one line of progress."""
Leaving = Callable[[], AbstractContextManager[Callable[[], bool]]]
"""What is open while steps are made; gives whether somebody wants this process to leave."""

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$", max_length=200)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
_MOST_EPOCHS = 1e9


class LoraOptions(StrictModel):
    """Low-rank adapters instead of whole matrices (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(default=16, ge=1, description="inner size of an adapter")
    alpha: float = Field(
        default=32.0, gt=0, allow_inf_nan=False, description="an adapter's product is multiplied by alpha / rank"
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, allow_inf_nan=False, description="share of an adapter's inputs that a step drops"
    )
    target_modules: Literal["all-linear"] | tuple[ModuleName, ...] = Field(
        default="all-linear", description="ends of the names of the layers to adapt, such as q_proj; default all linear"
    )
    keep_adapter: bool = Field(default=False, description="also leave the adapter, unmerged, in adapter/")

    @model_validator(mode="after")
    def _some_target(self) -> "LoraOptions":
        if not self.target_modules:
            raise ValueError("target_modules names no layer; list some, or leave it out for all linear ones")
        return self


class TrainRun(StrictModel):
    """How to work; may differ when a training is resumed.

    Decides nothing about what comes out but rounding and, where `lora.dropout` is set, which inputs are dropped.
    """

    workers: int = Field(
        default=1,
        ge=1,
        description="processes that share each step by data parallelism, through Ray Train; 1 = this process, or those "
        "of torchrun or accelerate launch when it is started by them",
    )
    gpus_per_worker: int = Field(default=1, ge=0, le=1, description="GPUs of each of several workers; 0 = on CPUs")
    threads_per_worker: int = Field(default=1, ge=1, description="CPU threads of each of several workers")
    address: str | None = Field(default=None, description="Ray cluster; null = RAY_ADDRESS, else a local one")
    checkpoint_minutes: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="training time between two checkpoints from which an interrupted run goes on",
    )


class TrainSpec(StrictModel):
    """How to train a reference.

    Training ends at whichever of `epochs`, `max_steps`, `max_minutes` and `patience` comes first.
    """

    base: str = Field(min_length=1, description="model to start from: hub name, directory or .gguf file")
    revision: str | None = Field(default=None, description="hub revision; null = the default branch")
    corpus: CorpusConfig | None = Field(
        default=None, description="the good data, as in a curation spec; held in memory, 4 bytes a token"
    )
    dataset: str | None = Field(
        default=None,
        min_length=1,
        description="or a curated dataset (folder or URI with manifest.json) of the base's tokenizer, whose weights "
        "then weigh the loss; held in memory, 8 bytes a token",
    )
    output: str = Field(min_length=1, description="directory of the reference; must be absent or empty")
    tokens: TokensConfig = Field(
        default=TokensConfig(),
        description="as in the curation spec that will score with it; a tokenizer named there must be the base's",
    )
    method: Literal["full", "lora"] = Field(default="full", description="train all weights, or adapters merged at last")
    lora: LoraOptions | None = Field(default=None, description="for method lora; null = rank 16 on all linear layers")
    sequence_length: int = Field(default=1024, ge=2, description="tokens per row; longer documents are cut into rows")
    epochs: float = Field(
        default=3.0, gt=0, le=_MOST_EPOCHS, allow_inf_nan=False, description="passes over the good data"
    )
    max_steps: int | None = Field(default=None, ge=1, description="optimiser steps at most")
    max_minutes: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="minutes of training at most, loading excluded"
    )
    learning_rate: float = Field(
        default=5e-5,
        gt=0,
        allow_inf_nan=False,
        description="at the start; it falls to 0 along a cosine. Adapters want about ten times more",
    )
    batch_tokens: int = Field(default=8192, ge=2, description="tokens per optimiser step, about")
    micro_batch_tokens: int = Field(
        default=2048,
        ge=2,
        description="tokens per forward, padding included, at most batch_tokens; bounds memory if it is at least "
        "sequence_length, as a longer row is a forward of its own; also decides which rows share a step, so another "
        "value gives another training",
    )
    eval_fraction: float = Field(
        default=0.05, ge=0, lt=1, allow_inf_nan=False, description="share of the tokens held out to measure loss, about"
    )
    eval_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between two measurements of the held-out loss; the step with the lowest is then what is "
        "published. null = measure before and after, publish the last step",
    )
    patience: int | None = Field(
        default=None, ge=1, description="end after so many measurements in a row without a new lowest held-out loss"
    )
    keep_checkpoints: tuple[Share, ...] = Field(
        default=(), description="shares of the run, such as 0.25, after which a copy is kept in checkpoints/"
    )
    keep_every: int | None = Field(default=None, ge=1, description="steps between two copies kept in checkpoints/")
    seed: int = Field(
        default=0, ge=0, lt=1 << 32, description="of the held-out documents, of the order and of adapters"
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="of the matrix products; weights and optimiser stay float32. auto = bfloat16 where the hardware "
        "multiplies it (measured 3x faster on a CPU with avx512_bf16), else float32",
    )
    run: TrainRun = TrainRun()

    @model_validator(mode="after")
    def _agree(self) -> "TrainSpec":
        if (self.corpus is None) == (self.dataset is None):
            found = "neither corpus nor dataset is" if self.corpus is None else "both corpus and dataset are"
            raise ValueError(f"{found} given; name the good data by exactly one of them")
        if self.dataset is not None and self.tokens != TokensConfig():
            raise ValueError("tokens is for a corpus, and a dataset has its own tokens; leave tokens out")
        if self.lora is not None and self.method != "lora":
            raise ValueError(f"lora is for method lora, and method is {self.method!r}; set method: lora, or remove it")
        if self.micro_batch_tokens > self.batch_tokens:
            raise ValueError(
                f"micro_batch_tokens: {self.micro_batch_tokens} exceeds batch_tokens: {self.batch_tokens}, and a step "
                "is at least one micro-batch; lower micro_batch_tokens"
            )
        if self.patience is not None and self.eval_every is None:
            raise ValueError(f"patience: {self.patience} counts measurements of eval_every; set eval_every, too")
        if self.eval_every is not None and self.eval_fraction == 0:
            raise ValueError(
                f"eval_every: {self.eval_every} measures held-out loss, and eval_fraction is 0; hold some out"
            )
        return self

    @property
    def adapter(self) -> LoraOptions | None:
        """The options of method lora; None for a full fine-tune."""
        return (self.lora or LoraOptions()) if self.method == "lora" else None

    def decisive(self) -> dict[str, Any]:
        """What decides the weights that come out: all but where they go and who works."""
        return self.model_dump(mode="json", exclude={"output", "run"})
