"""Fixed bins that fit every policy: mergeable counts of scores and losses, of all scored and of kept tokens.

Bins are 1/16 wide where log-probs live (-8 to 8) and grow with the value beyond (16 bins an octave, up to 65,536,
the end of float16), with an open bin at each end that also takes the infinities. Edges are the same for every
shard and policy, so that merging is adding; they are exact in binary, so that a count never depends on rounding.
A bin holds its lower edge and not its upper one.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from curator.data import FloatArray, StrictModel

CountArray = npt.NDArray[np.int64]

STEPS_PER_UNIT = 16
LINEAR_LIMIT = 8
STEPS_PER_OCTAVE = 16
OCTAVES = 13


def make_edges() -> npt.NDArray[np.float64]:
    """The inner bin edges in rising order; bin i lies between edges i - 1 and i, the first and last bin are open."""
    fractions = 1 + np.arange(1, STEPS_PER_OCTAVE + 1) / STEPS_PER_OCTAVE
    outer = (LINEAR_LIMIT * 2.0 ** np.arange(OCTAVES)[:, None] * fractions).ravel()
    steps = LINEAR_LIMIT * STEPS_PER_UNIT
    return np.concatenate([-outer[::-1], np.arange(-steps, steps + 1) / STEPS_PER_UNIT, outer])


EDGES = make_edges()
BINS = len(EDGES) + 1
_ZERO_BIN = BINS // 2  # the bin whose lower edge is 0


class Histogram(StrictModel):
    """Counts from bin `first` on, without the empty bins at both ends; `kept` is part of `scored`."""

    first: int = 0
    scored: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()

    def expand(self) -> tuple[CountArray, CountArray]:
        """Counts of scored and of kept tokens in all bins, shape (BINS,) each."""
        full = np.zeros((2, BINS), np.int64)
        full[:, self.first : self.first + len(self.scored)] = self.scored, self.kept
        return full[0], full[1]


def trim_histogram(scored: CountArray, kept: CountArray) -> Histogram:
    """The stored form of counts over all bins, shape (BINS,) each."""
    filled = np.flatnonzero(scored)
    if len(filled) == 0:
        return Histogram()
    part = slice(int(filled[0]), int(filled[-1]) + 1)
    return Histogram(first=part.start, scored=tuple(scored[part].tolist()), kept=tuple(kept[part].tolist()))


def add_histograms(histograms: Iterable[Histogram]) -> Histogram:
    """Counts of all histograms together."""
    return trim_histogram(*np.sum([histogram.expand() for histogram in histograms] or [Histogram().expand()], axis=0))


def find_bins(values: FloatArray) -> npt.NDArray[np.int32]:
    """Bin of each value; values must not be NaN.

    Equal to `np.searchsorted(EDGES, values, side="right")`, but by arithmetic on the linear part, which is where
    nearly all values lie: several times faster.
    """
    inner = np.clip(values, -LINEAR_LIMIT, LINEAR_LIMIT)
    bins = np.floor(inner * STEPS_PER_UNIT).astype(np.int32) + np.int32(_ZERO_BIN)
    outside = np.flatnonzero(np.abs(values) >= LINEAR_LIMIT)
    bins[outside] = np.searchsorted(EDGES, values[outside], side="right")
    return bins


def count_histogram(values_T: FloatArray, kept_T: npt.NDArray[np.bool_]) -> Histogram:
    """Count values, shape (T,), that are not NaN, and the kept ones among them."""
    valid_T = ~np.isnan(values_T)
    bins = find_bins(values_T[valid_T])
    bins[kept_T[valid_T]] += BINS
    dropped, kept = np.bincount(bins, minlength=2 * BINS).reshape(2, BINS)
    return trim_histogram(dropped + kept, kept)


def quantile_bin(counts: CountArray, share: float) -> tuple[float, float]:
    """Edges of the bin that holds the `share` quantile of counted values; outer bins give their one finite edge."""
    if counts.sum() == 0:
        return 0.0, 0.0
    reached = np.cumsum(counts) >= share * counts.sum()
    number = int(np.argmax(reached & (counts > 0)))
    return float(EDGES[max(number - 1, 0)]), float(EDGES[min(number, len(EDGES) - 1)])
