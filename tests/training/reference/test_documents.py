"""Good data: every token learned once, every row accounted for."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curator
from curator.corpora.jsonl import JsonlCorpus
from curator.tokens.tokenizer import TokensConfig, load_tokenizer
from curator.training.reference.documents import cut_rows, hold_out, make_batches, read_documents

TOKENIZER = str(Path(curator.__file__).parent / "scorers" / "bigram_model" / "tokenizer.json")


def documents(lengths: list[int]) -> list[np.ndarray]:
    starts = np.cumsum([0, *lengths])
    return [np.arange(start, start + length, dtype=np.int32) for start, length in zip(starts, lengths, strict=False)]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(2, 50), min_size=1, max_size=10), st.integers(2, 20), st.integers(2, 64))
def test_every_token_but_a_documents_first_is_predicted_once(lengths: list[int], rows_of: int, micro: int) -> None:
    rows = cut_rows(documents(lengths), rows_of)
    assert all(2 <= len(row) <= rows_of and (np.diff(row) == 1).all() for row in rows)
    predicted = np.sort(np.concatenate([row[1:] for row in rows]))
    np.testing.assert_array_equal(predicted, np.concatenate([ids[1:] for ids in documents(lengths)]))
    batches = make_batches(rows, micro, seed=3)
    assert sorted(row[0] for batch in batches for row in batch) == sorted(row[0] for row in rows)
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= micro for batch in batches)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
def test_whole_documents_are_held_out_and_one_is_always_left(fraction: float) -> None:
    everything = documents([10] * 20)
    train, held = hold_out(everything, fraction, seed=1)
    assert sorted(ids[0] for ids in train + held) == [ids[0] for ids in everything]
    assert len(held) == min(19, round(fraction * 20))
    assert len(train) >= 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(2, 1000), min_size=2, max_size=30), st.floats(0.01, 0.6), st.integers(0, 5))
def test_uneven_documents_do_not_hold_out_far_more_than_was_wanted(
    lengths: list[int], fraction: float, seed: int
) -> None:
    train, held = hold_out(documents(lengths), fraction, seed)
    wanted, tokens = fraction * sum(lengths), sum(map(len, held))
    assert train and held and len(train) + len(held) == len(lengths)
    assert tokens <= max(2 * wanted, min(lengths))
    assert tokens >= wanted or len(train) == 1 or all(len(ids) > 2 * (wanted - tokens) for ids in train)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.floats(0.01, 0.6), st.integers(0, 5))
def test_what_is_held_out_is_learned_under_no_other_name(which: list[int], fraction: float, seed: int) -> None:
    texts = documents([7, 20, 5, 11, 3, 30])
    train, held = hold_out([texts[number].copy() for number in which], fraction, seed)
    assert len(train) + len(held) == len(which) and train
    assert bool(held) == (len(set(which)) > 1)
    assert not {ids.tobytes() for ids in train} & {ids.tobytes() for ids in held}


def test_one_long_document_among_short_ones_is_trained_on() -> None:
    for seed in range(20):
        _, held = hold_out(documents([10_000, *[10] * 100]), 0.01, seed)
        assert sum(map(len, held)) == 110


def test_rows_that_cannot_be_learned_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl.gz"
    rows = ['{"text": "a sentence"}', "not json", '{"text": "  "}', '{"other": 1}', '{"text": "another sentence"}']
    path.write_bytes(gzip.compress("\n".join([*rows, json.dumps({"text": "e"})]).encode()))
    tokenizer = load_tokenizer(TOKENIZER, None, TokensConfig(bos=False))
    data = read_documents(JsonlCorpus(uri=str(path)), tokenizer)
    assert len(data.documents) == 2
    assert data.bad_rows == {"not_json": 1, "empty_text": 1, "missing_text": 1, "one_token": 1}
    assert data.examples[0].startswith("good.jsonl.gz row 1: not_json")
    assert data.tokens == sum(len(e.input_ids) for e in tokenizer.encode(["a sentence", "another sentence"]))  # type: ignore[union-attr]
