"""Which of the tokens exactly at the cut are kept: those with the lowest tie-breaks, a hash of where each token is.

Float16 scores tie often, and all may tie. A tie-break depends on seed, shard, row and position alone, so that no
partition of the work and no second run changes it. To keep an exact number, tie-breaks are counted in a second
mergeable histogram, whose bins lie densely around the place where the answer must be.

Invariant: tie-breaks are 24-bit numbers, and the share is a multiple of 2^-24: both exact in float32.
"""

import math

import numpy as np
import numpy.typing as npt

from curator.data import FloatArray
from curator.selection.histogram import BINS, Boundary, CountArray

TieArray = npt.NDArray[np.uint32]
RowArray = npt.NDArray[np.int64]
_HashArray = npt.NDArray[np.uint64]

TIE_LEVELS = 1 << 24
STREAM_TIES = 0
STREAM_UNIFORM = 1

_MASK = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_DEVIATIONS = 8


def hash_tokens(seed: int, stream: int, shard: int, row_T: RowArray, position_T: RowArray) -> TieArray:
    """A uniform 24-bit number for each token, shape (T,): the finaliser of SplitMix64 over its place.

    Args:
        seed: the policy's seed.
        stream: keeps uses apart that must be independent.
        shard: the shard's number.
        row_T: each token's row in its shard.
        position_T: each token's index in its row.
    """
    state = np.zeros(1, np.uint64)
    for part in (seed, stream, shard):
        state = _mix((state ^ np.uint64(part & _MASK)) + _GAMMA)
    hash_T = _mix(state + row_T.astype(np.uint64) * _GAMMA)
    return (_mix(hash_T + position_T.astype(np.uint64) * _GAMMA) >> np.uint64(40)).astype(np.uint32)


def _mix(value: _HashArray) -> _HashArray:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def as_uniform(tie_T: TieArray) -> FloatArray:
    """Tie-breaks as float32 in [0, 1), exact, shape (T,)."""
    return tie_T.astype(np.float32) * np.float32(1 / TIE_LEVELS)


def _window(boundary: Boundary) -> tuple[int, int]:
    """First level and levels per bin of the window that must hold the answer: eight deviations about its mean.

    Of m uniform tie-breaks the r-th smallest lies near r/m, within sqrt(p (1 - p) / m); with 65,534 bins over the
    window, a bin holds less than one token until m passes 10^7.
    """
    share = boundary.needed / boundary.tied
    reach = _DEVIATIONS * math.sqrt(share * (1 - share) / boundary.tied) + _DEVIATIONS / boundary.tied
    first = max(math.floor((share - reach) * TIE_LEVELS), 0)
    last = min(math.ceil((share + reach) * TIE_LEVELS), TIE_LEVELS)
    return first, max(math.ceil((last - first) / (BINS - 2)), 1)


def count_tie_breaks(tie_T: TieArray, boundary: Boundary) -> CountArray:
    """Count the tie-breaks of tokens at the boundary, shape (BINS,); end bins hold all below or above the window."""
    first, step = _window(boundary)
    bins = np.clip((tie_T.astype(np.int64) - first) // step + 1, 0, BINS - 1)
    return np.bincount(bins, minlength=BINS)


def find_share(counts: CountArray, boundary: Boundary) -> float:
    """The tie-break below which the number of tokens comes closest to `boundary.needed`.

    Exact but for tokens that share a bin (see `_window`): off by none, rarely by one or two.

    Args:
        counts: from `count_tie_breaks` over every token at the boundary, added up.
        boundary: the same that they were counted with.
    """
    if not boundary.splits:
        return float(boundary.needed > 0)
    first, step = _window(boundary)
    below = np.cumsum(counts)
    best = int(np.argmin(np.abs(below[:-1] - boundary.needed)))
    return min((first + best * step) / TIE_LEVELS, 1.0)
