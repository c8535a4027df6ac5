"""From a spec and a corpus to a frozen plan: which bytes are in which shard, which model and tokenizer exactly.

The plan is deterministic and content-addressed: the same corpus and the same settings give the same `plan_key`,
whoever plans, so killed and repeated runs find their own work. Every `auto` of the spec is resolved here. Planning
reads a sample to learn the corpus' bytes per token, and each file once to find line ends (plain) or row counts
(compressed), several at a time; memory stays bounded by their blocks, and by one wide window of zstd.

Shards hold whole rows, about `shard_tokens` tokens each. A file that can only be streamed and is larger than a shard
gets shards of its own, which one worker fills in one pass.
"""

import base64
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from curator import storage
from curator.ahead import files_at_once, read_ahead
from curator.corpora.rows import explain_missing_text
from curator.data import (
    UNTIL_END,
    BadRow,
    Corpus,
    Document,
    Extent,
    ModelIdentity,
    SourceFile,
    StrictModel,
)
from curator.errors import CorpusError, SpecError
from curator.manifest import read_record
from curator.resolve import TokenizerIdentity, explained, resolve_models
from curator.spec import CurationSpec, digest
from curator.stored import StoredRecord
from curator.tokens.canary_text import encode_canary
from curator.tokens.tokenizer import Tokenizer

PLAN = "plan.json"
_SAMPLE_FILES = 8
_SAMPLE_BYTES_PER_FILE = 1 << 18
_SAMPLE_ROWS_PER_FILE = 200
_ROWS_THAT_TELL = 20  # fewer may all be bad by chance


class ShardRef(StrictModel):
    """One shard: the parts of source files that it holds, in order."""

    number: int
    extents: tuple[Extent, ...]
    tokens: int = Field(description="estimate from the planning sample")
    stream: int | None = Field(default=None, description="source that is read in one pass with its other shards")


class Plan(StoredRecord):
    """What a run will do, frozen before it starts."""

    plan_key: str
    content: Literal["dataset", "weights"] = Field(default="dataset", description="weights = row-aligned weights alone")
    spec: dict[str, Any] = Field(description="as given, but `output.uri` and `work` made absolute")
    sources: tuple[SourceFile, ...]
    shards: tuple[ShardRef, ...]
    damage: tuple[BadRow, ...] = Field(description="parts of files that cannot be read, found while planning")
    carried: str = Field(description="Arrow schema of corpus.columns, serialised, base64")
    tokenizer: TokenizerIdentity
    models: dict[str, ModelIdentity]
    bytes_per_token: float
    text_bytes: int = Field(description="estimate")
    canary: tuple[int, ...] = Field(default=(), description="the canary text in the dataset's tokens; empty = none")

    def carried_schema(self) -> pa.Schema:
        """Arrow types of the carried corpus columns."""
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.carried)))

    @property
    def tokens(self) -> int:
        """Estimate of all tokens."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def tokens_key(self) -> str:
        """Digest that names the folder of this tokenizer's tokens."""
        identity = self.tokenizer
        return digest([identity.fingerprint, identity.bos_id, identity.eos_id])

    def keys(self) -> dict[str, Any]:
        """The digests by stage, as the manifest records them."""
        return {
            "plan": self.plan_key,
            "tokens": self.tokens_key,
            "scores": {name: self.scores_key(name) for name in self.models},
            "select": digest(self.spec["policy"]),
        }

    def scores_key(self, name: str) -> str:
        """Digest that names the folder of one model's scores: the model, how it is run, and the tokens it sees."""
        config = self.spec["models"][name]
        how = {key: config.get(key) for key in ("features", "engine_args")}
        identity = self.models[name].model_dump(mode="json", exclude={"id", "parameters", "engine_reason"})
        if identity["tokenizer_fingerprint"] is None:
            del identity["tokenizer_fingerprint"]
        else:  # whether its own tokens have BOS and EOS
            how |= {key: self.spec["tokens"][key] for key in ("bos", "eos")}
        return digest([identity, how, self.tokens_key])

    def passes(self) -> list[tuple[ShardRef, ...]]:
        """Shards grouped into tokenisation tasks: one each, but all shards of a streamed file together."""
        groups = itertools.groupby(self.shards, key=lambda s: (s.number, None) if s.stream is None else (-1, s.stream))
        return [tuple(group) for _, group in groups]


# ------------------------------------------------------------------------------------------------ making a plan


@dataclass(frozen=True)
class Sample:
    """The first documents of some of the files, for estimates and previews."""

    documents: list[Document]
    bytes_per_token: float


def make_plan(spec: CurationSpec) -> Plan:
    """Plan a job.

    Raises:
        SpecError: something that the spec names cannot be used; the message starts with the path into the spec.
        StorageError: a file cannot be read.
    """
    corpus = spec.corpus
    with explained("corpus"):
        sources = list_sources(spec)
    tokenizer, identity, models = resolve_models(spec)
    with explained("corpus"):
        sample = read_sample(corpus, sources, tokenizer)
        carried = corpus.columns_schema(sources)
    with explained("output.columns"):
        spec.output.table_schema(carried, list(models))
    target_bytes = max(int(spec.shard_tokens * sample.bytes_per_token), 1)
    shards, damage = _cut_shards(corpus, sources, target_bytes, sample.bytes_per_token)
    if not shards and not damage:
        first = sources[0].path
        raise SpecError(f"corpus: its {len(sources)} files, {first!r} first, have no rows; check where it points")
    encoded = base64.b64encode(carried.serialize().to_pybytes()).decode()
    frozen = [spec.model_dump(mode="json")["corpus"], encoded, sources, shards]
    return Plan(
        plan_key=digest([_plain(part) for part in frozen]),
        spec=with_absolute_places(spec),
        sources=tuple(sources),
        shards=tuple(shards),
        damage=tuple(damage),
        carried=encoded,
        tokenizer=identity,
        models=models,
        bytes_per_token=sample.bytes_per_token,
        text_bytes=sum(extent.size_bytes for shard in shards for extent in shard.extents),
        canary=tuple(encode_canary(tokenizer).tolist()),
    )


def with_absolute_places(spec: CurationSpec) -> dict[str, Any]:
    """The spec as plain values, with its places absolute: whoever reads them may be in another folder."""
    content = spec.model_dump(mode="json")
    content["output"]["uri"] = spec.output_root
    content["work"] = None if spec.work is None else spec.work_root
    return content


def _plain(value: Any) -> Any:
    return [part.model_dump(mode="json") for part in value] if isinstance(value, list) else value


def list_sources(spec: CurationSpec) -> list[SourceFile]:
    """The corpus' files; raises CorpusError when they are out of a worker's reach."""
    sources = spec.corpus.list_sources()
    for uri in [source.uri for source in sources] + [spec.output.uri, spec.work_root]:
        if not storage.shared_with_workers(uri):
            raise CorpusError(f"{uri!r} lives in one process and workers cannot read it; use a file or an object store")
    return sources


def read_sample(corpus: Corpus, sources: Sequence[SourceFile], tokenizer: Tokenizer) -> Sample:
    """Read the beginning of up to eight files, spread over the corpus, and measure its bytes per token."""
    step = max(len(sources) / _SAMPLE_FILES, 1)
    chosen = [sources[int(i * step)] for i in range(min(len(sources), _SAMPLE_FILES))]
    rows = [row for source in chosen for row in _first_rows(corpus, source)]
    documents = [row for row in rows if isinstance(row, Document)]
    if rows and not documents:
        _refuse_mistakes([row for row in rows if isinstance(row, BadRow)])
    encoded = [(d, e) for d, e in zip(documents, tokenizer.encode([d.text for d in documents]), strict=True)]
    text_bytes = sum(len(d.text.encode()) for d, e in encoded if not isinstance(e, str))
    tokens = sum(len(e.input_ids) for _, e in encoded if not isinstance(e, str))
    return Sample(documents, text_bytes / tokens if tokens else 4.0)


def _refuse_mistakes(rows: list[BadRow]) -> None:
    """Raise CorpusError where it is not the rows that are bad but the spec: every one fails in the same way."""
    reasons = {bad.reason for bad in rows}
    many = len(rows) >= _ROWS_THAT_TELL and reasons <= {"not_json", "text_not_string", "invalid_utf8"}
    if len(reasons) == 1 and (many or reasons == {"missing_text"}):
        raise CorpusError(explain_missing_text(rows))


def _first_rows(corpus: Corpus, source: SourceFile) -> Iterator[Document | BadRow]:
    whole = Extent(source=0, start=0, stop=UNTIL_END, first_row=0, size_bytes=source.size_bytes)
    seen_bytes = 0
    for _, row in itertools.islice(corpus.read(source, [whole]), _SAMPLE_ROWS_PER_FILE):
        yield row
        seen_bytes += len(row.text) if isinstance(row, Document) else 0
        if seen_bytes >= _SAMPLE_BYTES_PER_FILE:
            return


def _cut_shards(
    corpus: Corpus, sources: Sequence[SourceFile], target_bytes: int, bytes_per_token: float
) -> tuple[list[ShardRef], list[BadRow]]:
    """Pack the extents of all files into shards of about `target_bytes`, in order."""
    shards: list[ShardRef] = []
    damage: list[BadRow] = []
    waiting: list[Extent] = []
    waiting_bytes = 0

    def close(stream: int | None = None) -> None:
        nonlocal waiting_bytes
        if waiting:
            tokens = round(waiting_bytes / bytes_per_token)
            shards.append(ShardRef(number=len(shards), extents=tuple(waiting), tokens=tokens, stream=stream))
            waiting.clear()
            waiting_bytes = 0

    at_once = min(files_at_once(sources[0].uri), len(sources)) if sources else 1
    splits = read_ahead(lambda source: corpus.split(source, target_bytes), sources, at_once)
    for index, split in enumerate(splits):
        damage += split.damage
        alone = split.streamed and len(split.extents) > 1
        if alone:
            close()
        for extent in split.extents:
            waiting.append(extent.model_copy(update={"source": index}))
            waiting_bytes += extent.size_bytes
            if alone or waiting_bytes >= target_bytes:
                close(index if alone else None)
    close()
    return shards, damage


def read_plan(directory: str) -> Plan | None:
    """The frozen plan of a dataset's folder, or None."""
    uri = storage.join(directory, PLAN)
    return read_record(uri, Plan) if storage.exists(uri) else None
