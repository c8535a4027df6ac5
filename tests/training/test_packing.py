"""Packing: every kept token is learned exactly once, whatever the lengths."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.training.packing import pack


def documents(lengths: list[int]) -> list[tuple[int, dict[str, Any]]]:
    """Documents whose weights, ids and log-probs are all different, so that each token can be recognised."""
    rows, number = [], 0
    for index, length in enumerate(lengths):
        ids = np.arange(number, number + length)
        weights = (ids + 1).astype(np.float32)
        weights[0] = 0
        logprobs = -(ids + 0.5).astype(np.float32)
        logprobs[0] = np.nan
        labels = np.where(weights > 0, ids, -100)
        rows.append((index, {"input_ids": ids, "labels": labels, "token_weights": weights, "logprobs_base": logprobs}))
        number += length
    return rows


lengths_lists = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(lengths_lists, st.integers(2, 17))
def test_every_token_with_a_context_is_learned_exactly_once(lengths: list[int], sequence_length: int) -> None:
    rows = documents(lengths)
    expected = [
        (int(row["input_ids"][t]), float(row["token_weights"][t]))
        for _, row in rows
        for t in range(1, len(row["input_ids"]))
    ]
    learned = []
    for _, sequence in pack(rows, sequence_length):
        assert {len(values) for values in sequence.values()} == {sequence_length}
        for t in range(1, sequence_length):
            if sequence["token_weights"][t] > 0:
                assert sequence["document_ids"][t] == sequence["document_ids"][t - 1], "predicted from another document"
                assert sequence["input_ids"][t - 1] == sequence["input_ids"][t] - 1, "predicted from its predecessor"
                assert sequence["labels"][t] == sequence["input_ids"][t]
                assert sequence["logprobs_base"][t] == -(sequence["input_ids"][t] + 0.5)
                learned.append((int(sequence["input_ids"][t]), float(sequence["token_weights"][t])))
    assert learned == expected


@settings(max_examples=50, deadline=None)
@given(lengths_lists, st.integers(2, 17))
def test_the_first_token_of_every_piece_is_context_only(lengths: list[int], sequence_length: int) -> None:
    for _, sequence in pack(documents(lengths), sequence_length):
        starts = np.flatnonzero(np.diff(sequence["document_ids"], prepend=-2))
        assert starts.tolist() == np.flatnonzero(sequence["position_ids"] == 0).tolist()
        assert (sequence["labels"][starts] == -100).all()
        assert (sequence["token_weights"][starts] == 0).all()
        assert np.isnan(sequence["logprobs_base"][starts]).all()


@settings(max_examples=50, deadline=None)
@given(lengths_lists, st.integers(2, 17))
def test_only_the_end_of_the_last_sequence_is_padded(lengths: list[int], sequence_length: int) -> None:
    sequences = [sequence for _, sequence in pack(documents(lengths), sequence_length)]
    assert all((sequence["document_ids"] >= 0).all() for sequence in sequences[:-1])
    padding = sequences[-1]["document_ids"] == -1
    assert np.diff(padding.astype(int)).min(initial=0) >= 0
    assert (sequences[-1]["labels"][padding] == -100).all()
    assert (sequences[-1]["token_weights"][padding] == 0).all()


@settings(max_examples=50, deadline=None)
@given(lengths_lists, st.integers(2, 17), st.integers(0, 10**6))
def test_packing_goes_on_from_any_place(lengths: list[int], sequence_length: int, which: int) -> None:
    rows = documents(lengths)
    packed = list(pack(rows, sequence_length))
    index = which % len(packed)
    row, token = packed[index][0]
    rest = [sequence for _, sequence in pack(rows[row:], sequence_length, token)]
    assert len(rest) == len(packed) - index - 1
    for again, (_, expected) in zip(rest, packed[index + 1 :], strict=True):
        for name in expected:
            np.testing.assert_array_equal(again[name], expected[name])
