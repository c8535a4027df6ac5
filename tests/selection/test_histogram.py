"""Scores are counted exactly, in the order of a plain sort."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from curator.selection.histogram import (
    BINS,
    bin_values,
    compress,
    count_scores,
    find_bins,
    find_boundary,
    merge_histograms,
    round_scores,
)

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
SCORES = hnp.arrays(np.float32, st.integers(0, 60), elements=FLOATS)


def test_every_float16_has_a_bin_of_its_own_in_rising_order():
    every = np.arange(BINS, dtype=np.uint16).view(np.float16)
    numbers = sorted({float(x) for x in every if not math.isnan(x)})
    values = bin_values()
    assert values[~np.isnan(values)].tolist().count(0.0) == 2  # -0 has a bin too, which stays empty
    assert sorted(set(values[~np.isnan(values)].tolist())) == numbers
    assert np.all(np.diff(values[~np.isnan(values)]) >= 0)
    counts = count_scores(every.astype(np.float32))
    assert counts.sum() == len(numbers) + 1 and counts.max() == 2 and values[counts.argmax()] == 0


@settings(deadline=None)
@given(SCORES)
def test_counts_are_those_of_a_dictionary(score_T):
    expected = {}
    with np.errstate(over="ignore"):
        for score in score_T.astype(np.float16).astype(float):
            if not math.isnan(score):
                expected[score + 0.0] = expected.get(score + 0.0, 0) + 1
    counts = count_scores(score_T)
    assert {float(bin_values()[i]): int(counts[i]) for i in np.flatnonzero(counts)} == expected


@settings(deadline=None)
@given(SCORES)
def test_a_rounded_score_is_the_value_of_its_bin(score_T):
    rounded_T = round_scores(score_T)
    scored_T = ~np.isnan(rounded_T)
    assert np.array_equal(bin_values()[find_bins(rounded_T)][scored_T], rounded_T[scored_T])
    assert not np.any(np.signbit(rounded_T[rounded_T == 0]))
    assert not np.any(find_bins(rounded_T)[~scored_T])


def test_a_tiny_negative_score_rounds_to_plus_zero():
    assert math.copysign(1, round_scores(np.array([-1e-12], np.float32))[0]) == 1


@settings(deadline=None)
@given(SCORES, st.data())
def test_merging_the_parts_of_any_split_is_counting_the_whole(score_T, data):
    points = sorted(data.draw(st.lists(st.integers(0, len(score_T)), max_size=4)))
    parts = [compress(count_scores(part)) for part in np.split(score_T, points)]
    merged = merge_histograms(data.draw(st.permutations(parts)))
    assert np.array_equal(merged.expand(), count_scores(score_T))


@settings(deadline=None)
@given(SCORES, st.floats(0.001, 1))
def test_the_boundary_is_where_a_sorted_list_ends(score_T, keep):
    with np.errstate(over="ignore"):
        ranked = sorted((x for x in score_T.astype(np.float16).tolist() if not math.isnan(x)), reverse=True)
    target = round(keep * len(ranked))
    boundary = find_boundary(count_scores(score_T), keep)
    assert boundary.scored == len(ranked)
    if ranked:
        value = ranked[max(target, 1) - 1]
        above = sum(x > value for x in ranked)
        assert (boundary.value, boundary.tied) == (value, ranked.count(value))
        assert boundary.needed == (target - above if target else 0)


@pytest.mark.parametrize(("keep", "scored", "kept"), [(0.5, 5, 2), (0.5, 7, 4), (0.5, 1, 0), (0.3, 1, 0), (1.0, 3, 3)])
def test_halves_round_to_even_as_python_does(keep, scored, kept):
    boundary = find_boundary(count_scores(np.arange(scored, dtype=np.float32)), keep)
    assert kept == round(keep * scored)
    if kept:
        assert boundary.value == scored - kept and boundary.needed == 1
    else:
        assert boundary.needed == 0


def test_a_population_without_scores_has_an_empty_boundary():
    boundary = find_boundary(count_scores(np.full(4, np.nan, np.float32)), 0.6)
    assert (boundary.scored, boundary.needed, boundary.tied) == (0, 0, 0)
