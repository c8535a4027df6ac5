"""The shipped bigram model is a real, deterministic language model."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from curator.errors import ScorerError
from curator.scorers.bigram import BigramModel, BigramScorer, bigram_table

COUNTS = {  # after token 0: 0 once, 1 three times; after 1: 0 twice; 2 is seen once and nothing follows it
    "unigram": np.array([4, 5, 1]),
    "row_sizes": np.array([2, 1, 0]),
    "following": np.array([0, 1, 0]),
    "count": np.array([1, 3, 2]),
}


def score_text(model: BigramModel, text: str) -> np.ndarray:
    ids = np.array(Tokenizer.from_file(model.tokenizer_source()).encode(text).ids, np.int32)
    [scores] = model.build(model.identify(), 1).score([ids], lambda n: None)
    return scores.logprobs_T


def test_witten_bell_by_hand() -> None:
    table = bigram_table(COUNTS)
    unigram = [4.5 / 11.5, 5.5 / 11.5, 1.5 / 11.5]
    assert table[0, 1] == pytest.approx(math.log((3 + 2 * unigram[1]) / (4 + 2)))
    assert table[1, 2] == pytest.approx(math.log((0 + 1 * unigram[2]) / (2 + 1)))
    assert table[2] == pytest.approx(np.log(unigram))


@pytest.mark.parametrize("name", ["bigram", "unigram"])
def test_every_row_is_a_distribution(name: str) -> None:
    model = BigramModel(model=name)
    size = Tokenizer.from_file(model.tokenizer_source()).get_vocab_size()
    scorer = model.build(model.identify(), 1)
    for previous in (0, 7, size - 1):
        pairs = [np.array([previous, following], np.int32) for following in range(size)]
        probability = math.fsum(math.exp(scores.logprobs_T[1]) for scores in scorer.score(pairs, lambda n: None))
        assert probability == pytest.approx(1, abs=1e-5)


def test_entropy_and_rank_follow_from_the_table() -> None:
    table = bigram_table(COUNTS)
    [scores] = BigramScorer(table, ("entropy", "rank")).score([np.array([0, 1, 0, 2], np.int32)], lambda n: None)
    assert scores.entropy_T is not None and scores.rank_T is not None
    expected = [-sum(math.exp(value) * value for value in table[row]) for row in (0, 1, 0)]
    assert scores.entropy_T[1:] == pytest.approx(expected)
    assert scores.rank_T[1:].tolist() == [1, 1, 3]
    assert np.isnan(scores.entropy_T[0]) and np.isnan(scores.rank_T[0])


def test_equal_logprobs_share_the_better_rank() -> None:
    table = np.log(np.full((3, 3), 1 / 3, np.float32))
    [scores] = BigramScorer(table, ("rank",)).score([np.array([0, 1, 2], np.int32)], lambda n: None)
    assert scores.rank_T is not None and scores.rank_T[1:].tolist() == [1, 1]


def test_prose_is_likelier_than_noise_and_the_bigram_beats_the_unigram() -> None:
    prose = "If the expression is a list, the value of the function is returned as a string."
    noise = "zqx}{ 0x9f!! \U0001f600 wvjk @@~ \u4e2d\u6587 \x00\x01 PLQ"
    assert np.nanmean(score_text(BigramModel(), prose)) > np.nanmean(score_text(BigramModel(), noise)) + 1
    assert np.nanmean(score_text(BigramModel(), prose)) > np.nanmean(score_text(BigramModel(model="unigram"), prose))


def test_the_tokenizer_keeps_every_byte_adds_no_bos_and_knows_an_end() -> None:
    tokenizer = Tokenizer.from_file(BigramModel().tokenizer_source())
    text = "naïve \U0001f600\u200d\u0648 \x00\r\n\t end"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("").ids == []
    assert tokenizer.token_to_id("<|endoftext|>") is not None


def test_both_files_together_are_small() -> None:
    folder = Path(BigramModel().tokenizer_source()).parent
    assert sum(file.stat().st_size for file in folder.iterdir()) < 250_000


def test_millions_of_tokens_a_second() -> None:
    scorer = BigramModel().build(BigramModel().identify(), 1)
    sequences = list(np.random.default_rng(0).integers(0, 1024, (2000, 500), dtype=np.int32))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        scorer.score(sequences, lambda n: None)
        seconds.append(time.perf_counter() - start)
    assert 1_000_000 / min(seconds) > 5_000_000


def test_a_directory_without_counts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match=r"has no tokenizer\.json"):
        BigramModel(model=str(tmp_path)).identify()


def test_damaged_or_pickled_counts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "counts.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ScorerError, match="cannot read bigram counts"):
        BigramModel(model=str(tmp_path)).identify()
    np.savez(tmp_path / "counts.npz", unigram=np.array([object()]), row_sizes=[1], following=[0], count=[1])
    with pytest.raises(ScorerError, match="cannot read bigram counts"):
        BigramModel(model=str(tmp_path)).identify()


def test_ids_of_another_tokenizer_are_refused() -> None:
    scorer = BigramModel().build(BigramModel().identify(), 1)
    with pytest.raises(ScorerError, match="sequence 1 holds token id 5000"):
        scorer.score([np.array([1, 2], np.int32), np.array([1, 5000], np.int32)], lambda n: None)
