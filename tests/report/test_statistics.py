"""Statistics equal a plain loop over documents and tokens, and merging shards equals measuring them as one."""

import math
from collections import Counter, defaultdict
from itertools import pairwise, permutations
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from curator.errors import PolicyError
from curator.report.counts import NOISE_NATS, GroupStatistics, ShardStatistics, fold_sources, merge, merge_all
from curator.report.histogram import BINS, EDGES, count_histogram, find_bins
from curator.report.statistics import measure_shard


def make_shard(seed: int, lengths: tuple[int, ...] = (1, 0, 5, 300, 2, 64, 0, 17, 1025)) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    size = int(offsets[-1])
    logprobs = {name: -random.exponential(3, size).astype(np.float32) for name in ("base", "reference")}
    score_T = (random.standard_normal(size) * 4).astype(np.float16).astype(np.float32)
    for first in offsets[:-1][np.diff(offsets) > 0]:
        score_T[first] = np.nan
        logprobs["base"][first] = logprobs["reference"][first] = np.nan
    weights_T = np.where(score_T > 0.5, random.random(size).astype(np.float32) + np.float32(0.5), np.float32(0))
    return {
        "sources": [random.choice(["web", "books", ""]) for _ in lengths],
        "offsets": offsets,
        "token_bytes_T": random.integers(0, 9, size).astype(np.int32),
        "score_T": score_T,
        "weights_T": weights_T,
        "logprobs": logprobs,
        "cut": 0.5,
    }


def join(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two shards as one."""
    arrays = ("token_bytes_T", "score_T", "weights_T")
    return {
        "sources": first["sources"] + second["sources"],
        "offsets": np.concatenate([first["offsets"], second["offsets"][1:] + first["offsets"][-1]]),
        "logprobs": {
            key: np.concatenate([first["logprobs"][key], second["logprobs"][key]]) for key in first["logprobs"]
        },
        "cut": 0.5,
        **{key: np.concatenate([first[key], second[key]]) for key in arrays},
    }


def loop_over(shard: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The oracle: one group for each source, and "" + "total", in plain Python."""
    groups: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(float))
    for source, (start, stop) in zip(shard["sources"], pairwise(shard["offsets"].tolist()), strict=True):
        kept_here = 0
        for t in range(start, stop):
            weight, score = float(shard["weights_T"][t]), float(shard["score_T"][t])
            kept_here += weight > 0
            for group in (groups["source " + source], groups["total"]):
                group["tokens"] += 1
                group["scored"] += not math.isnan(score)
                group["kept"] += weight > 0
                group["weight_sum"] += weight
                group["text_bytes"] += int(shard["token_bytes_T"][t])
                group["near"] += abs(score - shard["cut"]) < NOISE_NATS
                for model, logprobs_T in shard["logprobs"].items():
                    if not math.isnan(logprobs_T[t]):
                        group[model] -= float(logprobs_T[t])
                        group[model + " kept"] -= float(logprobs_T[t]) * (weight > 0)
        for group in (groups["source " + source], groups["total"]):
            group["documents"] += 1
            group["without_kept"] += kept_here == 0
    return groups


def agree(group: GroupStatistics, expected: dict[str, Any]) -> None:
    for key in ("documents", "without_kept", "tokens", "scored", "kept", "text_bytes"):
        assert getattr(group, key) == expected[key], key
    assert group.weight_sum == pytest.approx(expected["weight_sum"], rel=1e-12)
    for model in ("base", "reference"):
        assert group.losses[model].tokens == expected["scored"]
        assert group.losses[model].kept_tokens == expected["kept"]
        assert group.losses[model].total == pytest.approx(expected[model], rel=1e-9)
        assert group.losses[model].kept_total == pytest.approx(expected[model + " kept"], rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_every_count_equals_a_plain_loop(seed: int) -> None:
    shard = make_shard(seed)
    measured, expected = measure_shard(**shard), loop_over(shard)
    agree(measured.total, expected["total"])
    assert {f"source {name}" for name in measured.sources} == expected.keys() - {"total"}
    for name, group in measured.sources.items():
        agree(group, expected[f"source {name}"])
    assert measured.near_cut == expected["total"]["near"] > 0
    assert measured.near_cut_of == expected["total"]["scored"]


def test_positions_and_lengths_are_counted_in_bins_that_double() -> None:
    shard = make_shard(1)
    measured = measure_shard(**shard)
    positions, lengths = (defaultdict(Counter), defaultdict(Counter))
    for start, stop in pairwise(shard["offsets"].tolist()):
        length_bin = (stop - start).bit_length()
        lengths["documents"][length_bin] += 1
        reached = set()
        for t in range(start, stop):
            position_bin = (t - start).bit_length()
            reached.add(position_bin)
            for bins, number in ((positions, position_bin), (lengths, length_bin)):
                bins["tokens"][number] += 1
                bins["scored"][number] += not math.isnan(shard["score_T"][t])
                bins["kept"][number] += bool(shard["weights_T"][t] > 0)
        positions["documents"].update(reached)
    for bins, expected in ((measured.positions, positions), (measured.lengths, lengths)):
        for key in ("documents", "tokens", "scored", "kept"):
            counts = getattr(bins, key)
            assert {number: count for number, count in enumerate(counts) if count} == +expected[key], key
            assert len(counts) == len(bins.tokens)


def test_histograms_count_each_value_in_the_bin_that_holds_it() -> None:
    shard = make_shard(2)
    measured = measure_shard(**shard)
    for histogram, values_T in (
        (measured.score, shard["score_T"]),
        (measured.losses["base"], -shard["logprobs"]["base"]),
    ):
        scored, kept = [0] * BINS, [0] * BINS
        for value, weight in zip(values_T.tolist(), shard["weights_T"].tolist(), strict=True):
            if not math.isnan(value):
                number = sum(edge <= value for edge in EDGES.tolist())
                scored[number] += 1
                kept[number] += weight > 0
        assert [array.tolist() for array in histogram.expand()] == [scored, kept]


def test_bins_hold_every_float16_and_both_infinities() -> None:
    halves = np.arange(65_536, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = np.concatenate([halves[~np.isnan(halves)], EDGES.astype(np.float32), np.float32([8, -8, 7.9999995])])
    assert np.array_equal(find_bins(values), np.searchsorted(EDGES, values, side="right"))
    histogram = count_histogram(np.float32([-np.inf, np.inf, np.nan]), np.array([False, True, False]))
    scored, kept = histogram.expand()
    assert scored[0] == scored[-1] == kept[-1] == 1
    assert scored.sum() == 2


def test_merged_shards_equal_one_measured_shard() -> None:
    shards = [make_shard(seed) for seed in (3, 4)]
    merged, whole = merge_all([measure_shard(**shard) for shard in shards]), measure_shard(**join(*shards))
    assert merged.total.losses["base"].total == pytest.approx(whole.total.losses["base"].total)
    assert forget_sums(merged) == forget_sums(whole)


def test_merging_is_associative_and_commutative_with_the_empty_shard_as_identity() -> None:
    parts = [measure_shard(**make_shard(seed, lengths=(3, 40, seed + 1))) for seed in range(3)]
    first = merge(merge(parts[0], parts[1]), parts[2])
    for order in permutations(parts):
        assert forget_sums(merge(order[0], merge(order[1], order[2]))) == forget_sums(first)
        assert merge_all(order).total.weight_sum == pytest.approx(first.total.weight_sum)
    assert forget_sums(merge(ShardStatistics(), parts[0])) == forget_sums(merge_all(parts[:1]))
    assert merge_all([]) == ShardStatistics()


def forget_sums(statistics: ShardStatistics) -> Any:
    """All counts, without the sums of floats, whose last bits depend on the order; sources in any order."""
    dumped = statistics.model_dump()
    for group in (dumped["total"], dumped["others"], *dumped["sources"].values()):
        del group["weight_sum"]
        group["losses"] = {
            model: (sums["tokens"], sums["kept_tokens"]) for model, sums in group["losses"].items() if sums["tokens"]
        }
    return dumped


def test_it_survives_json() -> None:
    measured = measure_shard(**make_shard(5))
    assert ShardStatistics.model_validate_json(measured.model_dump_json()) == measured


def test_the_smallest_of_too_many_sources_are_folded_and_counted() -> None:
    size = 700
    offsets = np.concatenate([[0], np.cumsum(np.arange(1, size + 1))]).astype(np.int64)
    flat = np.ones(offsets[-1], np.float32)
    measured = measure_shard(
        sources=[f"host{number}" for number in range(size)],
        offsets=offsets,
        token_bytes_T=flat.astype(np.int32),
        score_T=flat,
        weights_T=flat,
        logprobs={},
    )
    assert measured.total.tokens == offsets[-1]
    assert len(measured.sources) == 500
    assert measured.others_sources == 200
    assert measured.others.tokens == sum(range(1, 201))
    assert measured.near_cut_of == 0
    named, rest, count = fold_sources(measured.sources, 10)
    assert list(named)[:2] == ["host699", "host698"]
    assert (count, rest.documents) == (490, 490)


def test_a_cut_for_each_document_counts_only_where_there_is_one() -> None:
    shard = make_shard(6, lengths=(4, 4)) | {"score_T": np.float32([np.nan, 1, 1, 2, np.nan, 1, 1, 2])}
    shard |= {"weights_T": np.zeros(8, np.float32), "cut": np.float32([1.01, np.nan])}
    measured = measure_shard(**shard)
    assert (measured.near_cut, measured.near_cut_of) == (2, 3)


def test_no_documents_and_empty_documents_are_measured() -> None:
    for lengths in ((), (0,), (0, 0)):
        measured = measure_shard(**make_shard(0, lengths=lengths))
        assert measured.total.documents == measured.total.without_kept == len(lengths)
        assert measured.total.tokens == 0


def test_arrays_that_do_not_fit_are_named() -> None:
    shard = make_shard(7)
    with pytest.raises(PolicyError, match=r"reference has shape \(3,\)"):
        measure_shard(**shard | {"logprobs": {"reference": np.zeros(3, np.float32)}})
    with pytest.raises(PolicyError, match="offsets of 2 documents"):
        measure_shard(**shard | {"sources": ["a", "b"]})
    with pytest.raises(PolicyError, match="tokens have a weight but no score"):
        measure_shard(**shard | {"weights_T": np.ones_like(shard["weights_T"])})


@pytest.mark.slow
def test_a_shard_of_four_million_tokens_takes_about_a_second() -> None:
    shard = make_shard(8, lengths=(1000,) * 4000)
    measure_shard(**shard)
    started = perf_counter()
    measure_shard(**shard)
    assert perf_counter() - started < 3  # 0.5 s beside other work; the rest is for a busy machine
