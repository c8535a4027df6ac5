"""Sums over the receipts of a job, cheap to ask for again and again while it runs.

Receipts never change, so they are read once: in blocks of shard numbers, each kept by an LRU cache under the numbers
that it holds. A block is read anew when one of its shards is published, all others come from memory.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from curator import storage
from curator.job import Job
from curator.manifest import CALIBRATION, CuratedReceipt, ShardFolder, TokenReceipt
from curator.report.statistics import ShardStatistics, merge_all

_BLOCK_SHARDS = 64
_CACHED_BLOCKS = 256


@dataclass(frozen=True)
class TokenCount:
    """What the token receipt of one shard says."""

    number: int
    rows: int
    tokens: int
    reasons: Mapping[str, int]
    """Its quarantined rows by reason."""


@dataclass(frozen=True)
class Published:
    """Counts of a set of published shards.

    Attributes:
        numbers: the shards.
        statistics: of all of them, merged.
        richest: for each source the shard with most of its scored tokens, and how many these are.
    """

    numbers: frozenset[int]
    statistics: ShardStatistics
    richest: dict[str, tuple[int, int]]


def count_tokens(job: Job) -> list[TokenCount]:
    """What has been tokenised so far, in the order of shard numbers."""
    blocks = (_count_token_block(job.tokens, block) for block in _blocks(job.tokens.receipts()))
    return [count for block in blocks for count in block]


def count_reasons(counts: Iterable[TokenCount]) -> Counter[str]:
    """Quarantined rows by reason."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count.reasons)
    return total


def read_published(job: Job) -> Published:
    """Statistics of the curated shards that are published so far."""
    numbers = job.curated.published()
    if not numbers:
        return Published(frozenset(), ShardStatistics(), {})
    return _merge([_read_block(job.curated, version_of(job), block) for block in _blocks(numbers)])


def version_of(job: Job) -> str:
    """What tells these curated shards from those of an earlier run that had the same folder."""
    return storage.fingerprint(storage.join(job.root, CALIBRATION))


def _blocks(numbers: set[int]) -> list[tuple[int, ...]]:
    groups = groupby(sorted(numbers), key=lambda number: number // _BLOCK_SHARDS)
    return [tuple(group) for _, group in groups]


@lru_cache(maxsize=_CACHED_BLOCKS)
def _count_token_block(folder: ShardFolder, numbers: tuple[int, ...]) -> tuple[TokenCount, ...]:
    receipts = folder.read_receipts(numbers, TokenReceipt)
    return tuple(TokenCount(r.number, r.rows, r.tokens, Counter(bad.reason for bad in r.quarantined)) for r in receipts)


@lru_cache(maxsize=_CACHED_BLOCKS)
def _read_block(folder: ShardFolder, version: str, numbers: tuple[int, ...]) -> Published:
    return _merge([_as_published(receipt) for receipt in folder.read_receipts(numbers, CuratedReceipt)])


def _as_published(receipt: CuratedReceipt) -> Published:
    richest = {name: (group.scored, receipt.number) for name, group in receipt.statistics.sources.items()}
    return Published(frozenset([receipt.number]), receipt.statistics, richest)


def _merge(parts: list[Published]) -> Published:
    statistics = merge_all(part.statistics for part in parts)
    richest: dict[str, tuple[int, int]] = {}
    for part in parts:
        for name in part.richest.keys() & statistics.sources.keys():
            richest[name] = max(richest.get(name, (0, 0)), part.richest[name])
    return Published(frozenset().union(*(part.numbers for part in parts)), statistics, richest)
