"""Read what calibrating and selecting work on: the row groups of a shard, with its scores side by side.

Score files have the row groups of their token file, so one group at a time bounds memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import pyarrow as pa

from curator import tables
from curator.data import Policy
from curator.manifest import ShardFolder
from curator.policies import policy_features
from curator.policies.noise import REPEATED
from curator.selection.pieces import Piece, make_piece


@dataclass(frozen=True)
class RowGroup:
    """Consecutive rows of a shard.

    Attributes:
        first_row: number in the shard of the first one.
        tokens: the chosen token columns.
        logprobs: by model.
        features: what a policy reads of models besides, under its name for it, such as `entropy_reference`.
    """

    first_row: int
    tokens: pa.Table
    logprobs: dict[str, pa.ChunkedArray]
    features: dict[str, pa.ChunkedArray] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardFiles:
    """Where the tokens and the scores of shards are."""

    tokens: ShardFolder
    scores: dict[str, ShardFolder]

    def read(
        self, number: int, columns: Sequence[str] | None, models: Sequence[str], policy: Policy
    ) -> Iterator[RowGroup]:
        """Yield the shard's row groups: token columns (None: all), log-probs of models, and the policy's features."""
        features = policy_features(policy)
        with ExitStack() as files:
            tokens = files.enter_context(self.tokens.open(number))
            read_models = dict.fromkeys([*models, *(model for model, _ in features.values())])
            scores = {name: files.enter_context(self.scores[name].open(number)) for name in read_models}
            first_row = 0
            for group in range(tokens.metadata.num_row_groups):
                rows = tokens.read_row_group(group, columns=None if columns is None else list(columns))

                def column(model: str, name: str, group: int = group) -> pa.ChunkedArray:
                    return scores[model].read_row_group(group, columns=[name]).column(name)

                logprobs = {model: column(model, "logprobs") for model in models}
                others = {name: column(model, feature) for name, (model, feature) in features.items()}
                yield RowGroup(first_row, rows, logprobs, others)
                first_row += tokens.metadata.row_group(group).num_rows

    def pieces(self, number: int, policy: Policy) -> Iterator[Piece]:
        """Yield the shard's pieces with just what the policy reads."""
        models = policy_models(policy)
        columns = ["input_ids"] if REPEATED in policy.columns() or not models else []
        columns += ["source"] if policy.scope == "source" else []
        for group in self.read(number, columns, models, policy):
            yield as_piece(policy, number, group)


def policy_models(policy: Policy) -> list[str]:
    """Names of the models whose log-probs the policy reads."""
    prefix = tables.LOGPROBS_PREFIX
    return [column.removeprefix(prefix) for column in policy.columns() if column.startswith(prefix)]


def as_piece(policy: Policy, number: int, group: RowGroup) -> Piece:
    """The policy's view of a row group."""
    models = policy_models(policy)
    lists = {tables.LOGPROBS_PREFIX + name: group.logprobs[name] for name in models}
    lists |= group.features
    if REPEATED in policy.columns() or not lists:
        lists["input_ids"] = group.tokens.column("input_ids")
    rows = len(next(iter(lists.values())))
    sources = group.tokens.column("source").to_pylist() if policy.scope == "source" else [""] * rows
    return make_piece(lists, sources, number, group.first_row)
