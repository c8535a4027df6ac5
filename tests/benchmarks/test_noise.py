"""What the noise benchmark puts into text, and how it counts."""

import importlib

import numpy as np
import pytest

inject = importlib.import_module("inject")

CLEAN = [
    f"Question: Ann has {n} apples and buys {n + 7} more at the market on a sunny day.  How many apples has she now?\n"
    f"Answer: She has {n} + {n + 7} = {2 * n + 7} apples, all of them red and round.\n#### {2 * n + 7}"
    for n in range(40)
]
FOREIGN = [" ".join(f"f{n}x{word}" for word in range(200)) for n in range(5)]


def make(kind: str, share: float = 0.2) -> list[inject.Noisy]:
    return inject.inject(kind, CLEAN, share, FOREIGN)


def without_noise(noisy: inject.Noisy) -> str:
    return bytes(np.frombuffer(noisy.text.encode(), np.uint8)[~noisy.noise]).decode()


def only_noise(noisy: inject.Noisy) -> str:
    return bytes(np.frombuffer(noisy.text.encode(), np.uint8)[noisy.noise]).decode()


@pytest.mark.parametrize("kind", ["boilerplate", "markup", "duplicated"])
def test_what_is_put_between_words_leaves_the_rest_as_it_was(kind: str) -> None:
    assert [without_noise(noisy) for noisy in make(kind)] == CLEAN


@pytest.mark.parametrize("kind", ["shuffled", "boilerplate", "markup", "duplicated"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_the_share_of_the_characters_is_the_one_asked_for(kind: str, share: float) -> None:
    made = make(kind, share)
    assert sum(noisy.noise.sum() for noisy in made) / sum(map(len, (noisy.noise for noisy in made))) == pytest.approx(
        share, abs=0.02
    )


def test_shuffled_words_are_the_same_words_in_another_order() -> None:
    for clean, noisy in zip(CLEAN, make("shuffled", 0.4), strict=True):
        assert sorted(noisy.text.split()) == sorted(clean.split())
        assert (noisy.text.split() != clean.split()) == bool(noisy.noise.any())


def test_a_wrong_number_is_another_one_of_the_same_length_and_stands_in_the_solution() -> None:
    made = make("numbers", 0.4)
    for clean, noisy in zip(CLEAN, made, strict=True):
        assert len(noisy.text) == len(clean)
        assert not noisy.noise[: clean.index("Answer:")].any()
        assert only_noise(noisy).isdigit() or not noisy.noise.any()
        changed = np.frombuffer(clean.encode(), np.uint8) != np.frombuffer(noisy.text.encode(), np.uint8)
        assert not changed[~noisy.noise].any()
        assert changed.any() == noisy.noise.any()
    assert sum(noisy.noise.any() for noisy in made) > 20


def test_a_duplicate_follows_what_it_repeats() -> None:
    for noisy in make("duplicated"):
        starts = np.flatnonzero(np.diff(noisy.noise.astype(int), prepend=0) == 1)
        for start in starts:
            stop = start + int(np.argmin(np.append(noisy.noise[start:], False)))
            assert noisy.text[start:stop] == noisy.text[2 * start - stop : start]


def test_boilerplate_comes_from_the_foreign_documents() -> None:
    words = set(" ".join(FOREIGN).split())
    assert all(set(only_noise(noisy).split()) <= words for noisy in make("boilerplate"))


def test_the_seed_decides() -> None:
    assert [noisy.text for noisy in make("markup")] == [noisy.text for noisy in make("markup")]
    again = inject.inject("markup", CLEAN, 0.2, FOREIGN, seed=1)
    assert [noisy.text for noisy in make("markup")] != [noisy.text for noisy in again]


def test_tokens_half_in_noise_are_neither() -> None:
    noisy = inject.Noisy("abcdef", np.array([False, False, True, True, True, False]))
    assert inject.label(noisy, np.array([2, 2, 2])).tolist() == [0, 1, -1]
    with pytest.raises(ValueError, match="5 bytes, the document 6"):
        inject.label(noisy, np.array([2, 3]))


def test_auroc_counts_pairs_and_halves_ties() -> None:
    score, noise = np.array([0.1, 0.5, 0.5, 0.9, 0.2]), np.array([True, True, False, False, False])
    pairs = [(c > n) + 0.5 * (c == n) for c in score[~noise] for n in score[noise]]
    assert inject.auroc(score, noise) == pytest.approx(np.mean(pairs))
