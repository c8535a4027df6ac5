"""Which tokens repeat what their document said before: the column `repeated`, from token ids alone.

Invariant: the result for a row does not depend on the rows around it. Runs are compared by a 64-bit hash, so that a
shard takes a few sorts; two different runs of a document are taken for one with a chance of about 1e-12.

Shapes: T tokens of the rows end to end, D rows.
"""

import numpy as np
import numpy.typing as npt

from curator.data import FloatArray, IntArray
from curator.selection.ties import RowArray

RUN_LENGTHS = (11, 12, 13, 14)
"""Shorter runs are phrases that good text repeats: names with their verbs, formulas, units."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def mark_repeats(ids_T: IntArray, offsets: RowArray) -> FloatArray:
    """How surely each token lies in a run that the same row had before, shape (T,), NaN at the first of each row.

    It is the share of `RUN_LENGTHS` for which the token lies in a run of so many tokens that began earlier in the row
    as well: 0 for what is new, 1 in the second and later of two runs of 14 equal tokens or more.

    Args:
        ids_T: token ids, shape (T,).
        offsets: shape (D+1,), from 0: row d holds tokens offsets[d] to offsets[d + 1].
    """
    lengths_D = np.diff(offsets)
    row_T = np.repeat(np.arange(len(lengths_D)), lengths_D)
    repeated_T = np.zeros(len(ids_T), np.float32)
    with np.errstate(over="ignore"):
        mixed_T = (ids_T.astype(np.uint64) + np.uint64(1)) * _MIX
        mixed_T ^= mixed_T >> np.uint64(31)
        hash_T = mixed_T.copy()
        for length in range(2, RUN_LENGTHS[-1] + 1):
            hash_T = hash_T[:-1] * _BASE + mixed_T[length - 1 :]
            if len(hash_T) == 0:
                break
            if length in RUN_LENGTHS:
                inside = np.flatnonzero(row_T[: len(hash_T)] == row_T[length - 1 :])
                repeated_T += _cover(_again(hash_T[inside], row_T[inside], inside), length, len(ids_T))
    repeated_T /= len(RUN_LENGTHS)
    repeated_T[offsets[:-1][lengths_D > 0]] = np.nan
    return repeated_T


def _again(
    hashes: npt.NDArray[np.uint64], rows: npt.NDArray[np.intp], starts: npt.NDArray[np.intp]
) -> npt.NDArray[np.intp]:
    """Those of `starts` whose hash an earlier start of the same row has."""
    keys = hashes ^ (rows.astype(np.uint64) * _MIX)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    again: npt.NDArray[np.intp] = starts[first[inverse] != np.arange(len(starts))]
    return again


def _cover(starts: npt.NDArray[np.intp], length: int, tokens: int) -> npt.NDArray[np.bool_]:
    """Tokens within `length` from one of the starts, shape (T,)."""
    change = np.zeros(tokens + 1, np.int64)
    np.add.at(change, starts, 1)
    np.add.at(change, starts + length, -1)
    return np.cumsum(change[:-1]) > 0
