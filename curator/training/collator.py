"""From rows of different lengths to the rectangular tensors that a training step takes.

Works on what `curator.load` yields, on rows of `datasets.load_dataset` over the curated files, and on plain lists.
Invariant: padding never counts: its label is -100, its weight 0 and its log-prob NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curator.errors import TrainingError
from curator.tables import IGNORED_LABEL, LOGPROBS_PREFIX

_FILLERS: dict[str, tuple[torch.dtype, float]] = {
    "labels": (torch.int64, IGNORED_LABEL),
    "token_weights": (torch.float32, 0.0),
    "position_ids": (torch.int64, 0),
    "document_ids": (torch.int64, -1),
}
_REFUSED = {
    "attention_mask": "rows are padded here, at their ends: give them without padding",
    "seq_lengths": "documents are told by position_ids: export with `--for hugging_face`, or use curator.load",
}
TAKEN = ("input_ids", *_FILLERS, *_REFUSED)
"""Columns that are looked at, beside every `logprobs_<model>`."""


@dataclass(frozen=True)
class Collator:
    """Pad rows at their ends and stack them; usable as `collate_fn` and as the HF Trainer's `data_collator`.

    Takes `input_ids`, `labels`, `token_weights`, `position_ids`, `document_ids` and every `logprobs_<model>`, where
    present in all rows, and leaves other columns (ids, text) behind: they are no tensors. A plain HF Trainer needs
    `remove_unused_columns=False`, or it drops the weights before they come here; `WeightedTrainer` does not.

    `attention_mask` (1 = token) is added, except for packed rows, known by their `position_ids`: where transformers
    keeps the documents of a row apart by position, it does so only without a mask. Not every architecture does;
    `Objective` asks the model.

    Attributes:
        pad_token_id: id that fills `input_ids`; any id does, as padding has no label and no weight.
        pad_to_multiple_of: round the length up to a multiple of this; None = the longest row.
    """

    pad_token_id: int = 0
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        """Refuse a multiple that is none."""
        multiple = self.pad_to_multiple_of
        if multiple is not None and not (isinstance(multiple, int) and multiple >= 1):
            raise TrainingError(f"pad_to_multiple_of={multiple!r}; use 1 or more, such as 8, or None")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad and stack rows to tensors of shape (B, T).

        Raises:
            TrainingError: no rows, or a row without `input_ids`, with columns of different lengths or other names than
                the first's, or with marks of padding or documents that would be lost.
        """
        if not rows:
            raise TrainingError("a batch needs at least one row; got none")
        if "input_ids" not in rows[0]:
            raise TrainingError(f"row 0 has columns {sorted(rows[0])}; a batch needs rows with input_ids")
        names = [name for name in rows[0] if name in _FILLERS or name.startswith(LOGPROBS_PREFIX)]
        lengths = [len(row["input_ids"]) for row in rows]
        for number, row in enumerate(rows):
            self._check(number, row, ["input_ids", *names], rows[0])
        width, step = max(lengths), self.pad_to_multiple_of or 1
        width = -(-width // step) * step
        batch = {"input_ids": _pad([row["input_ids"] for row in rows], width, torch.int64, self.pad_token_id)}
        if "position_ids" not in names:
            batch["attention_mask"] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
        for name in names:
            dtype, filler = _FILLERS.get(name, (torch.float32, float("nan")))
            batch[name] = _pad([row[name] for row in rows], width, dtype, filler)
        return batch

    @staticmethod
    def _check(number: int, row: Mapping[str, Any], names: list[str], first: Mapping[str, Any]) -> None:
        if row.keys() != first.keys():
            raise TrainingError(f"row {number} has columns {sorted(row)}, row 0 has {sorted(first)}; batch like rows")
        for name, remedy in _REFUSED.items():
            if name in row and not (name == "attention_mask" and all(row[name])):
                raise TrainingError(f"row {number} has {name} {list(row[name])[:8]}, which would be lost; {remedy}")
        lengths = {name: len(row[name]) for name in names}
        if len(set(lengths.values())) > 1:
            raise TrainingError(f"row {number} has columns of different lengths: {lengths}; one value per token each")


def _pad(values: Sequence[Any], width: int, dtype: torch.dtype, filler: float) -> Tensor:
    padded = torch.full((len(values), width), filler, dtype=dtype)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = torch.as_tensor(value, dtype=dtype)
    return padded
