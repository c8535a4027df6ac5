"""What is published of a dataset that is not finished: its shards so far, and a manifest that says so.

Everything is read from receipts, while a job runs or after it was cancelled. Receipts seldom change: each version of
one is read once and remembered by what the lists need of it, so that asking again costs two listings.

Invariant: a shard is listed only when its file and its receipt are there, with what that receipt says.
"""

import glob
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import curator
from curator import storage
from curator.ahead import answers_at_once, read_ahead
from curator.data import Cut, ModelIdentity, StrictModel
from curator.inspection import open_job
from curator.inspection.receipts import count_reasons, count_tokens
from curator.job import Job
from curator.manifest import (
    MANIFEST,
    PARTIAL_MANIFEST,
    RECEIPTS,
    CuratedReceipt,
    LostShard,
    ShardEntry,
    ShardFolder,
    shard_entry,
)
from curator.stored import StoredRecord

_REMEMBERED_SHARDS = 1 << 14  # about 1.5 KB each


class PartialTotals(StrictModel):
    """Sums over the shards that are published so far; quarantined rows are those of all shards tokenised so far."""

    rows: int
    tokens: int
    scored_tokens: int
    kept_tokens: int
    weight_sum: float
    rows_without_kept_tokens: int
    text_bytes: int
    quarantined_rows: int


class PartialManifest(StoredRecord):
    """An unfinished dataset: the manifest's fields, as far as they are known."""

    complete: Literal[False] = False
    name: str
    content: str
    curator_version: str
    spec: dict[str, Any]
    keys: dict[str, Any]
    tokenizer: dict[str, Any]
    models: dict[str, ModelIdentity]
    cuts: dict[str, Cut] | None
    """None before the cuts are taken."""
    weight_scale: float | None
    planned_shards: int
    shards: tuple[ShardEntry, ...]
    lost_shards: tuple[LostShard, ...]
    totals: PartialTotals
    quarantined: dict[str, int]


class PublishedShard(NamedTuple):
    """What lists and sums need of a receipt."""

    entry: ShardEntry
    scored_tokens: int
    rows_without_kept_tokens: int
    text_bytes: int


def list_published(folder: ShardFolder) -> dict[int, str]:
    """The shards that are there, in order, each with the version of its receipt."""
    receipts = storage.list_files(storage.join(glob.escape(folder.root), folder.name, RECEIPTS, "*.json"))
    names = ((info.uri.rpartition("/")[2].removesuffix(".json"), info) for info in receipts)
    versions = {int(name): f"{info.fingerprint} {info.size_bytes}" for name, info in names if name.isdecimal()}
    present = set(storage.list_names(storage.join(folder.root, folder.name)))
    there = (number for number in sorted(versions) if folder.file(number).rpartition("/")[2] in present)
    return {number: versions[number] for number in there}


@lru_cache(maxsize=_REMEMBERED_SHARDS)
def read_shard(folder: ShardFolder, number: int, version: str) -> PublishedShard:
    """What one receipt says; `version` is `list_published`'s, and only tells a changed receipt from a remembered one.

    Raises:
        OutputError: the receipt is not sound.
        StorageError: it cannot be read.
    """
    receipt = folder.receipt(number, CuratedReceipt)
    total = receipt.statistics.total
    return PublishedShard(shard_entry(folder, receipt), total.scored, total.without_kept, total.text_bytes)


def partial_manifest(job: Job) -> PartialManifest:
    """What is published of a job at this moment.

    Raises:
        OutputError: a receipt is not sound.
        StorageError: the dataset's folder cannot be read.
    """
    folder = job.curated
    listed = list_published(folder).items()
    shards = list(read_ahead(lambda item: read_shard(folder, *item), listed, answers_at_once(folder.root)))
    calibration, plan = job.read_calibration(), job.plan
    reasons = count_reasons(count_tokens(job))
    reasons.update(bad.reason for bad in plan.damage)
    return PartialManifest(
        name=plan.spec["name"],
        content=plan.content,
        curator_version=curator.__version__,
        spec=plan.spec,
        keys=plan.keys(),
        tokenizer=plan.tokenizer.model_dump(mode="json"),
        models=plan.models,
        cuts=None if calibration is None else calibration.cuts.by_scope,
        weight_scale=None if calibration is None else calibration.cuts.scale,
        planned_shards=len(plan.shards),
        shards=tuple(shard.entry for shard in shards),
        lost_shards=() if calibration is None else calibration.lost,
        totals=_sum(shards, sum(reasons.values())),
        quarantined=dict(sorted(reasons.items())),
    )


def _sum(shards: Iterable[PublishedShard], quarantined_rows: int) -> PartialTotals:
    shards = list(shards)
    return PartialTotals(
        rows=sum(shard.entry.rows for shard in shards),
        tokens=sum(shard.entry.tokens for shard in shards),
        scored_tokens=sum(shard.scored_tokens for shard in shards),
        kept_tokens=sum(shard.entry.kept_tokens for shard in shards),
        weight_sum=sum(shard.entry.weight_sum for shard in shards),
        rows_without_kept_tokens=sum(shard.rows_without_kept_tokens for shard in shards),
        text_bytes=sum(shard.text_bytes for shard in shards),
        quarantined_rows=quarantined_rows,
    )


def write_partial_manifest(dataset: Job | str) -> PartialManifest | None:
    """Write `manifest.partial.json` of a job that was stopped, or of the dataset's folder.

    Returns:
        What was written; None if there is nothing to say: the dataset is finished, or was not even planned.
    """
    job = open_job(dataset) if isinstance(dataset, str) else dataset
    if job is None or storage.exists(storage.join(job.root, MANIFEST)):
        return None
    manifest = partial_manifest(job)
    storage.replace(job.root, PARTIAL_MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest
