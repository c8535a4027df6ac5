"""LLaMA-Factory: the tokenised dataset that it saves and loads as `tokenized_path`.

Read from llamafactory 0.9.5: `data/loader.py` takes a folder of `datasets.save_to_disk` as it is, the collator pads
`labels` with -100, and `data/processor/supervised.py` marks the documents of a packed row by numbers from 1 in
`attention_mask` (0 = padding) and by `position_ids`. The newer trainer of the same package (`USE_V1`) multiplies
per-token `loss_weights`, but makes them from messages only: no tokenised dataset reaches it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from curator.exports.columns import FileRow, group_rows, list_table, write_dataset
from curator.exports.form import Facts, Form, Item


class LlamaFactoryForm(Form):
    """A dataset on disk with `input_ids`, `attention_mask`, `labels` and, packed, `position_ids`."""

    kind: Literal["llama_factory"] = "llama_factory"
    soft: ClassVar[bool] = False
    packing: ClassVar[Literal["never", "optional", "always"]] = "optional"
    guide: ClassVar[str] = """\
```yaml
stage: sft
template: empty
dataset: curated            # must name something, and is not looked up beside a tokenized_path
tokenized_path: tokenized   # this folder's tokenized/
packing: false              # exported with --sequence-length: neat_packing: true
```

* Exported with `--sequence-length N`, set `neat_packing: true` (and `per_device_train_batch_size: 1` with
  FlashAttention 2): without it the trainer reads the document numbers in `attention_mask` as a plain mask and documents
  see each other. Let N be a multiple of 8, to which the trainer pads.
* `cutoff_len` has no effect on tokenised data: rows have the length they have here.
* `labels` are token-aligned, -100 where the weight is 0; the model shifts them. The loss is the HF Trainer's, divided
  by the number of labels of the whole step.
* Soft weights do not reach this loss. The `loss_weights` of the v1 trainer come from messages only and are averaged per
  micro-batch.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write `tokenized/`; see the base class."""
        write_dataset((list_table(group) for group in group_rows(_row(item) for item in items)), folder / "tokenized")


def _row(item: Item) -> FileRow:
    row = {"input_ids": item["input_ids"], "labels": item["labels"].astype(np.int32)}
    if "document_ids" not in item:
        return {**row, "attention_mask": np.ones(len(item["input_ids"]), np.int32)}
    number_T = (item["document_ids"] + 1).astype(np.int32)
    return {**row, "attention_mask": number_T, "position_ids": item["position_ids"].astype(np.int32)}
