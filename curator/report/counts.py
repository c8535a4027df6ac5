"""Counts that describe a shard, small enough for its receipt and mergeable into the whole dataset's.

Receipts carry them so that the report of a million shards needs no second pass over the data. Every count is exact
and merging is adding, so totals never depend on how the corpus was divided.

A shard names at most `SOURCES_PER_SHARD` sources, the largest by tokens; the rest is one sum, `others`, which says
how many sources went into it. Totals stay exact; only that split is coarser, and the report says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

import numpy as np
from pydantic import Field

from curator.data import StrictModel
from curator.report.histogram import BINS, CountArray, Histogram, trim_histogram

SOURCES_PER_SHARD = 500
MERGED_SOURCES = 20_000
NOISE_NATS = 0.03
"""Two runs of one bf16 model differ by about this much; tokens nearer to the cut are kept or dropped by chance."""


class LossSums(StrictModel):
    """Losses of one model in nats, summed over the tokens it scored and over the kept ones among them."""

    tokens: int = 0
    total: float = 0.0
    kept_tokens: int = 0
    kept_total: float = 0.0


class GroupStatistics(StrictModel):
    """What is counted of any group of documents: a source, a shard, a dataset."""

    documents: int = 0
    without_kept: int = Field(default=0, description="documents with no kept token")
    tokens: int = 0
    scored: int = 0
    kept: int = 0
    weight_sum: float = 0.0
    text_bytes: int = 0
    losses: dict[str, LossSums] = Field(default_factory=dict)


COUNTED = tuple(key for key in GroupStatistics.model_fields if key != "losses")


class LogBins(StrictModel):
    """Counts in bins that double: bin 0 is the value 0, bin b is [2^(b-1), 2^b). All four are equally long."""

    documents: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    scored: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()


class ShardStatistics(StrictModel):
    """Statistics of a shard, or of any number of merged shards. The default value is the empty shard."""

    total: GroupStatistics = GroupStatistics()
    sources: dict[str, GroupStatistics] = Field(default_factory=dict)
    others: GroupStatistics = Field(default=GroupStatistics(), description="sum of the sources that are not named")
    others_sources: int = Field(default=0, description="sources in `others`; after merging, at most so many")
    positions: LogBins = Field(default=LogBins(), description="by t in the document; documents: those that get so far")
    lengths: LogBins = Field(default=LogBins(), description="by the document's length in tokens")
    score: Histogram = Histogram()
    losses: dict[str, Histogram] = Field(default_factory=dict)
    near_cut: int = Field(default=0, description=f"tokens that score within {NOISE_NATS} of their cut")
    near_cut_of: int = Field(default=0, description="scored tokens whose cut was known")


def merge(first: ShardStatistics, second: ShardStatistics) -> ShardStatistics:
    """Statistics of two disjoint sets of documents together; associative and commutative."""
    return merge_all([first, second])


def merge_all(parts: Iterable[ShardStatistics]) -> ShardStatistics:
    """Statistics of any number of disjoint shards together, holding one part at a time.

    Above `2 * MERGED_SOURCES` named sources the smallest are folded into `others`, so that a corpus with a source
    for every web host does not fill the driver's memory.
    """
    total, others, others_sources, near_cut, near_cut_of = GroupStatistics(), GroupStatistics(), 0, 0, 0
    sources: dict[str, GroupStatistics] = {}
    score, losses = np.zeros((2, BINS), np.int64), dict[str, CountArray]()
    positions, lengths = LogBins(), LogBins()
    for part in parts:
        total, others = sum_groups([total, part.total]), sum_groups([others, part.others])
        others_sources += part.others_sources
        near_cut, near_cut_of = near_cut + part.near_cut, near_cut_of + part.near_cut_of
        positions, lengths = _add_bins(positions, part.positions), _add_bins(lengths, part.lengths)
        score += part.score.expand()
        for name, histogram in part.losses.items():
            losses[name] = losses.get(name, np.int64(0)) + np.stack(histogram.expand())
        for name, group in part.sources.items():
            sources[name] = sum_groups([sources[name], group]) if name in sources else group
        if len(sources) > 2 * MERGED_SOURCES:
            sources, folded, count = fold_sources(sources, MERGED_SOURCES)
            others, others_sources = sum_groups([others, folded]), others_sources + count
    return ShardStatistics(
        total=total,
        sources={name: sources[name] for name in sorted(sources)},
        others=others,
        others_sources=others_sources,
        positions=positions,
        lengths=lengths,
        score=trim_histogram(*score),
        losses={name: trim_histogram(*losses[name]) for name in sorted(losses)},
        near_cut=near_cut,
        near_cut_of=near_cut_of,
    )


def fold_sources(
    sources: Mapping[str, GroupStatistics], limit: int
) -> tuple[dict[str, GroupStatistics], GroupStatistics, int]:
    """The `limit` largest sources by tokens, largest first; the sum of the rest; how many those are."""
    ordered = sorted(sources.items(), key=lambda item: (-item[1].tokens, item[0]))
    return dict(ordered[:limit]), sum_groups(group for _, group in ordered[limit:]), len(ordered[limit:])


def sum_groups(groups: Iterable[GroupStatistics]) -> GroupStatistics:
    """Counts of disjoint groups of documents together."""
    listed = list(groups)
    models = sorted({model for group in listed for model in group.losses})
    return GroupStatistics(
        **{key: sum(getattr(group, key) for group in listed) for key in COUNTED},
        losses={
            model: _sum_losses([group.losses[model] for group in listed if model in group.losses]) for model in models
        },
    )


def _sum_losses(losses: Sequence[LossSums]) -> LossSums:
    return LossSums(**{key: sum(getattr(entry, key) for entry in losses) for key in LossSums.model_fields})


def _add_bins(first: LogBins, second: LogBins) -> LogBins:
    return LogBins(
        **{
            key: tuple(map(sum, zip_longest(getattr(first, key), getattr(second, key), fillvalue=0)))
            for key in LogBins.model_fields
        }
    )
