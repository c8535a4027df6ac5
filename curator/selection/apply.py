"""Apply a policy and its cuts to a piece of a shard: scores and weights for every token of it.

Invariants: the result for a row does not depend on the piece around it; a token without a score has weight 0; at
document scope exactly round(keep * n) of a row's n scored tokens are kept.

Shapes: T tokens of the piece's rows end to end, D rows.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from curator.data import Cut, FloatArray, Policy
from curator.errors import PolicyError
from curator.selection.histogram import find_bins
from curator.selection.pieces import Piece, locate, scope_rows, score_piece
from curator.selection.ties import STREAM_TIES, RowArray, as_uniform, hash_tokens

_NO_CUT = Cut(value=-np.inf, share=1.0)


def apply_policy(policy: Policy, piece: Piece, cuts: Mapping[str, Cut]) -> tuple[FloatArray, FloatArray]:
    """Score and weigh the tokens of a piece.

    Args:
        policy: what to score and weigh by.
        piece: rows of one shard.
        cuts: by scope key (`Cuts.by_scope`); not read without `keep` or at document scope.

    Returns:
        score_T: float32 on the float16 grid, NaN where unscored; weights_T: float32 before normalisation.

    Raises:
        PolicyError: there is no cut for one of the piece's populations.
    """
    score_T = score_piece(policy, piece)
    if policy.keep is None:
        return score_T, policy.weigh(score_T, _NO_CUT, np.zeros_like(score_T))
    if policy.scope == "document":
        return score_T, _weigh_documents(policy, piece, score_T)
    keys, row_key = scope_rows(policy.scope, piece)
    missing = sorted(set(keys) - cuts.keys())
    if missing:
        raise PolicyError(f"no cut for {policy.scope} {missing}; calibrate over every shard that is selected")
    tie_T = _break_ties(policy, piece, score_T, np.array([cuts[key].value for key in keys]), row_key)
    weights_T = np.empty_like(score_T)
    for start, stop, key in _runs(row_key, piece.offsets):
        weights_T[start:stop] = policy.weigh(score_T[start:stop], cuts[keys[key]], tie_T[start:stop])
    return score_T, weights_T


def _runs(row_key: npt.NDArray[np.intp], offsets: RowArray) -> list[tuple[int, int, int]]:
    """Token ranges of consecutive rows with one key: (start, stop, key)."""
    if len(row_key) == 0:
        return []
    first_rows = np.concatenate([[0], np.flatnonzero(np.diff(row_key)) + 1])
    ends = np.append(offsets[first_rows[1:]], offsets[-1])
    return list(zip(offsets[first_rows].tolist(), ends.tolist(), row_key[first_rows].tolist(), strict=True))


def find_tied(
    score_T: FloatArray, values: npt.NDArray[np.float64], row_key: npt.NDArray[np.intp], piece: Piece
) -> RowArray:
    """Flat indices of the tokens whose score is exactly the cut of their population, in rising order.

    Args:
        score_T: rounded scores, shape (T,).
        values: the cut of each population of the piece.
        row_key: index into `values` for each row, shape (D,).
        piece: the rows.
    """
    if len(values) == 1:
        return np.flatnonzero(score_T == np.float32(values[0]))
    return np.flatnonzero(score_T == np.repeat(values.astype(np.float32)[row_key], piece.lengths))


def _break_ties(
    policy: Policy,
    piece: Piece,
    score_T: FloatArray,
    values: npt.NDArray[np.float64],
    row_key: npt.NDArray[np.intp],
) -> FloatArray:
    """Tie-breaks of the tokens exactly at their cut, 0 elsewhere: hashing only those saves most of the time."""
    tie_T = np.zeros_like(score_T)
    tied = find_tied(score_T, values, row_key, piece)
    tie_T[tied] = as_uniform(hash_tokens(policy.seed, STREAM_TIES, piece.shard, *locate(piece, tied)))
    return tie_T


# ---------------------------------------------------------------------------------------------- document scope


def _weigh_documents(policy: Policy, piece: Piece, score_T: FloatArray) -> FloatArray:
    """Weigh each row by a cut of its own, with ties already settled by rank: kept at 0, dropped at 0.75."""
    kept_T, values = _rank_documents(policy, piece, score_T)
    tie_T = np.where(kept_T, np.float32(0), np.float32(0.75))
    weights_T = np.zeros_like(score_T)
    for row, value in enumerate(values.tolist()):
        here = slice(piece.offsets[row], piece.offsets[row + 1])
        cut = Cut.model_construct(value=value, share=0.5)
        weights_T[here] = policy.weigh(score_T[here], cut, tie_T[here])
    return weights_T


def _rank_documents(
    policy: Policy, piece: Piece, score_T: FloatArray
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """The best round(keep * n) tokens of each row by (score, tie-break, position), and each row's lowest kept score.

    One sort for the whole piece, of numbers that hold row, falling score and tie-break side by side.
    """
    assert policy.keep is not None
    tokens = np.arange(len(score_T))
    row, position = locate(piece, tokens)
    tie_T = hash_tokens(policy.seed, STREAM_TIES, piece.shard, row, position).astype(np.uint64)
    falling_T = (np.uint16(0xFFFF) - find_bins(score_T)).astype(np.uint64)
    row_T = (row - piece.row0).astype(np.uint64)
    order = np.argsort(row_T << np.uint64(40) | falling_T << np.uint64(24) | tie_T, kind="stable")
    rank_T = np.empty_like(tokens)
    rank_T[order] = position
    scored = np.bincount(row_T.astype(np.intp)[~np.isnan(score_T)], minlength=len(piece.lengths))
    target = np.rint(policy.keep * scored).astype(np.int64)
    values = np.zeros(len(target))
    filled = scored > 0
    values[filled] = score_T[order[piece.offsets[:-1][filled] + np.maximum(target[filled] - 1, 0)]]
    return rank_T < np.repeat(target, piece.lengths), values
