"""TRL's SFTTrainer: `input_ids` and `labels`, which it uses as they are, and `seq_lengths` for packed rows.

Read from trl 1.16, trainer/sft_trainer.py. Rows with `input_ids` are not tokenised again, `labels` are shifted by the
model. When `padding_free=True` the collator makes `position_ids` of `seq_lengths` and ignores the first label of every
document, which has weight 0 anyway.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from curator.exports.columns import FileRow, write_parquet
from curator.exports.form import Facts, Form, Item, document_lengths, unpadded


class TRLForm(Form):
    """Parquet files with `input_ids`, `labels` and, packed, `seq_lengths`."""

    kind: Literal["trl"] = "trl"
    soft: ClassVar[bool] = False
    packing: ClassVar[Literal["never", "optional", "always"]] = "optional"
    guide: ClassVar[str] = """\
```python
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

rows = load_dataset("parquet", data_files="data/*.parquet", split="train")
SFTTrainer(model=model, args=SFTConfig(max_length=None, packing=False, padding_free=False), train_dataset=rows).train()
```

* `max_length=None`: SFTConfig's default of 1,024 tokens would cut longer rows in silence.
* Exported with `--sequence-length`, set `padding_free=True`, which reads `seq_lengths` and keeps the documents of a row
  apart. Leave `packing=False`: the rows are packed already. TRL advises an attention that takes variable lengths, such
  as FlashAttention, for this.
* The loss is divided by the number of labels of the whole step, so gradient accumulation is exact.
* SFTTrainer has no way in for soft weights. `curator.training.trl_trainer.WeightedSFTTrainer` over the form
  `hugging_face` has.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write `data/train-*.parquet`; see the base class."""
        write_parquet((_row(item) for item in items), folder / "data")


def _row(item: Item) -> FileRow:
    item = unpadded(item)
    row = {"input_ids": item["input_ids"], "labels": item["labels"].astype(np.int32)}
    return {**row, "seq_lengths": document_lengths(item).astype(np.int32)} if "document_ids" in item else row
