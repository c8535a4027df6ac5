"""How many documents and tokens came through each step so far.

Counted from receipts alone, so the numbers of a running job are those that a resumed run would find.
"""

from collections.abc import Sequence

from pydantic import Field

from curator.data import StrictModel
from curator.inspection.receipts import TokenCount, count_reasons, count_tokens, read_published
from curator.job import Job


class FunnelCounts(StrictModel):
    """Documents, or tokens, by how far they got."""

    read: int = Field(default=0, description="read from the corpus so far; of documents, with the quarantined ones")
    quarantined: int = Field(default=0, description="bad rows; of tokens always 0, as bad rows have none")
    lost: int = Field(default=0, description="in shards that failed for good, as far as they had been tokenised")
    scored: int = Field(default=0, description="in shards that every model has scored; of tokens, those with a score")
    kept: int = Field(default=0, description="of documents, those with at least one kept token")
    dropped: int = Field(default=0, description="documents without a kept token; tokens with a score and weight 0")


class FunnelShards(StrictModel):
    """Shards by the stages that they have passed."""

    planned: int = 0
    tokenized: int = 0
    scored: dict[str, int] = Field(default_factory=dict, description="by model")
    curated: int = 0
    lost: int = 0


class Funnel(StrictModel):
    """Counts of each step; the default value is that of a job that has not begun."""

    documents: FunnelCounts = FunnelCounts()
    tokens: FunnelCounts = FunnelCounts()
    shards: FunnelShards = FunnelShards()
    planned_tokens: int = Field(default=0, description="estimate of the plan for all shards")


def read_funnel(job: Job) -> Funnel:
    """Count what is published at this moment."""
    counts = count_tokens(job)
    calibration, published = job.read_calibration(), read_published(job)
    total, lost = published.statistics.total, set() if calibration is None else {s.number for s in calibration.lost}
    scored_by = {name: job.scores(name).published() for name in job.plan.models}
    # what is curated counts as scored by its own receipts: they say how many tokens have a score
    waiting = [count for count in counts if count.number not in published.numbers | lost]
    passed = [count for count in waiting if all(count.number in numbers for numbers in scored_by.values())]
    gone = [count for count in counts if count.number in lost]
    quarantined = len(job.plan.damage) + count_reasons(counts).total()
    return Funnel(
        documents=FunnelCounts(
            read=max(_rows(counts), total.documents) + quarantined,  # work folders may be removed after a run
            quarantined=quarantined,
            lost=_rows(gone),
            scored=total.documents + _rows(passed),
            kept=total.documents - total.without_kept,
            dropped=total.without_kept,
        ),
        tokens=FunnelCounts(
            read=max(_tokens(counts), total.tokens),
            lost=_tokens(gone),
            scored=total.scored + _tokens(passed) - _rows(passed),  # the first of each document has no score
            kept=total.kept,
            dropped=total.scored - total.kept,
        ),
        shards=FunnelShards(
            planned=len(job.plan.shards),
            tokenized=len(counts),
            scored={name: len(numbers) for name, numbers in scored_by.items()},
            curated=len(published.numbers),
            lost=len(lost),
        ),
        planned_tokens=job.plan.tokens,
    )


def _rows(counts: Sequence[TokenCount]) -> int:
    return sum(count.rows for count in counts)


def _tokens(counts: Sequence[TokenCount]) -> int:
    return sum(count.tokens for count in counts)
