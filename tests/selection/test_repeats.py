"""Which tokens count as repeated, against a search in plain Python."""

import math

import numpy as np
import pytest

from curator.selection.repeats import RUN_LENGTHS, mark_repeats


def found_by_search(ids: list[int]) -> list[float]:
    shares = [0.0] * len(ids)
    for length in RUN_LENGTHS:
        for token in range(len(ids)):
            starts = range(max(0, token - length + 1), min(token, len(ids) - length) + 1)
            runs = [(start, ids[start : start + length]) for start in starts]
            again = any(ids[e : e + length] == run for start, run in runs for e in range(start))
            shares[token] += again / len(RUN_LENGTHS)
    return [math.nan, *shares[1:]] if ids else []


def mark(*rows: list[int]) -> list[list[float]]:
    offsets = np.cumsum([0, *map(len, rows)])
    marked_T = mark_repeats(np.array([token for row in rows for token in row], np.int32), offsets)
    return [part.tolist() for part in np.split(marked_T, offsets[1:-1])]


@pytest.mark.parametrize("length", [10, 11, 12, 13, 14, 20])
def test_a_second_run_is_marked_by_its_length_and_the_first_is_not(length: int) -> None:
    ids = [*range(100, 140), *range(105, 105 + length), *range(200, 220)]
    (marked,) = mark(ids)
    assert marked[1:40] == [0.0] * 39
    assert marked[40 : 40 + length] == [min(max(length - 10, 0), 4) / 4] * length
    assert marked[40 + length :] == [0.0] * 20


def test_it_agrees_with_a_search_over_few_symbols() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 2, size).tolist() for size in (0, 1, 5, 11, 14, 60, 90)]
    for row, marked in zip(rows, mark(*rows), strict=True):
        assert np.array_equal(marked, found_by_search(row), equal_nan=True)
    assert max(np.nanmax(marked) for marked in mark(*rows) if len(marked) > 1) > 0


def test_what_another_row_said_is_new() -> None:
    row = list(range(30))
    first, second = mark(row, row)
    assert np.nansum(first) == np.nansum(second) == 0


def test_rows_around_a_row_change_nothing() -> None:
    row = [*range(20), *range(20)]
    (alone,) = mark(row)
    assert np.array_equal(mark([1, 2, 3], row, row[5:])[1], alone, equal_nan=True)


def test_no_tokens_at_all() -> None:
    assert mark_repeats(np.array([], np.int32), np.array([0])).shape == (0,)
    assert mark([]) == [[]]
