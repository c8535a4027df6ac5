"""Counts by score and by loss, with the cut: what a threshold slider and its charts need.

Overall counts are exact: they come from the receipts of every published shard. Receipts do not split scores by source;
for the largest sources they are counted in one row group each, and say of how many tokens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from curator.data import Cut, StrictModel
from curator.inspection.documents import as_number
from curator.inspection.receipts import Published, read_published
from curator.inspection.rows import Rows, open_shard, overall_cut
from curator.job import Calibration, Job
from curator.report.counts import GroupStatistics, fold_sources, sum_groups
from curator.report.histogram import EDGES, Histogram, count_histogram
from curator.report.summaries import SHOWN_CUTS, SHOWN_SOURCES
from curator.tables import LOGPROBS_PREFIX

DRAWN_SOURCES = 12
"""The largest sources, which have a histogram of their own."""


class Bins(StrictModel):
    """Tokens by value: bin i holds values from edges[i] to below edges[i + 1], 1/16 apart between -8 and 8.

    The share that a threshold keeps is the sum of `scored` above it; within a bin tokens may be taken as evenly spread.
    """

    edges: list[float] = Field(description="rising, one more than there are bins; none where nothing was counted")
    scored: list[int]
    kept: list[int] = Field(description="part of `scored`")


class ScopeCut(StrictModel):
    """The cut of one scope: tokens above it are kept, and of those exactly at it a share."""

    scope: str = Field(description="'' for the corpus, a source's name, a shard's number")
    value: float | None
    share: float


class SourceHistogram(StrictModel):
    """One source."""

    name: str
    counts: GroupStatistics = Field(description="of all its published documents")
    cut: float | None = Field(description="the cut that held for it; null where it has none of its own")
    score: Bins | None = Field(description="of a sample of its tokens; null: it is not among the largest sources")
    sampled_tokens: int = Field(default=0, description="scored tokens in that sample")


class OtherSources(StrictModel):
    """The sources that are not listed, as one."""

    sources: int = Field(description="how many these are, at most")
    counts: GroupStatistics


class Histograms(StrictModel):
    """What is published so far, by score, by loss and by source; the default value is that of nothing."""

    policy: dict[str, Any] = Field(default_factory=dict, description="as in the spec")
    cut: float | None = Field(default=None, description="the one cut of the corpus, or the policy's own bound")
    cuts: list[ScopeCut] = Field(default_factory=list)
    more_cuts: int = Field(default=0, description="cuts that are not listed here; the manifest has all")
    total: GroupStatistics = GroupStatistics()
    score: Bins = Bins(edges=[], scored=[], kept=[])
    losses: dict[str, Bins] = Field(default_factory=dict, description="loss in nats, by model")
    sources: list[SourceHistogram] = Field(default_factory=list, description="largest first")
    other_sources: OtherSources | None = None
    near_cut_share: float | None = Field(default=None, description="part of the scored tokens that is as good as tied")
    shards: int = Field(default=0, description="shards counted here")
    planned_shards: int = 0


def read_histograms(job: Job) -> Histograms:
    """Merge the statistics of the published shards."""
    calibration, published = job.read_calibration(), read_published(job)
    cuts = {} if calibration is None else calibration.cuts.by_scope
    statistics = published.statistics
    named, rest, unnamed = fold_sources(statistics.sources, SHOWN_SOURCES)
    folded = unnamed + statistics.others_sources
    return Histograms(
        policy=job.plan.spec["policy"],
        cut=as_number(overall_cut(job.spec.policy, cuts)),
        cuts=[
            ScopeCut(scope=key, value=as_number(cut.value), share=cut.share)
            for key, cut in sorted(cuts.items())[:SHOWN_CUTS]
        ],
        more_cuts=max(len(cuts) - SHOWN_CUTS, 0),
        total=statistics.total,
        score=as_bins(statistics.score),
        losses={name: as_bins(histogram) for name, histogram in statistics.losses.items()},
        sources=_list_sources(job, calibration, published, named),
        other_sources=OtherSources(sources=folded, counts=sum_groups([rest, statistics.others])) if folded else None,
        near_cut_share=statistics.near_cut / statistics.near_cut_of if statistics.near_cut_of else None,
        shards=len(published.numbers),
        planned_shards=len(job.plan.shards),
    )


def as_bins(histogram: Histogram) -> Bins:
    """The filled bins with their edges; an open bin at an end, which holds infinities, ends at twice its edge."""
    size = len(histogram.scored)
    edges = np.concatenate([[2 * EDGES[0]], EDGES, [2 * EDGES[-1]]])[histogram.first : histogram.first + size + 1]
    return Bins(edges=edges.tolist() if size else [], scored=list(histogram.scored), kept=list(histogram.kept))


# ---------------------------------------------------------------------------------------------- by source


def _list_sources(
    job: Job, calibration: Calibration | None, published: Published, named: Mapping[str, GroupStatistics]
) -> list[SourceHistogram]:
    if calibration is None:
        return []
    cuts = calibration.cuts.by_scope
    by_source = job.spec.policy.keep is not None and job.spec.policy.scope == "source"
    overall = overall_cut(job.spec.policy, cuts)
    drawn = list(named)[:DRAWN_SOURCES]
    samples = _sample_sources(job, cuts, {name: published.richest[name][1] for name in drawn})
    return [
        SourceHistogram(
            name=name,
            counts=counts,
            cut=as_number(cuts[name].value if by_source and name in cuts else None if by_source else overall),
            score=as_bins(samples[name]) if name in samples else None,
            sampled_tokens=sum(samples[name].scored) if name in samples else 0,
        )
        for name, counts in named.items()
    ]


def _sample_sources(job: Job, cuts: Mapping[str, Cut], shard_of: Mapping[str, int]) -> dict[str, Histogram]:
    """Count the scores of sources in the first row group of theirs in the shard that has most of each."""
    columns = ["source", "token_weights", *(LOGPROBS_PREFIX + name for name in job.plan.models)]
    samples: dict[str, Histogram] = {}
    for number in sorted(set(shard_of.values())):
        with open_shard(job, cuts, number) as opened:
            groups = opened.groups(columns)
            chosen: dict[int, list[str]] = {}
            for name in (name for name, shard in shard_of.items() if shard == number):
                holding = next((group for group in groups if opened.may_hold(group, name)), None)
                if holding is not None:
                    chosen.setdefault(holding, []).append(name)
            for group, names in chosen.items():
                samples |= _count_sources(opened.read(group, columns), names)
    return samples


def _count_sources(rows: Rows, names: list[str]) -> dict[str, Histogram]:
    if rows.score_T is None:
        return {}
    source_D = np.array(rows.sources, object)
    counted = {}
    for name in names:
        own_T = np.repeat(source_D == name, np.diff(rows.offsets))
        histogram = count_histogram(rows.score_T[own_T], rows.weights_T[own_T] > 0)
        if histogram.scored:
            counted[name] = histogram
    return counted
