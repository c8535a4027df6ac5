"""Histograms equal a plain count over the published shards, and are cheap to ask for again."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator import inspection
from curator.job import Job


def test_the_histogram_gives_the_kept_share_of_any_threshold(bench: Any, finished: Job) -> None:
    histograms = inspection.read_histograms(finished)
    everything = bench.read_rows(finished)
    score = np.float16(np.concatenate([bench.excess_of(row) for row in everything]))
    weights = np.concatenate([row["token_weights"] for row in everything])
    edges, scored, kept = (np.array(getattr(histograms.score, name)) for name in ("edges", "scored", "kept"))
    assert len(edges) == len(scored) + 1 and np.all(np.diff(edges) > 0) and edges[0] >= -131072
    for number in range(len(scored)):
        assert scored[number:].sum() == np.count_nonzero(score >= edges[number])
        assert kept[number:].sum() == np.count_nonzero((score >= edges[number]) & (weights > 0))
    assert histograms.total.kept / histograms.total.scored == pytest.approx(0.6, abs=1e-3)
    assert histograms.cut is not None and kept[edges[1:] <= histograms.cut].sum() == 0
    for model in ("reference", "base"):
        bins = histograms.losses[model]
        loss = -np.float32(np.concatenate([row[f"logprobs_{model}"] for row in everything]))
        middle = len(bins.edges) // 2
        assert sum(bins.scored[middle:]) == np.count_nonzero(loss >= bins.edges[middle])
    assert (histograms.shards, histograms.planned_shards) == (len(finished.plan.shards),) * 2


def test_sources_have_exact_counts_and_a_sampled_histogram(bench: Any, finished: Job) -> None:
    histograms = inspection.read_histograms(finished)
    everything = bench.read_rows(finished)
    tokens = Counter[str]()
    for row in everything:
        tokens[row["source"]] += len(row["input_ids"])
    assert {source.name: source.counts.tokens for source in histograms.sources} == tokens
    assert [source.counts.tokens for source in histograms.sources] == sorted(tokens.values(), reverse=True)
    drawn = [source for source in histograms.sources if source.score is not None]
    assert len(drawn) == min(len(tokens), 12)
    for source in drawn:
        in_shards = Counter[int]()
        for row in everything:
            if row["source"] == source.name:
                in_shards[row["shard"]] += len(row["input_ids"]) - 1
        assert source.sampled_tokens == max(in_shards.values())  # here a shard is one row group
        candidates = [shard for shard, count in in_shards.items() if count == source.sampled_tokens]
        score = np.concatenate(
            [
                bench.excess_of(row)
                for row in everything
                if row["shard"] in candidates[-1:] and row["source"] == source.name
            ]
        )
        expected, _ = np.histogram(np.float64(np.float16(score[~np.isnan(score)])), source.score.edges)
        assert expected.tolist() == source.score.scored


def test_many_sources_end_in_a_sum(bench: Any, folder: Path, tmp_path: Path) -> None:
    texts = [
        {"id": f"d{n}", "source": f"s{n:03d}", "text": f"A short text of its own, number {n}."} for n in range(230)
    ]
    job = bench.finish(bench.make_job(tmp_path, [json.dumps(row).encode() + b"\n" for row in texts]))
    histograms = inspection.read_histograms(job)
    assert len(histograms.sources) == 200 and histograms.other_sources is not None
    assert histograms.other_sources.sources == histograms.other_sources.counts.documents == 30
    assert sum(s.counts.tokens for s in histograms.sources) + histograms.other_sources.counts.tokens == (
        histograms.total.tokens
    )
