"""Projecting log-probs across tokenisations: against a slow oracle, on real tokenizers, on the awkward tokens."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.errors import ScorerError
from curator.tokens.projection import count_first_span, project_logprobs
from curator.tokens.tokenizer import EncodedDocument, Tokenizer

TEXTS = [
    "the cats sat",
    "naïve 👩‍👩‍👧‍👦 🇨🇭 龘𠮷",
    "x",
    "  two spaces\n\n\tand\u00a0more  ",
    "def f(x):\n    return x ** 2\n",
]


def project(logprobs: list[float], source: list[int], target: list[int]) -> list[float]:
    return project_logprobs(np.array(logprobs), np.array(source, int), np.array(target, int)).tolist()


def oracle(logprobs: list[float], source: list[int], target: list[int]) -> list[float]:
    """Byte by byte in exact fractions, for tokens that all cover something: sum each span, give each byte its part."""
    owner_S = [i for i, length in enumerate(source) for _ in range(length)]
    owner_T = [i for i, length in enumerate(target) for _ in range(length)]
    cuts_S = {sum(source[:i]) for i in range(len(source) + 1)}
    cuts_T = {sum(target[:i]) for i in range(len(target) + 1)}
    projected = [Fraction(0)] * len(target)
    unscored = set()
    for start, stop in pairwise(sorted(cuts_S & cuts_T)):
        values = [logprobs[i] for i in sorted(set(owner_S[start:stop]))]
        for byte in range(start, stop):
            if any(map(math.isnan, values)):
                unscored.add(owner_T[byte])
            else:
                projected[owner_T[byte]] += sum(map(Fraction, values)) / (stop - start)
    return [math.nan if i in unscored else float(value) for i, value in enumerate(projected)]


def cut_at(size: int, cuts: set[int]) -> list[int]:
    return [b - a for a, b in pairwise([0, *sorted(cuts), size])]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], list[int], list[int]]:
    size = draw(st.integers(1, 40))
    cuts = st.sets(st.integers(1, size - 1)) if size > 1 else st.just(set[int]())
    source, target = cut_at(size, draw(cuts)), cut_at(size, draw(cuts))
    value = st.floats(-40, 0) | st.floats(-1e-300, 0) | st.just(math.nan)
    return draw(st.lists(value, min_size=len(source), max_size=len(source))), source, target


@given(cases())
def test_it_agrees_with_a_slow_oracle(case: tuple[list[float], list[int], list[int]]) -> None:
    np.testing.assert_allclose(project(*case), oracle(*case), rtol=0, atol=1e-9)


@given(cases(), st.booleans(), st.booleans(), st.booleans())
def test_bos_and_eos_change_nothing_for_the_text(
    case: tuple[list[float], list[int], list[int]], source_bos: bool, target_bos: bool, eos: bool
) -> None:
    logprobs, source, target = case
    expected = [math.nan] * target_bos + project(*case) + [-1.5] * eos
    projected = project(
        [math.nan] * source_bos + logprobs + [-1.5] * eos, [0] * source_bos + source + [0] * eos,
        [0] * target_bos + target + [0] * eos,
    )  # fmt: skip
    np.testing.assert_array_equal(projected, expected)


@given(cases())
def test_only_the_first_span_can_lack_a_score_when_only_the_first_token_does(
    case: tuple[list[float], list[int], list[int]],
) -> None:
    logprobs, source, target = case
    logprobs = [math.nan, *(0.0 if math.isnan(value) else value for value in logprobs[1:])]
    unscored = np.isnan(project(logprobs, source, target))
    first = count_first_span(np.array(source), np.array(target))
    assert unscored[:first].all() and not unscored[first:].any()


def test_the_example_of_the_module() -> None:
    assert project([-1, -2, -6], [3, 3, 1], [3, 1, 3]) == [-1, -2, -6]
    assert project([-1, -2, -8], [3, 3, 1], [3, 1, 3]) == [-1, -2.5, -7.5]


def test_equal_tokenisations_are_copied_bit_by_bit() -> None:
    logprobs = np.log(np.random.default_rng(0).random(1000))
    lengths = np.random.default_rng(1).integers(1, 20, 1000)
    assert np.array_equal(project_logprobs(logprobs, lengths, lengths), logprobs)


def test_an_inserted_space_of_the_source_counts_with_the_word_after_it() -> None:
    assert project([math.nan, -1, -2, -3], [0, 0, 2, 1], [1, 1, 1]) == [-1.5, -1.5, -3]
    assert project([math.nan, -2, -3], [0, 2, 1], [1, 1, 1]) == [-1, -1, -3]
    assert project([-2, -1, -3], [2, 0, 1], [2, 1]) == [-2, -4]


def test_an_inserted_space_of_the_target_gets_its_bytes_share_which_is_nothing() -> None:
    np.testing.assert_array_equal(project([math.nan, -2, -3], [0, 2, 1], [0, 0, 2, 1]), [math.nan, 0, -2, -3])
    np.testing.assert_array_equal(project([math.nan, -3], [2, 1], [0, 0, 2, 1]), [math.nan, math.nan, math.nan, -3])
    assert project([-2, -3], [2, 1], [2, 0, 1]) == [-2, 0, -3]


def test_an_eos_of_one_side_alone_is_unscored_or_left_out() -> None:
    np.testing.assert_array_equal(project([math.nan, -2], [0, 2], [2, 0]), [-2, math.nan])
    np.testing.assert_array_equal(project([math.nan, -2, -9], [0, 2, 0], [0, 2]), [math.nan, -2])
    np.testing.assert_array_equal(project([math.nan, -9], [0, 0], [0, 0]), [math.nan, -9])


def test_an_empty_document_has_no_scores() -> None:
    assert project([], [], []) == []
    assert count_first_span(np.zeros(0, int), np.zeros(0, int)) == 0


def test_tokens_of_different_texts_are_refused() -> None:
    with pytest.raises(ScorerError, match="cover 3 bytes, the dataset's 4"):
        project([-1, -2], [1, 2], [4])
    with pytest.raises(ScorerError, match="1 log-probs for 2 tokens"):
        project([-1], [1, 2], [3])


# ------------------------------------------------------------------------------------------------ real tokenizers


def encode(tokenizer: Tokenizer, text: str) -> EncodedDocument:
    (encoded,) = tokenizer.encode([text])
    assert isinstance(encoded, EncodedDocument), encoded
    return encoded


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("source", "target"), [("byte_level", "llama"), ("llama", "byte_level"), ("unigram", "llama")])
def test_real_tokenizers_conserve_the_log_prob_of_a_text(
    good_tokenizers: dict[str, Tokenizer], source: str, target: str, text: str
) -> None:
    """Also where a character is split over tokens, on one side or on both, and spaces are inserted."""
    own, ours = encode(good_tokenizers[source], text), encode(good_tokenizers[target], text)
    logprobs = -np.random.default_rng(0).exponential(3, len(own.input_ids))
    covers = own.token_bytes > 0
    if own.token_bytes[0] == 0:
        logprobs[0] = np.nan
    projected = project_logprobs(logprobs, own.token_bytes, ours.token_bytes)
    inserted = float(logprobs[1:][~covers[1:]].sum())
    assert np.nansum(projected) == pytest.approx(logprobs[covers].sum() + inserted, abs=1e-9)
    slow = oracle(
        logprobs[covers].tolist(), own.token_bytes[covers].tolist(), ours.token_bytes[ours.token_bytes > 0].tolist()
    )
    if inserted == 0:
        np.testing.assert_allclose(projected[ours.token_bytes > 0], slow, rtol=0, atol=1e-9)


def test_the_pieces_of_an_emoji_are_one_span_of_a_token_that_holds_it_whole() -> None:
    emoji = len("👍".encode())
    assert project([math.nan, -1, -2, -3, -4], [0, 1, 1, 1, 1], [emoji]) == [-10]
    assert project([math.nan, -8], [0, emoji], [1, 1, 1, 1]) == [-2, -2, -2, -2]
    assert project([math.nan, -4, -6], [0, 3, 1], [1, 3]) == [-2.5, -7.5]
