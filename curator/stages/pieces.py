"""Read what calibrating and selecting work on: the row groups of a shard, with its scores side by side.

Score files have the row groups of their token file, so one group at a time bounds memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pyarrow as pa

from curator import tables
from curator.data import Policy
from curator.manifest import ShardFolder
from curator.selection.pieces import Piece, make_piece


@dataclass(frozen=True)
class RowGroup:
    """Consecutive rows of a shard: chosen token columns, and log-probs by model."""

    first_row: int
    tokens: pa.Table
    logprobs: dict[str, pa.ChunkedArray]


@dataclass(frozen=True)
class ShardFiles:
    """Where the tokens and the scores of shards are."""

    tokens: ShardFolder
    scores: dict[str, ShardFolder]

    def read(self, number: int, columns: Sequence[str] | None, models: Sequence[str]) -> Iterator[RowGroup]:
        """Yield the shard's row groups, with these token columns (None: all) and the log-probs of these models."""
        with ExitStack() as files:
            tokens = files.enter_context(self.tokens.open(number))
            scores = {name: files.enter_context(self.scores[name].open(number)) for name in models}
            first_row = 0
            for group in range(tokens.metadata.num_row_groups):
                rows = tokens.read_row_group(group, columns=None if columns is None else list(columns))
                logprobs = {
                    name: file.read_row_group(group, columns=["logprobs"]).column("logprobs")
                    for name, file in scores.items()
                }
                yield RowGroup(first_row, rows, logprobs)
                first_row += tokens.metadata.row_group(group).num_rows

    def pieces(self, number: int, policy: Policy) -> Iterator[Piece]:
        """Yield the shard's pieces with just what the policy reads."""
        models = policy_models(policy)
        columns = ([] if models else ["input_ids"]) + (["source"] if policy.scope == "source" else [])
        for group in self.read(number, columns, models):
            yield as_piece(policy, number, group)


def policy_models(policy: Policy) -> list[str]:
    """Names of the models whose log-probs the policy reads."""
    prefix = tables.LOGPROBS_PREFIX
    return [column.removeprefix(prefix) for column in policy.columns() if column.startswith(prefix)]


def as_piece(policy: Policy, number: int, group: RowGroup) -> Piece:
    """The policy's view of a row group."""
    models = policy_models(policy)
    lists = {tables.LOGPROBS_PREFIX + name: group.logprobs[name] for name in models}
    lists = lists or {"input_ids": group.tokens.column("input_ids")}
    rows = len(next(iter(lists.values())))
    sources = group.tokens.column("source").to_pylist() if policy.scope == "source" else [""] * rows
    return make_piece(lists, sources, number, group.first_row)
