"""Tie-breaks: reproducible on every machine, uniform, and split at an exact number."""

import numpy as np
import pytest

from curator.selection.histogram import Boundary
from curator.selection.ties import as_uniform, count_tie_breaks, find_share, hash_tokens

MASK = (1 << 64) - 1


def mix(value):
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def hash_one(seed, stream, shard, row, position):
    gamma, state = 0x9E3779B97F4A7C15, 0
    for part in (seed, stream, shard):
        state = mix(((state ^ (part & MASK)) + gamma) & MASK)
    state = mix((state + row * gamma) & MASK)
    return mix((state + position * gamma) & MASK) >> 40


@pytest.mark.parametrize(("seed", "stream", "shard"), [(0, 0, 0), (-5, 1, 99999), (2**70 + 3, 0, 7)])
def test_the_hash_is_that_of_plain_python_integers(seed, stream, shard):
    rows, positions = np.array([0, 0, 1, 123456]), np.array([0, 1, 0, 10**7])
    expected = [hash_one(seed, stream, shard, r, p) for r, p in zip(rows.tolist(), positions.tolist(), strict=True)]
    assert hash_tokens(seed, stream, shard, rows, positions).tolist() == expected


def test_the_first_hashes_never_change():
    assert hash_tokens(0, 0, 0, np.zeros(3, np.int64), np.arange(3)).tolist() == [6567030, 6369901, 8617950]


def test_tie_breaks_are_uniform_and_independent_of_their_neighbours():
    rows = np.repeat(np.arange(1000), 200)
    uniform_T = as_uniform(hash_tokens(1, 0, 3, rows, np.tile(np.arange(200), 1000)))
    assert uniform_T.min() >= 0 and uniform_T.max() < 1
    counts = np.bincount((uniform_T * 100).astype(int), minlength=100)
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert 50 < chi_squared < 160  # 99 degrees of freedom: five deviations
    assert abs(np.corrcoef(uniform_T[:-1], uniform_T[1:])[0, 1]) < 0.012
    assert abs(np.corrcoef(uniform_T[:-200], uniform_T[200:])[0, 1]) < 0.012


@pytest.mark.parametrize("tied", [2, 3, 10, 1000, 300_000, 3_000_000])
@pytest.mark.parametrize("part", [0.001, 0.3, 0.5, 0.999])
def test_the_share_keeps_the_number_that_is_needed(tied, part):
    needed = min(max(round(part * tied), 1), tied - 1)
    boundary = Boundary(0.0, needed, tied, tied)
    tie_T = hash_tokens(4, 0, 2, np.zeros(tied, np.int64), np.arange(tied))
    half = tied // 2
    counts = count_tie_breaks(tie_T[:half], boundary) + count_tie_breaks(tie_T[half:], boundary)
    kept = np.count_nonzero(as_uniform(tie_T) < find_share(counts, boundary))
    assert abs(kept - needed) <= 2


@pytest.mark.parametrize(("needed", "share"), [(0, 0.0), (7, 1.0)])
def test_all_or_none_needs_no_counting(needed, share):
    assert find_share(np.zeros(0, np.int64), Boundary(0.0, needed, 7, 9)) == share
