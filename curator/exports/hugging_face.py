"""The HF Trainer and plain PyTorch loops: parquet files of token-aligned rows, with weights and log-probs.

The same columns as the curated dataset's, without text and without rows that teach nothing, packed if wished. So the
collator and the losses of `curator.training` take them as they take the curated files.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from curator.exports.columns import FileRow, write_parquet
from curator.exports.form import Facts, Form, Item


class HuggingFaceForm(Form):
    """Parquet files with `input_ids`, `labels`, `token_weights` and log-probs, for `datasets.load_dataset`."""

    kind: Literal["hugging_face"] = "hugging_face"
    soft: ClassVar[bool] = True
    packing: ClassVar[Literal["never", "optional", "always"]] = "optional"
    guide: ClassVar[str] = """\
```python
from datasets import load_dataset
from transformers import TrainingArguments
from curator.training import Collator, WeightedTrainer

rows = load_dataset("parquet", data_files="data/*.parquet", split="train")
arguments = TrainingArguments(...)
WeightedTrainer(model=model, args=arguments, train_dataset=rows, data_collator=Collator()).train()
```

* Index t of every column concerns the prediction of token t: the loss shifts, you do not.
* `WeightedTrainer` keeps the columns that it needs. A Trainer of your own with a loss that reads `token_weights` needs
  `remove_unused_columns=False`, or they are dropped before they arrive.
* `WeightedTrainer` divides by the weight sum of the whole step, over accumulation and ranks. The Trainer alone takes
  `labels` (-100 where the weight is 0), which is the whole truth for masks of 0 and 1, and never sees soft weights.
* Rows without a kept token are not here. Online selection (`Objective(keep=...)`) ranks all scored tokens: for it
  export a dataset that was selected with `keep_all`, or train on `curator.load(DIR, rows="scored")`.
* Packed rows carry `position_ids` that restart with each document. Most architectures of transformers keep documents
  apart by them as long as they get no `attention_mask` (the collator gives none) and no cache (`use_cache=False`), and
  FlashAttention as long as a batch is one row. `WeightedTrainer` sees to that, and refuses a model that does not keep
  them apart; in a loop of your own `curator.training.Objective` does.
  `document_ids` are -1 in the padding at the end of the last row.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write `data/train-*.parquet`; see the base class."""
        write_parquet((_row(item) for item in items), folder / "data")


def _row(item: Item) -> FileRow:
    """The item, with its integers as small as they can be: they widen again when they become tensors."""
    return {name: v.astype(np.int32) if v.dtype.kind == "i" else v.astype(np.float32) for name, v in item.items()}
