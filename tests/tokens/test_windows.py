"""Windows against a brute-force oracle, and scores that survive being cut and laid back."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.data import TokenScores
from curator.errors import ScorerError, SpecError
from curator.tokens.windows import Window, cut_windows, plan_windows, stitch


@st.composite
def settings(draw: st.DrawFn) -> tuple[int, int, int, bool]:
    left_context = draw(st.integers(1, 12))
    context = left_context + draw(st.integers(2, 12))
    return draw(st.integers(1, 70)), context, left_context, draw(st.booleans())


def cheapest(length: int, context: int, left_context: int, has_bos: bool) -> int:
    """Fewest tokens run through the model, by trying every way to cut."""

    @cache
    def rest(score_from: int) -> int:
        if score_from == length:
            return 0
        most = context - left_context - has_bos
        return min(
            left_context + has_bos + scored + rest(score_from + scored)
            for scored in range(1, min(most, length - score_from) + 1)
        )

    return min(stop + rest(stop) for stop in range(left_context + 1, min(context, length) + 1)) if length > 1 else 1


@given(settings())
def test_every_token_but_the_first_is_scored_once_with_its_context(case: tuple[int, int, int, bool]) -> None:
    length, context, left_context, has_bos = case
    scored: list[int] = []
    for window in plan_windows(*case):
        inside = list(range(window.start, window.stop))
        assert len(inside) + window.repeats_bos <= context
        assert window.repeats_bos == (has_bos and window.start > 0)
        for token in range(window.score_from, window.stop):
            before = [other for other in inside if other < token]
            assert len(before) >= min(left_context, token)
            scored.append(token)
    assert scored == list(range(1, length))


@given(settings())
def test_no_plan_runs_fewer_tokens(case: tuple[int, int, int, bool]) -> None:
    length, context, _, _ = case
    cost = sum(window.stop - window.start + window.repeats_bos for window in plan_windows(*case))
    if length <= context:
        assert cost == length
    else:
        assert cost == cheapest(*case)


def test_the_example_of_the_module() -> None:
    assert plan_windows(10, 6, 2, False) == [Window(0, 6, 1), Window(4, 10, 6)]
    assert plan_windows(10, 6, 2, True) == [Window(0, 6, 1), Window(4, 9, 6, True), Window(7, 10, 9, True)]
    assert plan_windows(6, 6, 2, True) == [Window(0, 6, 1)]
    assert plan_windows(0, 6, 2, False) == []
    assert plan_windows(1, 6, 2, False) == [Window(0, 1, 1)]


@pytest.mark.parametrize(("context", "left_context"), [(10, 9), (10, 10), (3, 2), (5, 0), (5, -1)])
def test_a_context_without_room_says_what_to_set(context: int, left_context: int) -> None:
    with pytest.raises(SpecError, match=f"left_context: {left_context} does not fit.*between 1 and {context - 2}"):
        plan_windows(3, context, left_context, False)


def fake_scores(sequence: np.ndarray, features: bool) -> TokenScores:
    """A score that says which token it belongs to, and what stands at the head of its window."""
    logprobs_T = sequence.astype(np.float32).copy()
    logprobs_T[0] = np.nan
    if not features:
        return TokenScores(logprobs_T)
    return TokenScores(logprobs_T, entropy_T=logprobs_T * 2, rank_T=logprobs_T * 3)


@given(st.lists(st.integers(0, 60), max_size=6), settings(), st.booleans())
def test_scores_come_back_to_their_tokens(lengths: list[int], case: tuple[int, int, int, bool], features: bool) -> None:
    _, context, left_context, has_bos = case
    documents = [np.arange(1000 * row, 1000 * row + n, dtype=np.int32) for row, n in enumerate(lengths)]
    plans, sequences = cut_windows(documents, context, left_context, has_bos)
    for plan, ids_T in zip(plans, documents, strict=True):
        assert plan == plan_windows(len(ids_T), context, left_context, has_bos)
    assert all(0 < len(sequence) <= context for sequence in sequences)
    heads = {int(ids_T[0]) for ids_T in documents if len(ids_T)}
    assert not has_bos or all(int(sequence[0]) in heads for sequence in sequences)
    stitched = stitch(documents, plans, [fake_scores(sequence, features) for sequence in sequences])
    for ids_T, score in zip(documents, stitched, strict=True):
        expected_T = ids_T.astype(np.float32)
        expected_T[:1] = np.nan
        np.testing.assert_array_equal(score.logprobs_T, expected_T)
        assert score.logprobs_T.dtype == np.float32
        if features and len(ids_T):
            assert score.entropy_T is not None and score.rank_T is not None
            np.testing.assert_array_equal(score.entropy_T, expected_T * 2)
            np.testing.assert_array_equal(score.rank_T, expected_T * 3)


def test_a_document_that_fits_is_not_copied() -> None:
    document = np.arange(8, dtype=np.int32)
    plans, sequences = cut_windows([document], 8, 2, True)
    assert sequences[0].base is document
    score = fake_scores(sequences[0], False)
    assert stitch([document], plans, [score])[0] is score


def test_scores_that_do_not_fit_are_refused() -> None:
    document = np.arange(20, dtype=np.int32)
    plans, sequences = cut_windows([document], 8, 2, False)
    scores = [fake_scores(sequence, True) for sequence in sequences]
    with pytest.raises(ScorerError, match=f"answered {len(scores) - 1} of {len(scores)} sequences"):
        stitch([document], plans, scores[1:])
    with pytest.raises(ScorerError, match=r"shape \(7,\) for a sequence of 8 tokens"):
        stitch([document], plans, [fake_scores(sequences[0][1:], True), *scores[1:]])
    with pytest.raises(ScorerError, match="entropy or rank for some windows"):
        stitch([document], plans, [fake_scores(sequences[0], False), *scores[1:]])
