"""Batches hold every sequence once, keep the budget and hardly pad."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curator.scorers.batches import plan_batches


@given(st.lists(st.integers(0, 300), max_size=80), st.integers(1, 2000))
def test_every_scorable_sequence_once_within_budget_and_padding(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == [i for i, length in enumerate(lengths) if length >= 2]
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert len(batch) == 1 or padded <= budget
        assert sum(lengths[i] for i in batch) >= 0.97 * padded


def test_equal_lengths_fill_the_budget() -> None:
    assert [len(batch) for batch in plan_batches([100] * 25, 1000)] == [10, 10, 5]


def test_the_longest_come_first_and_order_depends_on_lengths_alone() -> None:
    lengths = np.random.default_rng(0).integers(2, 500, 200).tolist()
    batches = plan_batches(lengths, 4096)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert batches == plan_batches(lengths, 4096)


@given(st.lists(st.integers(0, 300), max_size=80), st.integers(1, 2000))
def test_packed_batches_hold_any_lengths_up_to_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget, packed=True)
    assert sorted(i for batch in batches for i in batch) == [i for i, length in enumerate(lengths) if length >= 2]
    totals = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(total <= budget or len(batch) == 1 for total, batch in zip(totals, batches, strict=True))
    assert all(totals[n] + lengths[batches[n + 1][0]] > budget for n in range(len(batches) - 1))
