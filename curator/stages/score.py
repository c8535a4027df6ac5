"""Score token shards with one model: windows in, one row-aligned score per token out.

One worker holds one engine for the whole run. Batches never cross shards, so what a shard's file holds depends on
nothing but the shard. Log-probs are stored as float16: rounding costs about 4e-4 nats on average.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from curator import storage, tables
from curator.data import Feature, IntArray, ModelIdentity, Scorer, TokenScores
from curator.errors import ScorerError
from curator.manifest import ScoreReceipt, ShardFolder, publish_shard, start_receipt
from curator.plan import ShardRef
from curator.scorers import ScorerConfig
from curator.tokens.windows import cut_windows, stitch

_FEATURE_DTYPES = {"entropy": np.float16, "rank": np.int32}


@dataclass(frozen=True)
class TokenRows:
    """The ids of one shard: `ids_T` end to end, `offsets` (D+1,), and the rows of each row group."""

    ids_T: IntArray
    offsets: np.ndarray
    group_rows: tuple[int, ...]


@dataclass(frozen=True)
class ScoreStage:
    """Everything a worker needs to score any shard with one model."""

    tokens: ShardFolder
    folder: ShardFolder
    name: str
    config: ScorerConfig
    identity: ModelIdentity
    has_bos: bool
    threads: int

    def open(self) -> None:
        """Start the engine."""
        object.__setattr__(self, "_engine", self.config.build(self.identity, self.threads))

    def load(self, task: ShardRef) -> TokenRows:
        """Read the shard's token ids."""
        return read_token_ids(self.tokens, task.number)

    def run(self, task: ShardRef, inputs: TokenRows, on_tokens: Callable[[int], None]) -> ScoreReceipt:
        """Score every token once and publish the score shard."""
        engine: Scorer = self.__dict__["_engine"]
        measure = start_receipt()
        scores = score_documents(
            engine, split_rows(inputs.ids_T, inputs.offsets), self.identity.context, self.identity.left_context,
            self.has_bos, on_tokens,
        )  # fmt: skip
        check_scores(scores, self.name, task.number)
        with storage.staged_file(self.folder.root) as staged:
            write_scores(staged, scores, inputs, self.config.features)
            receipt = ScoreReceipt(
                number=task.number, rows=len(scores), tokens=len(inputs.ids_T), notes=engine.notes(), **measure()
            )  # fmt: skip
            return publish_shard(self.folder, staged, receipt)


def read_token_ids(folder: ShardFolder, number: int) -> TokenRows:
    """Read the `input_ids` of a token shard."""
    with folder.open(number) as parquet:
        metadata = parquet.metadata
        ids_T, offsets = tables.flat(parquet.read(columns=["input_ids"]).column("input_ids"))
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    return TokenRows(ids_T, offsets, groups)


def split_rows(ids_T: IntArray, offsets: np.ndarray) -> list[IntArray]:
    """Views of each document's ids."""
    return [ids_T[start:stop] for start, stop in pairwise(offsets)]


def score_documents(
    engine: Scorer,
    documents: list[IntArray],
    context: int,
    left_context: int,
    has_bos: bool,
    on_tokens: Callable[[int], None],
) -> list[TokenScores]:
    """Score whole documents, those longer than the context in overlapping windows.

    Args:
        engine: a running scorer.
        documents: token ids, shape (T,) each.
        context: the model's window in tokens.
        left_context: context in tokens that every token of a later window has at least.
        has_bos: documents start with a BOS, which later windows repeat.
        on_tokens: called as work advances.

    Returns:
        One score per document, index 0 NaN.
    """
    plans, sequences = cut_windows(documents, context, left_context, has_bos)
    return stitch(documents, plans, engine.score(sequences, on_tokens))


def check_scores(scores: list[TokenScores], model: str, shard: int) -> None:
    """Refuse scores that would pass for "unscored" or spoil a histogram: only index 0 may be NaN, none infinite."""
    for row, document in enumerate(scores):
        if not np.isfinite(document.logprobs_T[1:]).all():
            t = 1 + int(np.flatnonzero(~np.isfinite(document.logprobs_T[1:]))[0])
            value = document.logprobs_T[t]
            raise ScorerError(
                f"model {model!r} gave log-prob {value} for token {t} of row {row} in shard {shard:05d}; "
                "try dtype float32, or check the model's weights"
            )


def write_scores(path: object, scores: list[TokenScores], rows: TokenRows, features: tuple[Feature, ...]) -> None:
    """Write a score shard with the row groups of its token shard."""
    schema = tables.score_schema(features)
    with tables.open_writer(path, schema) as writer:
        start = 0
        for count in rows.group_rows:
            part = scores[start : start + count]
            offsets = rows.offsets[start : start + count + 1] - rows.offsets[start]
            columns = [tables.list_array(_join([s.logprobs_T for s in part], np.float16), offsets)]
            for feature in schema.names[1:]:
                arrays = [getattr(s, f"{feature}_T") for s in part]
                columns.append(tables.list_array(_join(arrays, _FEATURE_DTYPES[feature]), offsets))
            writer.write_table(pa.table(columns, schema=schema))
            start += count


def _join(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.nan_to_num(a, nan=0) if dtype is np.int32 else a for a in arrays]).astype(dtype)
