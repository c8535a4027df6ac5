"""Documents longer than a model's context: overlapping windows, and their scores laid back into one document.

A document that fits is one window, itself. A longer one is cut so that every token is scored once, with enough text
before it; the overlap is context only. Pure functions on lengths and arrays; nothing here knows an engine.

    document   0 1 2 3 4 5 6 7 8 9          context 6, left context 2, without BOS
    window     . 1 2 3 4 5                  start 0, stop 6, score_from 1
    window             c c 6 7 8 9          start 4, stop 10, score_from 6

Invariants: index 0 is never scored and every other index is scored by exactly one window; a scored token of a later
window has at least `left_context` tokens of the document before it in its window; no window exceeds the context; the
number of tokens run through the model is the smallest that allows this.

A document that starts with BOS repeats it in front of every later window, as models are trained to see it first. That
window then holds one token less of the document, and BOS does not count as left context.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from curator.data import FloatArray, IntArray, TokenScores
from curator.errors import ScorerError, SpecError


class Window(NamedTuple):
    """A run of a document's tokens, in document indices.

    Attributes:
        start: first token of the document in the window.
        stop: one past the last.
        score_from: first token whose score counts; those from `start` to here are context.
        repeats_bos: the document's BOS comes once more before `start`.
    """

    start: int
    stop: int
    score_from: int
    repeats_bos: bool = False


def plan_windows(length: int, context: int, left_context: int, has_bos: bool) -> list[Window]:
    """Divide a document into windows.

    All windows but the last are full, and each later one begins `left_context` tokens before the first it scores.
    Every window after the first runs `left_context` tokens (and BOS) a second time, so the fewest windows cost least.

    Args:
        length: tokens of the document, BOS and EOS included.
        context: the model's window in tokens.
        left_context: tokens before the first scored one of a later window.
        has_bos: the document starts with BOS.

    Returns:
        Windows in order; none for an empty document.

    Raises:
        SpecError: the context has no room for the left context, BOS and one token to score.
    """
    if left_context < 1 or context <= left_context + 1:
        raise SpecError(
            f"left_context: {left_context} does not fit a context of {context} tokens; set left_context between 1 and "
            f"{max(context - 2, 1)}, or use a context of at least {max(left_context, 1) + 2}"
        )
    if length <= 0:
        return []
    windows = [Window(0, min(length, context), 1)]
    room = context - left_context - int(has_bos)
    for score_from in range(context, length, room):
        windows.append(Window(score_from - left_context, min(score_from + room, length), score_from, has_bos))
    return windows


def cut_windows(
    documents: Sequence[IntArray], context: int, left_context: int, has_bos: bool
) -> tuple[list[list[Window]], list[IntArray]]:
    """Plan the windows of documents and cut the token sequences to run through a model.

    Args:
        documents: token ids, shape (T,) each.
        context: the model's window in tokens.
        left_context: tokens before the first scored one of a later window.
        has_bos: documents start with BOS, which later windows repeat.

    Returns:
        The windows of each document, and one sequence for each window, in order of documents and windows. Sequences
        are views of the document but where BOS is repeated.

    Raises:
        SpecError: see `plan_windows`.
    """
    plans = [plan_windows(len(input_ids_T), context, left_context, has_bos) for input_ids_T in documents]
    sequences = [
        _cut(input_ids_T, window) for input_ids_T, plan in zip(documents, plans, strict=True) for window in plan
    ]
    return plans, sequences


def stitch(
    documents: Sequence[IntArray], plans: Sequence[Sequence[Window]], scores: Sequence[TokenScores]
) -> list[TokenScores]:
    """Lay the scores of windows back into one set of arrays for each document.

    Args:
        documents: as given to `cut_windows`.
        plans: from `cut_windows`.
        scores: the engine's answer to each sequence of `cut_windows`, in order.

    Returns:
        Scores of each document, NaN at index 0. A document of one window keeps its arrays, uncopied.

    Raises:
        ScorerError: scores are missing, of the wrong length, or lack a feature that another window has.
    """
    expected = sum(map(len, plans))
    if len(scores) != expected:
        raise ScorerError(f"the engine answered {len(scores)} of {expected} sequences; report this bug with the model")
    remaining = iter(scores)
    return [
        _stitch_document(len(input_ids_T), plan, remaining) for input_ids_T, plan in zip(documents, plans, strict=True)
    ]


def _cut(input_ids_T: IntArray, window: Window) -> IntArray:
    part_T = input_ids_T[window.start : window.stop]
    return np.concatenate((input_ids_T[:1], part_T)) if window.repeats_bos else part_T


def _stitch_document(length: int, plan: Sequence[Window], remaining: Iterator[TokenScores]) -> TokenScores:
    scores = [next(remaining) for _ in plan]
    for window, score in zip(plan, scores, strict=True):
        _check_shapes(score, window.stop - window.start + window.repeats_bos)
    if len(plan) == 1:
        return scores[0]
    return TokenScores(
        _lay(length, plan, [score.logprobs_T for score in scores]),
        _lay_feature(length, plan, [score.entropy_T for score in scores]),
        _lay_feature(length, plan, [score.rank_T for score in scores]),
    )


def _check_shapes(score: TokenScores, length: int) -> None:
    for values_T in (score.logprobs_T, score.entropy_T, score.rank_T):
        if values_T is not None and values_T.shape != (length,):
            raise ScorerError(
                f"the engine gave scores of shape {values_T.shape} for a sequence of {length} tokens; report this bug "
                "with the model"
            )


def _lay_feature(length: int, plan: Sequence[Window], values: Sequence[FloatArray | None]) -> FloatArray | None:
    present = [values_T for values_T in values if values_T is not None]
    if not present:
        return None
    if len(present) != len(values):
        raise ScorerError("the engine gave entropy or rank for some windows of a document only; report this bug")
    return _lay(length, plan, present)


def _lay(length: int, plan: Sequence[Window], values: Sequence[FloatArray]) -> FloatArray:
    laid_T = np.full(length, np.nan, dtype=np.float32)
    for window, values_T in zip(plan, values, strict=True):
        shift = int(window.repeats_bos) - window.start
        laid_T[window.score_from : window.stop] = values_T[window.score_from + shift : window.stop + shift]
    return laid_T
