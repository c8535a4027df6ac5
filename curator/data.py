"""The records and small config parts that every other module shares, and the shape legend.

Shapes are written as suffixes:

    T   tokens, of one document or of many laid end to end (a flat array beside row offsets)
    D   documents (rows)
    B   sequences in a batch
    V   vocabulary

One alignment holds everywhere: index t concerns *predicting token t from the tokens before it*. A token without
context (the first of a document) has log-prob NaN and weight 0. Log-probs and losses are in nats.

Nothing here imports an engine, and nothing here knows a plug-in: plug-ins import this module, never each other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]

ModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""A model's name inside a spec; policies and column names (`logprobs_<name>`) refer to it."""

Feature = Literal["entropy", "rank"]
"""What a scorer can give for each token besides its log-prob."""


class StrictModel(BaseModel):
    """Base of every config and stored record: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="constants")


# ---------------------------------------------------------------------------------------------- corpus


class SourceFile(StrictModel):
    """One file (or one hub split) of the corpus, with what is needed to notice that it changed."""

    uri: str
    path: str = Field(description="relative to the corpus' common folder; names the row in ids and quarantine")
    size_bytes: int
    fingerprint: str = Field(description="ETag, or modification time, or the data set's own fingerprint")


UNTIL_END = 1 << 62
"""`stop` of an extent that reaches to the end of its file, whatever its unit: for samples."""


class Extent(StrictModel):
    """A contiguous part of one source file, in the unit of its reader (bytes, rows, row groups)."""

    source: int = Field(description="index into the plan's sources")
    start: int
    stop: int
    first_row: int = Field(description="number in its file of the extent's first row, from 0")
    size_bytes: int = Field(description="uncompressed bytes of the rows, as well as the format can tell")


class BadRow(StrictModel):
    """A row, or the unreadable rest of a file, that cannot become a document."""

    file: str = Field(description="the source's relative path")
    row: int | None = Field(description="row number in the file, from 0; null when a whole rest is lost")
    reason: str = Field(description="a short fixed word, such as `invalid_utf8`: the manifest counts by it")
    detail: str = Field(default="", description="what was seen, in words; never the row's own text at length")
    offset: int | None = Field(default=None, description="byte offset in the (decompressed) file, where known")


@dataclass(slots=True)
class Document:
    """One row of the corpus, checked: `text` is non-blank and encodes to UTF-8."""

    file: str
    row: int
    doc_id: str
    source: str
    text: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """How one source file is divided.

    Attributes:
        extents: contiguous parts in file order that cover every readable row, with `source` left at 0.
        streamed: the file can only be read from its beginning (gzip, zstd): one worker reads all its parts in one pass.
        damage: the part that cannot be read, found while splitting.
    """

    extents: list[Extent]
    streamed: bool = False
    damage: list[BadRow] = field(default_factory=list)


class Corpus(Protocol):
    """What every config in `corpora/` can do. Reading never executes code from a file."""

    columns: tuple[str, ...]

    def list_sources(self) -> list[SourceFile]:
        """The files in a fixed order; raises CorpusError when nothing matches."""
        ...

    def split(self, source: SourceFile, target_bytes: int) -> Split:
        """Divide one file into extents of about `target_bytes` of text; never splits a row.

        Planning calls it for several files at once, in threads.
        """
        ...

    def read(self, source: SourceFile, extents: Sequence[Extent]) -> Iterator[tuple[int, Document | BadRow]]:
        """Yield (index into `extents`, row) in file order; one pass, memory bounded by a row group or a row."""
        ...

    def columns_schema(self, sources: Sequence[SourceFile]) -> pa.Schema:
        """Arrow types of the carried `columns`, in their order; raises CorpusError naming one that is nowhere."""
        ...


# ---------------------------------------------------------------------------------------------- scores


class ModelConfig(StrictModel):
    """What every engine's config has in common."""

    has_server: ClassVar[bool] = False

    model: str = Field(description="hub name, directory or .gguf file")
    revision: str | None = Field(default=None, description="hub revision; null = the default branch")
    context: int | None = Field(default=None, ge=2, description="window in tokens; null = min(the model's own, 8192)")
    left_context: int = Field(
        default=512,
        ge=1,
        description="tokens of context that every token of a long document keeps; unless set, at most half the window",
    )
    features: tuple[Feature, ...] = Field(default=(), description="what to store besides the log-prob: entropy, rank")
    gpus: float = Field(default=0, ge=0, description="GPUs per worker; a fraction shares one")
    url: str | None = Field(default=None, description="address of the server; for engine openai alone")
    api_key_env: str | None = Field(default=None, description="variable with the API key; for engine openai alone")

    @model_validator(mode="after")
    def _refuse_server(self) -> Self:
        for name in ("url", "api_key_env"):
            if getattr(self, name) is not None and not self.has_server:
                raise ValueError(f"{name} is for engine openai; remove it, or set engine: openai")
        return self

    def version_here(self, planned: "ModelIdentity") -> str | None:
        """What `engine_version` would be, were the model planned here and now; None = not known at no cost."""
        return None

    def weights_here(self) -> str | None:
        """The `weights_digest` of weights that lie here and may change in place; None = there are none."""
        return None


class ModelIdentity(StrictModel):
    """Which model this is, exactly: resolved and frozen at planning, part of the model's stage key."""

    id: str
    revision: str | None
    weights_digest: str = Field(description="sha256 over the weight files' digests")
    engine: str
    engine_version: str
    dtype: str
    context: int = Field(description="window in tokens, resolved")
    left_context: int = Field(default=1, description="context of later windows in tokens, resolved by the plan")
    parameters: int | None = Field(default=None, description="number of parameters where cheap to know; for estimates")
    engine_reason: str | None = Field(default=None, description="why engine: auto chose this one; null = not asked")
    tokenizer_fingerprint: str | None = Field(
        default=None,
        description="the model's own tokenizer where it is not the dataset's: the model was scored on its own tokens, "
        "its log-probs were projected onto the dataset's; null = the dataset's tokenizer",
    )


@dataclass(slots=True)
class TokenScores:
    """What an engine says of one sequence: `logprobs_T` in nats, float32, NaN at index 0 and nowhere else."""

    logprobs_T: FloatArray
    entropy_T: FloatArray | None = None
    rank_T: FloatArray | None = None


class Scorer(Protocol):
    """A running engine. Every engine fills this protocol; windows and files are the stage's business.

    `score` takes sequences no longer than the model's context and returns one `TokenScores` each, in order. It
    batches as it likes within one call, never across calls. It calls `on_tokens(n)` as work advances.
    """

    def score(self, sequences: Sequence[IntArray], on_tokens: Callable[[int], None]) -> list[TokenScores]:
        """Score token sequences of shape (T,) each; raises ScorerError when the engine cannot."""
        ...

    def notes(self) -> dict[str, Any]:
        """Facts for the shard's receipt since the last call, such as batches halved after out-of-memory."""
        ...


class EngineConfig(Protocol):
    """What every config in `scorers/` can do, besides the fields of `ModelConfig`."""

    def tokenizer_source(self) -> str:
        """Where this model's tokenizer is: a hub name, a directory, a tokenizer.json or a .gguf file."""
        ...

    def identify(self) -> ModelIdentity:
        """Check that the model can be loaded, and say which it is; raises ScorerError. Loads no weights."""
        ...

    def build(self, identity: ModelIdentity, threads: int) -> Scorer:
        """Start the engine; the only place that imports it."""
        ...


# ---------------------------------------------------------------------------------------------- weights


class Cut(StrictModel):
    """Where a scope is cut: tokens above `value` are kept, and of those exactly at it the share `share`.

    `value` is a float16 score. A tied token is kept when its tie-break in [0, 1) is below `share`.
    """

    value: float
    share: float = Field(ge=0, le=1)


Scope = Literal["corpus", "source", "shard", "document"]
"""The population over which `keep` holds."""


class Policy(Protocol):
    """What every config in `policies/` can do: two pure functions and what they need.

    Attributes:
        keep: share of scored tokens to keep, or None when the policy needs no cut.
        scope: the population over which `keep` holds.
        seed: of the tie-breaks and of the column `uniform`.
        binary: weights are 0 or 1, so that kept weights average 1 as they are. Otherwise `weigh` must not read ties.
    """

    @property
    def keep(self) -> float | None: ...  # noqa: D102
    @property
    def scope(self) -> Scope: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def binary(self) -> bool: ...  # noqa: D102

    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `score` reads: `logprobs_reference`, `entropy_reference`, `uniform`, `repeated`."""
        ...

    def score(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Score tokens, shape (T,), higher = keep; NaN where any input is NaN."""
        ...

    def weigh(self, score_T: FloatArray, cut: Cut, tie_T: FloatArray) -> FloatArray:
        """Weights, shape (T,), before normalisation; NaN scores get 0."""
        ...
