"""Score token shards with one model: windows in, one row-aligned score per token out.

One worker holds one engine for the whole run. Batches never cross shards, so what a shard's file holds depends on
nothing but the shard. Log-probs are stored as float16: rounding costs about 4e-4 nats on average.

A model with a tokenizer of its own scores its own tokens of the same text; its log-probs are projected onto the
dataset's (see `projected`). Before a shard is published the engine scores the canary (see `canary`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from curator import storage, tables
from curator.data import Feature, IntArray, ModelIdentity, Scorer, TokenScores
from curator.errors import ClusterError, ScorerError
from curator.manifest import ScoreReceipt, ShardFolder, publish_shard, start_receipt
from curator.plan import ShardRef
from curator.scorers import ScorerConfig
from curator.stages.canary import Canary
from curator.stages.projected import OwnTokens, project_scores, read_own_tokens
from curator.tokens.canary_text import encode_canary
from curator.tokens.tokenizer import Tokenizer, TokensConfig, load_tokenizer
from curator.tokens.windows import cut_windows, stitch
from curator.worker import worker_name

_FEATURE_DTYPES = {"entropy": np.float16, "rank": np.int32}


@dataclass(frozen=True)
class TokenRows:
    """The ids of one shard: `ids_T` end to end, `offsets` (D+1,), and the rows of each row group.

    `own` holds the same documents in the model's own tokens, if it has a tokenizer of its own.
    """

    ids_T: IntArray
    offsets: np.ndarray
    group_rows: tuple[int, ...]
    own: OwnTokens | None = None


@dataclass(frozen=True)
class ScoreStage:
    """Everything a worker needs to score any shard with one model.

    Attributes:
        tokens: the token shards.
        folder: where the score shards go.
        name: the model's name in the spec.
        config: its engine.
        identity: which model it is, resolved.
        has_bos: documents start with BOS, in the dataset's tokens.
        special: whether documents have BOS and EOS, for a model with its own tokenizer.
        canary: the canary in the dataset's tokens.
        threads: for the engine.
    """

    tokens: ShardFolder
    folder: ShardFolder
    name: str
    config: ScorerConfig
    identity: ModelIdentity
    has_bos: bool
    special: TokensConfig
    canary: tuple[int, ...]
    threads: int

    def open(self) -> None:
        """Start the engine, and see that it scores the canary as the model's other engines do."""
        own = None if self.identity.tokenizer_fingerprint is None else self._load_own_tokenizer()
        engine = self.config.build(self.identity, self.threads)
        ids_T = np.array(self.canary, np.int32) if own is None else encode_canary(own)
        canary = Canary(ids_T, self.folder, self.name, self.identity)
        canary.check(engine)
        self.__dict__.update(_engine=engine, _canary=canary, _own=own)

    def load(self, task: ShardRef) -> TokenRows:
        """Read the shard's token ids; of a model with its own tokenizer, also the text, encoded anew."""
        rows = read_token_ids(self.tokens, task.number)
        own: Tokenizer | None = self.__dict__["_own"]
        return rows if own is None else replace(rows, own=read_own_tokens(self.tokens, task.number, own, self.name))

    def run(self, task: ShardRef, inputs: TokenRows, on_tokens: Callable[[int], None]) -> ScoreReceipt:
        """Score every token once, check the engine, publish the score shard."""
        engine: Scorer = self.__dict__["_engine"]
        measure = start_receipt()
        own = inputs.own
        documents = split_rows(inputs.ids_T, inputs.offsets) if own is None else own.ids
        has_bos = self.has_bos if own is None else own.has_bos
        scores = score_documents(
            engine, documents, self.identity.context, self.identity.left_context, has_bos, on_tokens
        )
        self.__dict__["_canary"].check(engine)  # first: of an engine gone wrong, the scores say nothing
        check_scores(scores, self.name, task.number)
        if own is not None:
            scores, unscored = project_scores(scores, own)
            check_scores(scores, self.name, task.number, unscored)
        with storage.staged_file(self.folder.root) as staged:
            write_scores(staged, scores, inputs, self.config.features)
            receipt = ScoreReceipt(
                number=task.number, rows=len(scores), tokens=len(inputs.ids_T), notes=engine.notes(), **measure()
            )  # fmt: skip
            return publish_shard(self.folder, staged, receipt)

    def _load_own_tokenizer(self) -> Tokenizer:
        source = self.config.tokenizer_source()
        tokenizer = load_tokenizer(source, self.config.revision, self.special)
        planned = self.identity.tokenizer_fingerprint
        if tokenizer.fingerprint != planned:
            raise ClusterError(
                f"models.{self.name}: tokenizer {source!r} has fingerprint {tokenizer.fingerprint} on {worker_name()}, "
                f"{planned} where the job was planned; put the same files everywhere"
            )
        return tokenizer


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


def check_scores(scores: list[TokenScores], model: str, shard: int, unscored: Sequence[int] | None = None) -> None:
    """Refuse scores that would pass for "unscored" or spoil a histogram.

    Args:
        scores: of each document.
        model: its name, for the message.
        shard: its number, for the message.
        unscored: how many tokens at each document's start may be NaN; null = the first. Nothing may be infinite.

    Raises:
        ScorerError: a score is not finite; the message names its row and token.
    """
    for row, document in enumerate(scores):
        allowed = 1 if unscored is None else unscored[row]
        wrong_T = ~np.isfinite(document.logprobs_T)
        wrong_T[:allowed] = np.isinf(document.logprobs_T[:allowed])
        if wrong_T.any():
            t = int(np.flatnonzero(wrong_T)[0])
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
    joined: np.ndarray = np.concatenate([np.nan_to_num(a, nan=0) if dtype is np.int32 else a for a in arrays])
    return joined.astype(dtype)
