"""Packing documents into sequences of one exact length, so that every token is still learned exactly once.

A document that does not fit goes on in the next sequence. Its next piece begins by repeating the last token of the
piece before: that token is context only (label -100, weight 0, log-prob NaN), so the first new token is predicted from
at least one token and none is predicted twice. Hence the invariant: over all sequences, the weights at t >= 1 of each
piece add up to the weights at t >= 1 of the documents.

Pieces of a sequence are marked by `position_ids` that restart at 0 and by `document_ids` (0, 1, ...; -1 = padding).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from curator.tables import IGNORED_LABEL, LOGPROBS_PREFIX

Row = Mapping[str, npt.NDArray[Any]]
"""Token columns of a document or a sequence, each of shape (T,)."""

Place = tuple[int, int]
"""Where packing goes on: the number of a row, and the token in it with which the next piece begins."""


def pack(rows: Iterable[tuple[int, Row]], sequence_length: int, first_token: int = 0) -> Iterator[tuple[Place, Row]]:
    """Pack documents, in order, into sequences of `sequence_length` tokens; the last one is padded.

    A sequence is given out as soon as it is full, so nothing is pending then but the `Place` that comes with it:
    packing again from there gives the same further sequences.

    Args:
        rows: numbered documents of at least one token, with `input_ids`, `labels`, `token_weights` and any
            `logprobs_<model>`.
        sequence_length: tokens per sequence, at least 2.
        first_token: where in the first row to begin, from a `Place`.

    Yields:
        The place that follows the sequence, and the sequence.
    """
    pieces: list[dict[str, npt.NDArray[Any]]] = []
    room, start, number = sequence_length, first_token, -1
    for number, row in rows:
        length = len(row["input_ids"])
        while True:
            stop = min(length, start + room)
            pieces.append(_cut(row, start, stop))
            room -= stop - start
            if room == 0:
                yield ((number + 1, 0) if stop == length else (number, stop - 1)), _join(pieces)
                pieces, room = [], sequence_length
            if stop == length:
                break
            start = stop - 1
        start = 0
    if pieces:
        sequence = _join([*pieces, _padding(pieces[0], room)])
        sequence["document_ids"][sequence_length - room :] = -1
        yield (number + 1, 0), sequence


def _cut(row: Row, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    piece = {name: values[start:stop].copy() for name, values in row.items()}
    for name in piece:
        if name != "input_ids":
            piece[name][0] = _filler(name)
    return piece


def _padding(like: Row, length: int) -> dict[str, npt.NDArray[Any]]:
    return {name: np.full(length, _filler(name), values.dtype) for name, values in like.items()}


def _filler(name: str) -> float:
    """What says "not learned" in each column; id 0 exists in every vocabulary."""
    if name.startswith(LOGPROBS_PREFIX):
        return float("nan")
    return IGNORED_LABEL if name == "labels" else 0


def _join(pieces: list[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    lengths = [len(piece["input_ids"]) for piece in pieces]
    sequence = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    sequence["position_ids"] = np.concatenate([np.arange(length) for length in lengths])
    sequence["document_ids"] = np.repeat(np.arange(len(lengths)), lengths)
    return sequence
