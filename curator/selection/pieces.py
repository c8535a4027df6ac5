"""A piece of a shard, such as a row group: its score columns, its rows, and the populations that they belong to.

Invariant: nothing computed from a piece depends on where one piece ends and the next begins.

Shapes: T tokens of the piece's rows end to end, D rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator.data import FloatArray, HalfArray, IntArray, Policy, Scope
from curator.errors import PolicyError
from curator.policies.noise import REPEATED
from curator.policies.weights import UNIFORM
from curator.selection.histogram import round_scores
from curator.selection.repeats import mark_repeats
from curator.selection.ties import STREAM_UNIFORM, RowArray, as_uniform, hash_tokens
from curator.tables import flat


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one shard.

    Attributes:
        columns: score columns by name, such as `logprobs_reference`, shape (T,), float16 or float32, and `input_ids`,
            int32, for a policy that reads what repeats itself.
        offsets: shape (D+1,), from 0: row d holds tokens offsets[d] to offsets[d + 1].
        sources: the rows' sources, shape (D,).
        shard: the shard's number.
        row0: number in its shard of the first row.
    """

    columns: Mapping[str, FloatArray | HalfArray | IntArray]
    offsets: RowArray
    sources: Sequence[str]
    shard: int
    row0: int

    @property
    def lengths(self) -> RowArray:
        """Tokens of each row, shape (D,)."""
        return np.diff(self.offsets)


def make_piece(lists: Mapping[str, pa.ChunkedArray | pa.Array], sources: Sequence[str], shard: int, row0: int) -> Piece:
    """Make a piece of list columns that must be aligned; a policy that reads no scores still needs one for its lengths.

    Raises:
        PolicyError: there is no column, or the columns differ in their lengths.
    """
    flats = {name: flat(column) for name, column in lists.items()}
    if not flats:
        raise PolicyError(f"shard {shard:05d}: no list column to take the rows' lengths from; give any of its columns")
    first, (_, offsets) = next(iter(flats.items()))
    for name, (_, others) in flats.items():
        if not np.array_equal(others, offsets):
            raise PolicyError(f"shard {shard:05d}: '{name}' and '{first}' have rows of other lengths; score it again")
    if len(sources) != len(offsets) - 1:
        raise PolicyError(f"shard {shard:05d}: {len(sources)} sources for {len(offsets) - 1} rows of '{first}'")
    return Piece({name: values_T for name, (values_T, _) in flats.items()}, offsets, sources, shard, row0)


def score_piece(policy: Policy, piece: Piece) -> FloatArray:
    """Scores of a piece by a policy, rounded as they are counted, shape (T,); NaN where unscored."""
    names = policy.columns()
    columns = {name: piece.columns[name].astype(np.float32) for name in names if name in piece.columns}
    if UNIFORM in names:
        columns[UNIFORM] = draw_uniform(policy.seed, piece)
    if REPEATED in names:
        columns[REPEATED] = mark_repeats(piece.columns["input_ids"].astype(np.int32), piece.offsets)
    score_T = policy.score(columns)
    if score_T.shape != (piece.offsets[-1],):
        raise PolicyError(f"policy gave scores of shape {score_T.shape} for {piece.offsets[-1]} tokens")
    return round_scores(score_T)


def draw_uniform(seed: int, piece: Piece) -> FloatArray:
    """A reproducible uniform number in [0, 1) for each token, shape (T,); NaN at the first of each row."""
    tokens = np.arange(piece.offsets[-1])
    uniform_T = as_uniform(hash_tokens(seed, STREAM_UNIFORM, piece.shard, *locate(piece, tokens)))
    uniform_T[piece.offsets[:-1][piece.lengths > 0]] = np.nan
    return uniform_T


def locate(piece: Piece, tokens: RowArray) -> tuple[RowArray, RowArray]:
    """Row in the shard and position in the row of tokens given by their flat index, in rising order."""
    if len(tokens) == piece.offsets[-1]:
        row = np.repeat(np.arange(len(piece.lengths)), piece.lengths)
    else:
        row = np.searchsorted(piece.offsets, tokens, side="right") - 1
    return row + piece.row0, tokens - piece.offsets[row]


def scope_rows(scope: Scope, piece: Piece) -> tuple[list[str], npt.NDArray[np.intp]]:
    """Which population each row belongs to: the keys met here, and for each row the index of its key, shape (D,).

    The key is "" for the corpus, the source's name, or the shard's five-digit number. Not for document scope, whose
    populations are the rows themselves.
    """
    if scope == "source":
        keys: dict[str, int] = {}
        indices = [keys.setdefault(source, len(keys)) for source in piece.sources]
        return list(keys), np.array(indices, np.intp)
    key = "" if scope == "corpus" else f"{piece.shard:05d}"
    return [key], np.zeros(len(piece.lengths), np.intp)
