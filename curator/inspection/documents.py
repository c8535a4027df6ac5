"""A document, or its beginning, token by token, as plain lists.

The pieces of text, joined, are the text. Tokens can share a character (an emoji is often four byte-level tokens): as in
the report's heat map they form a group, whose first token has the text of all and whose others have none.

Shapes: T tokens of the document.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from pydantic import Field

from curator import tables
from curator.data import FloatArray, StrictModel
from curator.errors import StorageError
from curator.inspection.rows import Rows
from curator.report.heatmap import find_group_stops
from curator.selection.histogram import round_scores

SHOWN_TOKENS = 2000
SHOWN_BYTES = 1 << 16
_SHOWN_NAME = 1000  # characters of an id or a source, which come from the corpus
_DIGITS = 5  # float16 scores are further apart than this but next to 0; the cut is rounded alike
_HUGE = 1e6  # stands in for infinity, which JSON lacks

Numbers = list[float | None]


class PreviewDocument(StrictModel):
    """One document, cut to its first tokens where it is long; `null` where a token has no score."""

    doc_id: str
    source: str
    shard: int
    row: int = Field(description="number in its shard, from 0")
    tokens: list[str] = Field(description="text of each token; all of them joined are the text shown")
    groups: list[int] | None = Field(
        description="sizes of the groups of tokens that share characters: the first has the text of all; null = all 1"
    )
    weights: list[float]
    layers: dict[str, Numbers] = Field(
        description="values of each token: score, loss_<model> in nats, excess (base less reference, in nats)"
    )
    cut: float | None = Field(description="the score from which tokens of this document are kept")
    total_tokens: int = Field(description="of the whole document")
    scored_tokens: int = Field(description="of the whole document")
    kept_tokens: int = Field(description="of the whole document")
    truncated: bool = Field(description="whether the document goes on after these tokens")


def show_document(rows: Rows, row: int, excess: tuple[str, str] | None) -> PreviewDocument:
    """Make the view of one row.

    Args:
        rows: the row group, with doc_id, text, token_bytes and token_weights.
        row: index in the row group.
        excess: names of the reference and the base for the layer `excess`; None: no such layer.

    Raises:
        StorageError: the tokens do not cover the text, or the columns are not aligned.
    """
    start, stop = rows.offsets[row].item(), rows.offsets[row + 1].item()
    pieces, sizes = cut_pieces(rows, row)
    here = slice(start, start + len(pieces))
    cut = rows.cut_D[row].item()
    return PreviewDocument(
        doc_id=_shorten(rows.table.column("doc_id")[row].as_py()),
        source=_shorten(rows.sources[row]),
        shard=rows.shard,
        row=rows.first_row + row,
        tokens=pieces,
        groups=sizes if len(sizes) < len(pieces) else None,
        weights=np.round(rows.weights_T[here].astype(np.float64), _DIGITS).tolist(),
        layers={name: as_numbers(values_T) for name, values_T in _layers(rows, here, excess).items()},
        cut=as_number(cut),
        total_tokens=stop - start,
        scored_tokens=int(np.count_nonzero(rows.scored_T[start:stop])),
        kept_tokens=int(np.count_nonzero(rows.weights_T[start:stop])),
        truncated=len(pieces) < stop - start,
    )


def cut_pieces(rows: Rows, row: int) -> tuple[list[str], list[int]]:
    """Text of the first tokens of a row, and the sizes of the groups that they form.

    The excerpt ends where a character does; it is empty where the first group alone is longer than an excerpt.
    """
    text = rows.table.column("text")[row].as_buffer()  # bytes as stored: a long text is not decoded for its beginning
    token_bytes_T, offsets = tables.flat(rows.table.column("token_bytes"))
    if not np.array_equal(offsets, rows.offsets):
        raise StorageError(f"shard {rows.shard:05d}: token_bytes and token_weights have rows of other lengths")
    token_bytes_T = token_bytes_T[offsets[row] : offsets[row + 1]]
    if token_bytes_T.sum(dtype=np.int64) != text.size or np.any(token_bytes_T < 0):
        raise StorageError(f"shard {rows.shard:05d}, row {rows.first_row + row}: token_bytes do not cover the text")
    ends_T = np.cumsum(token_bytes_T[:SHOWN_TOKENS], dtype=np.int64)
    count = int(np.searchsorted(ends_T, SHOWN_BYTES, side="right"))
    end = ends_T[count - 1].item() if count else 0
    encoded = text.slice(0, min(end + 1, text.size)).to_pybytes()  # one byte more: does a character end at `end`?
    stops = find_group_stops(encoded, token_bytes_T[:count]) if count else np.zeros(0, np.int64)
    return _decode_groups(encoded, stops, ends_T)


def _decode_groups(
    encoded: bytes, stops: npt.NDArray[np.int64], ends_T: npt.NDArray[np.int64]
) -> tuple[list[str], list[int]]:
    pieces: list[str] = []
    sizes: list[int] = np.diff(stops, prepend=0).tolist()
    begin = 0
    for size, end in zip(sizes, ends_T[stops - 1].tolist(), strict=True):
        pieces += [encoded[begin:end].decode(), *[""] * (size - 1)]
        begin = end
    return pieces, sizes


def _layers(rows: Rows, here: slice, excess: tuple[str, str] | None) -> Mapping[str, FloatArray]:
    logprobs = {name: values_T[here].astype(np.float32) for name, values_T in rows.logprobs.items()}
    layers = {} if rows.score_T is None else {"score": rows.score_T[here]}
    layers |= {f"loss_{name}": -values_T for name, values_T in logprobs.items()}
    if excess is not None and set(excess) <= logprobs.keys():
        reference, base = excess
        layers["excess"] = round_scores(logprobs[reference] - logprobs[base])
    return layers


def as_numbers(values_T: FloatArray) -> Numbers:
    """Values as JSON can hold them: NaN is null, infinities are large."""
    rounded = np.round(np.clip(values_T.astype(np.float64), -_HUGE, _HUGE), _DIGITS) + 0.0  # -0 becomes 0
    return [None if value != value else value for value in rounded.tolist()]


def as_number(value: float | None) -> float | None:
    """One value, rounded as those of the layers are, so that the two can be compared."""
    return None if value is None else as_numbers(np.array([value]))[0]


def _shorten(name: str) -> str:
    return name if len(name) <= _SHOWN_NAME else name[: _SHOWN_NAME - 1] + "…"
