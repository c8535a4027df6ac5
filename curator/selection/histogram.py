"""Count scores exactly: rounded to float16, every score is one of 65,536 values, so a histogram loses nothing.

Merging is adding, so any partition of the corpus over shards and workers gives the same counts and the same cut.
Invariants: bins are in rising order of score, -0 is +0, NaN (unscored) is in no bin.

Shapes: T tokens, BINS the bins.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curator.data import FloatArray

CountArray = npt.NDArray[np.int64]
CodeArray = npt.NDArray[np.uint16]

BINS = 1 << 16
_CHUNK = 1 << 18  # bincount widens its input to 64 bits: 2 MB at a time
_SIGN = 0x8000


@dataclass(frozen=True)
class Histogram:
    """Counts of the filled bins alone, in rising order of `bins`: small enough to travel by the thousand."""

    bins: CodeArray
    counts: CountArray

    def expand(self) -> CountArray:
        """Counts of all bins, shape (BINS,)."""
        dense = np.zeros(BINS, np.int64)
        dense[self.bins] = self.counts
        return dense


def compress(dense: CountArray) -> Histogram:
    """The filled bins of counts of shape (BINS,)."""
    bins = np.flatnonzero(dense)
    return Histogram(bins.astype(np.uint16), dense[bins])


def merge_histograms(parts: Iterable[Histogram]) -> Histogram:
    """Add histograms up; the order does not matter."""
    dense = np.zeros(BINS, np.int64)
    for part in parts:
        dense[part.bins] += part.counts
    return compress(dense)


def round_scores(score_T: FloatArray) -> FloatArray:
    """Round to the values that bins stand for: float16, and -0 made +0; float32 again, shape (T,).

    Scores beyond 65,504 become infinite, which keeps their order.
    """
    with np.errstate(over="ignore"):
        rounded_T = score_T.astype(np.float16).astype(np.float32)
    rounded_T += np.float32(0)
    return rounded_T


def find_bins(rounded_T: FloatArray) -> CodeArray:
    """Bin of each rounded score, shape (T,); NaN gets bin 0, which no score has."""
    code_T = rounded_T.astype(np.float16).view(np.uint16)
    bin_T = np.where(code_T & _SIGN, ~code_T, code_T | np.uint16(_SIGN))
    bin_T[np.isnan(rounded_T)] = 0
    return bin_T


def bin_values() -> FloatArray:
    """The score that each bin stands for, shape (BINS,), rising; NaN for the bins that no score has."""
    bins = np.arange(BINS, dtype=np.uint16)
    codes = np.where(bins & _SIGN, bins ^ np.uint16(_SIGN), ~bins)
    return codes.view(np.float16).astype(np.float32)


def count_scores(score_T: FloatArray) -> CountArray:
    """Count scores, rounded or not, by bin, shape (BINS,); NaN is not counted."""
    by_code = np.zeros(BINS, np.int64)
    with np.errstate(over="ignore"):
        code_T = score_T.astype(np.float16).view(np.uint16)
    for start in range(0, len(code_T), _CHUNK):
        by_code += np.bincount(code_T[start : start + _CHUNK], minlength=BINS)
    return order_counts(by_code)


def order_counts(by_code: CountArray) -> CountArray:
    """Turn counts by float16 bit pattern, shape (..., BINS), into counts by bin: no NaN, -0 with +0."""
    rising = by_code[..., :_SIGN].copy()
    rising[..., 0] += by_code[..., _SIGN]
    falling = by_code[..., _SIGN:][..., ::-1].copy()
    falling[..., -1] = 0
    counts = np.concatenate([falling, rising], axis=-1)
    counts[..., np.isnan(bin_values())] = 0
    return counts


@dataclass(frozen=True)
class Boundary:
    """Where the count runs out: everything above `value` is kept, and `needed` of the `tied` tokens exactly at it.

    `scored` is the population that `keep` is a share of.
    """

    value: float
    needed: int
    tied: int
    scored: int

    @property
    def splits(self) -> bool:
        """Whether some of the tokens at the boundary are kept and some are not."""
        return 0 < self.needed < self.tied


def find_boundary(counts: CountArray, keep: float) -> Boundary:
    """Find where the best round(keep * n) of n tokens end; Python's round (half to even).

    Args:
        counts: tokens by bin, shape (BINS,).
        keep: share to keep, in (0, 1].
    """
    from_top = np.cumsum(counts[::-1])
    scored = int(from_top[-1])
    if scored == 0:
        return Boundary(0.0, 0, 0, 0)
    target = round(keep * scored)
    place = int(np.searchsorted(from_top, max(target, 1)))
    tied = int(counts[BINS - 1 - place])
    needed = max(target - (int(from_top[place]) - tied), 0)
    return Boundary(float(bin_values()[BINS - 1 - place]), needed, tied, scored)
