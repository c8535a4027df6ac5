"""Find the cuts of a corpus: two passes over the stored scores, counted on the workers, added up in the driver.

A hard cut per shard needs no other shard, so both of its passes run where the shard is read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curator import tracing
from curator.cluster import Pool
from curator.data import Cut, Policy
from curator.plan import ShardRef
from curator.progress import Reporter
from curator.selection.cuts import (
    Counts,
    Cuts,
    TieCounts,
    count_piece,
    count_ties,
    find_boundaries,
    find_cuts,
    merge_counts,
    merge_ties,
    needs_counts,
    needs_ties,
)
from curator.selection.histogram import Boundary, merge_histograms
from curator.selection.pieces import Piece
from curator.stages.pieces import ShardFiles
from curator.worker import ShardFailure, raise_failures


@dataclass(frozen=True)
class Counted:
    """What one worker says of one shard."""

    tokens: int
    counts: Counts
    ties: TieCounts
    cuts: Mapping[str, Cut]


@dataclass(frozen=True)
class CountStage:
    """Count one shard: scores, or, once the boundaries are known, what lies exactly at them."""

    files: ShardFiles
    policy: Policy
    boundaries: Mapping[str, Boundary] | None = None

    def open(self) -> None:
        """Nothing to start."""

    def load(self, task: ShardRef) -> None:
        """Nothing to load ahead: pieces are streamed."""

    def run(self, task: ShardRef, inputs: None, on_tokens: Callable[[int], None]) -> Counted:
        """Count the shard's pieces; a hard cut per shard is settled here and now."""
        if _is_local(self.policy):
            cuts = calibrate_pieces(self.policy, lambda: self.files.pieces(task.number, self.policy))
            return Counted(task.tokens, {}, TieCounts(), cuts.by_scope)
        counts: Counts = {}
        ties = TieCounts()
        tokens = 0
        for piece in self.files.pieces(task.number, self.policy):
            if self.boundaries is None:
                counts = merge_counts([counts, count_piece(self.policy, piece)])
            else:
                ties = merge_ties([ties, count_ties(self.policy, piece, self.boundaries)])
            tokens += int(piece.offsets[-1])
            on_tokens(int(piece.offsets[-1]))
        return Counted(tokens, counts, ties, {})


def _is_local(policy: Policy) -> bool:
    return policy.scope == "shard" and policy.binary and policy.keep is not None


def calibrate_pieces(policy: Policy, pieces: Callable[[], Iterable[Piece]]) -> Cuts:
    """Both passes over pieces at hand; `pieces` is called once for each pass that is needed."""
    counts = merge_counts(count_piece(policy, piece) for piece in pieces()) if needs_counts(policy) else {}
    boundaries = find_boundaries(policy, counts)
    ties = TieCounts()
    if needs_ties(policy, boundaries):
        ties = merge_ties(count_ties(policy, piece, boundaries) for piece in pieces())
    return find_cuts(policy, counts, ties)


def calibrate(pool: Pool, files: ShardFiles, policy: Policy, shards: Sequence[ShardRef], reporter: Reporter) -> Cuts:
    """Find the cuts over shards.

    Args:
        pool: workers to count on.
        files: where the shards are.
        policy: what to cut by.
        shards: the population; shards outside it do not count.
        reporter: hears of progress.

    Returns:
        The cuts; empty for a policy or scope that needs none.

    Raises:
        ShardError: a shard could not be read.
    """
    counts: Counts = {}
    local: dict[str, Cut] = {}

    def add_counts(counted: Counted) -> None:
        for key, histogram in counted.counts.items():
            counts[key] = merge_histograms([counts[key], histogram]) if key in counts else histogram
        local.update(counted.cuts)

    if needs_counts(policy):
        _map(pool, CountStage(files, policy), shards, reporter, add_counts)
    if _is_local(policy):
        return Cuts(by_scope=dict(sorted(local.items())))
    counts = dict(sorted(counts.items()))
    boundaries = find_boundaries(policy, counts)
    ties = TieCounts()

    def add_ties(counted: Counted) -> None:
        nonlocal ties
        ties = merge_ties([ties, counted.ties])

    if needs_ties(policy, boundaries):
        _map(pool, CountStage(files, policy, boundaries), shards, reporter, add_ties)
    return find_cuts(policy, counts, ties)


def _map(
    pool: Pool, stage: CountStage, shards: Sequence[ShardRef], reporter: Reporter, on_result: Callable[[Counted], None]
) -> None:
    name = "calibrate" if stage.boundaries is None else "calibrate ties"
    reporter.start(name, len(shards), sum(shard.tokens for shard in shards))
    with tracing.stage(stage, name) as traced:
        failures: list[ShardFailure[Any]] = pool.map(
            traced, shards, reporter=reporter, tokens_of=lambda counted: counted.tokens, on_result=on_result
        )
    reporter.finish()
    raise_failures(name, failures, lambda shard: f"shard {shard.number:05d}")
