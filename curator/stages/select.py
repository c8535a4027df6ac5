"""Select: apply the policy to stored scores, join weights to text, publish the curated shards.

A cheap pass over files; no model runs. What a shard holds depends on its tokens, its scores and the frozen cuts alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator import storage, tables
from curator.data import Cut, FloatArray, Policy
from curator.manifest import CuratedReceipt, ShardFolder, publish_shard, start_receipt
from curator.outputs import OutputConfig
from curator.outputs.parquet import build_rows
from curator.plan import ShardRef
from curator.report.statistics import ShardStatistics, measure_shard, merge_all
from curator.selection.apply import apply_policy
from curator.selection.cuts import Cuts
from curator.selection.pieces import Piece
from curator.stages.pieces import RowGroup, ShardFiles, as_piece

_WEIGHTS_ALONE = ("doc_id", "token_weights")


@dataclass(frozen=True)
class SelectStage:
    """Everything a worker needs to publish any shard."""

    folder: ShardFolder
    files: ShardFiles
    policy: Policy
    output: OutputConfig
    carried: bytes
    cuts: Cuts
    weights_only: bool

    def open(self) -> None:
        """Nothing to start."""

    def load(self, task: ShardRef) -> None:
        """Nothing to load ahead: row groups are streamed."""

    def run(self, task: ShardRef, inputs: None, on_tokens: Callable[[int], None]) -> CuratedReceipt:
        """Weigh and publish one shard."""
        measure = start_receipt()
        models = list(self.files.scores)
        schema = self._schema(models)
        counts: dict[str, Any] = {"rows": 0, "tokens": 0, "kept_tokens": 0, "weight_sum": 0.0}
        statistics: list[ShardStatistics] = []
        with storage.staged_file(self.folder.root) as staged:
            with tables.open_writer(staged, schema) as writer:
                for group in self.files.read(task.number, None, models, self.policy):
                    piece = as_piece(self.policy, task.number, group)
                    score_T, weights_T = apply_policy(self.policy, piece, self.cuts.by_scope)
                    weights_T *= np.float32(self.cuts.scale)
                    writer.write_table(build_rows(schema, group.tokens, group.logprobs, weights_T))
                    statistics.append(self._measure(group, piece, score_T, weights_T))
                    counts["rows"] += group.tokens.num_rows
                    counts["tokens"] += len(weights_T)
                    counts["kept_tokens"] += int(np.count_nonzero(weights_T))
                    counts["weight_sum"] += float(weights_T.sum(dtype=np.float64))
                    on_tokens(len(weights_T))
            receipt = CuratedReceipt(number=task.number, **counts, statistics=merge_all(statistics), **measure())
            return publish_shard(self.folder, staged, receipt)

    def _schema(self, models: list[str]) -> pa.Schema:
        schema = self.output.table_schema(pa.ipc.read_schema(pa.py_buffer(self.carried)), models)
        return pa.schema([schema.field(name) for name in _WEIGHTS_ALONE]) if self.weights_only else schema

    def _measure(self, group: RowGroup, piece: Piece, score_T: FloatArray, weights_T: FloatArray) -> ShardStatistics:
        sources = group.tokens.column("source").to_pylist()
        return measure_shard(
            sources=sources,
            offsets=piece.offsets,
            token_bytes_T=tables.flat(group.tokens.column("token_bytes"))[0],
            score_T=score_T,
            weights_T=weights_T,
            logprobs={name: tables.flat(column)[0].astype(np.float32) for name, column in group.logprobs.items()},
            cut=_cut_of_rows(self.policy, self.cuts.by_scope, sources, piece.shard),
        )


def _cut_of_rows(policy: Policy, cuts: Mapping[str, Cut], sources: list[str], shard: int) -> float | FloatArray | None:
    """The cut that holds for each row, shape (D,), or for all; None where no cut was taken over more than a row."""
    if policy.keep is None or policy.scope == "document":
        return None
    if policy.scope == "source":
        return np.array([cuts[source].value for source in sources], np.float32)
    return cuts[f"{shard:05d}" if policy.scope == "shard" else ""].value
