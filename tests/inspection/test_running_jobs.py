"""While a job runs, the funnel and the faults say what has receipts, and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator import inspection
from curator.inspection import receipts
from curator.job import Job
from curator.manifest import LostShard, TokenReceipt
from curator.pipeline import score, tokenize, weigh


def test_a_running_job_shows_what_has_receipts(bench: Any, lines: list[bytes], tmp_path: Path) -> None:
    assert inspection.open_job(str(tmp_path / "out")) is None
    job = bench.make_job(tmp_path, lines)
    planned = inspection.read_funnel(job)
    assert planned.documents.read == planned.tokens.read == 0 and planned.planned_tokens == job.plan.tokens
    assert inspection.read_preview(job, select="kept", limit=5).note == "no shard is published yet"
    assert inspection.read_histograms(job).total.documents == 0
    assert inspection.read_errors(job) == inspection.Faults()

    tokenize(job, bench.here(2))
    funnel = inspection.read_funnel(job)
    two = [job.tokens.receipt(number, TokenReceipt) for number in (0, 1)]
    assert funnel.documents.read == sum(receipt.rows for receipt in two) + len(bench.bad_lines)
    assert (funnel.tokens.read, funnel.documents.quarantined) == (sum(receipt.tokens for receipt in two), 4)
    assert inspection.read_errors(job).quarantined_rows == 4

    tokenize(job, bench.here(None))
    score(job, bench.here(None), "reference", [])
    assert inspection.read_funnel(job).documents.scored == 0  # the base has not seen a shard yet
    score(job, bench.here(3), "base", [])
    funnel = inspection.read_funnel(job)
    three = [job.tokens.receipt(number, TokenReceipt) for number in (0, 1, 2)]
    assert funnel.documents.scored == sum(receipt.rows for receipt in three)
    assert funnel.tokens.scored == sum(receipt.tokens - receipt.rows for receipt in three)
    assert funnel.shards.scored == {"reference": len(job.plan.shards), "base": 3}

    score(job, bench.here(None), "base", [])
    for limit in (1, 1, None):
        weigh(job, bench.here(limit), [])
        published = sorted(job.curated.published())
        everything = bench.read_rows(job, published)
        funnel, histograms = inspection.read_funnel(job), inspection.read_histograms(job)
        kept = sum(np.count_nonzero(row["token_weights"]) for row in everything)
        assert histograms.total.documents == len(everything) and histograms.shards == len(published)
        assert (funnel.tokens.kept, histograms.total.kept) == (kept, kept)
        assert inspection.read_preview(job, select="all", limit=1).seen_documents > 0
    assert funnel.shards.curated == len(job.plan.shards)
    assert funnel.documents.kept + funnel.documents.dropped == funnel.documents.scored == 102
    assert funnel.documents.read == 102 + len(bench.bad_lines)
    assert funnel.tokens.kept + funnel.tokens.dropped == funnel.tokens.scored == funnel.tokens.read - 102


def test_blocks_of_receipts_are_read_once(finished: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "_BLOCK_SHARDS", 2)
    receipts._read_block.cache_clear()
    first = inspection.read_histograms(finished)
    misses = receipts._read_block.cache_info().misses
    assert misses == -(-len(finished.plan.shards) // 2)
    assert inspection.read_histograms(finished) == first
    assert receipts._read_block.cache_info().misses == misses
    monkeypatch.setattr(receipts, "_BLOCK_SHARDS", 64)
    assert inspection.read_histograms(finished) == first


def pages(job: Job, limit: int) -> Iterator[inspection.Faults]:
    after = None
    while True:
        page = inspection.read_errors(job, after, limit)
        yield page
        after = page.next_cursor
        assert (after is not None) == page.has_more
        if after is None:
            return


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
def test_pages_of_faults_hold_every_quarantined_row_once(finished: Job, limit: int) -> None:
    listed = [json.loads(line) for line in (Path(finished.root) / "quarantine.jsonl").read_text().splitlines()]
    found = list(pages(finished, limit))
    assert [(f.file, f.row, f.reason, f.offset) for page in found for f in page.data] == [
        (bad["file"], bad["row"], bad["reason"], bad["offset"]) for bad in listed
    ]
    assert all(len(page.data) <= limit for page in found)
    expected = {"invalid_utf8": 1, "not_json": 1, "empty_text": 1, "lone_surrogate": 1}
    assert all(page.reasons == expected and page.quarantined_rows == 4 for page in found)


def test_lost_shards_come_first_and_details_are_short(bench: Any, lines: list[bytes], tmp_path: Path) -> None:
    job = bench.make_job(tmp_path, lines)
    tokenize(job, bench.here(None))
    lost = [LostShard(number=n, stage="score base", reason="out of memory " * 100) for n in (1, 3)]
    for name in job.spec.models:
        score(job, bench.here(None), name, lost)
    weigh(job, bench.here(None), lost)
    found = [fault for page in pages(job, 2) for fault in page.data]
    assert [(fault.kind, fault.shard, fault.stage) for fault in found[:2]] == [
        ("shard", 1, "score base"),
        ("shard", 3, "score base"),
    ]
    assert [fault.kind for fault in found[2:]] == ["row"] * 4
    assert max(len(fault.detail) for fault in found) == 200 and found[0].detail.endswith("…")
    funnel = inspection.read_funnel(job)
    gone = [job.tokens.receipt(number, TokenReceipt) for number in (1, 3)]
    assert funnel.shards.lost == 2 and funnel.documents.lost == sum(receipt.rows for receipt in gone)
    assert funnel.tokens.lost == sum(receipt.tokens for receipt in gone)
    assert funnel.documents.read == 102 + 4 == funnel.documents.scored + funnel.documents.lost + 4
