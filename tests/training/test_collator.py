"""Padding that never counts."""

from typing import Any

import pytest
import torch

from curator.errors import TrainingError
from curator.training import Collator, Objective, weighted_cross_entropy


def row(length: int) -> dict[str, object]:
    return {
        "doc_id": f"d{length}",
        "input_ids": list(range(1, length + 1)),
        "labels": [-100, *range(2, length + 1)],
        "token_weights": [0.0] + [0.5] * (length - 1),
        "logprobs_reference": [float("nan")] + [-1.0] * (length - 1),
    }


def test_rows_are_padded_with_values_that_do_not_count() -> None:
    batch = Collator(pad_token_id=9)([row(2), row(4)])
    assert batch["input_ids"].tolist() == [[1, 2, 9, 9], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 2, -100, -100], [-100, 2, 3, 4]]
    assert batch["token_weights"].tolist() == [[0, 0.5, 0, 0], [0, 0.5, 0.5, 0.5]]
    assert batch["logprobs_reference"].isnan().tolist() == [[True, False, True, True], [True, False, False, False]]
    assert "doc_id" not in batch
    assert {name: values.dtype for name, values in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.int64,
        "token_weights": torch.float32,
        "logprobs_reference": torch.float32,
    }


@pytest.mark.parametrize(("multiple", "width"), [(None, 5), (4, 8), (5, 5), (64, 64)])
def test_the_width_is_rounded_up(multiple: int | None, width: int) -> None:
    batch = Collator(pad_to_multiple_of=multiple)([row(3), row(5)])
    assert {values.shape for values in batch.values()} == {(2, width)}


def test_padding_changes_no_loss() -> None:
    logits = torch.randn(2, 16, 8, dtype=torch.float64)
    narrow, wide = Collator()([row(2), row(5)]), Collator(pad_token_id=7, pad_to_multiple_of=16)([row(2), row(5)])
    losses = [
        weighted_cross_entropy(logits[:, : batch["input_ids"].shape[1]], batch["input_ids"], batch["token_weights"])
        for batch in (narrow, wide)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)


def test_tensors_of_packed_rows_get_no_mask() -> None:
    packed = {
        "input_ids": torch.arange(4),
        "labels": torch.arange(4),
        "token_weights": torch.ones(4),
        "position_ids": torch.tensor([0, 1, 0, 1]),
        "document_ids": torch.tensor([0, 0, 1, 1]),
    }
    batch = Collator(pad_to_multiple_of=6)([packed])
    assert "attention_mask" not in batch
    assert batch["document_ids"].tolist() == [[0, 0, 1, 1, -1, -1]]


def test_rows_that_cannot_be_stacked_are_refused() -> None:
    with pytest.raises(TrainingError, match="row 1 has columns"):
        Collator()([row(2), {"input_ids": [1]}])
    with pytest.raises(TrainingError, match=r"different lengths: .*'labels': 2"):
        Collator()([{**row(3), "labels": [1, 2]}])
    with pytest.raises(TrainingError, match="at least one row; got none"):
        Collator()([])
    with pytest.raises(TrainingError, match=r"row 0 has columns \['labels'\]"):
        Collator()([{"labels": [1]}])


def test_marks_that_would_be_lost_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"row 1 has attention_mask \[0, 1, 1\].*without padding"):
        Collator()([{**row(2), "attention_mask": [1, 1]}, {**row(3), "attention_mask": [0, 1, 1]}])
    assert Collator()([{**row(2), "attention_mask": [1, 1]}])["attention_mask"].tolist() == [[1, 1]]
    with pytest.raises(TrainingError, match=r"row 0 has seq_lengths \[1, 2\].*--for hugging_face"):
        Collator()([{**row(3), "seq_lengths": [1, 2]}])


def test_a_multiple_that_is_none_is_refused() -> None:
    for multiple in (-8, 0, 8.0, "8"):
        with pytest.raises(TrainingError, match=f"pad_to_multiple_of={multiple!r}; use 1 or more"):
            Collator(pad_to_multiple_of=multiple)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [0, 1.5, float("nan"), "0.5"])
def test_a_share_that_is_none_is_named(keep: Any) -> None:
    with pytest.raises(TrainingError, match=f"keep={keep!r} is not a share"):
        Objective(keep=keep)
