"""axolotl: rows of `input_ids`, `attention_mask` and `labels`, which it takes as already tokenised.

Read from axolotl 0.19.0: `utils/data/wrappers.py` leaves a dataset with exactly these columns alone; `utils/trainer.py`
gives every row positions of its own and packs (`sample_packing`); the collator turns rows of a pack into numbered
masks, so documents stay apart. Packing is therefore axolotl's: a packed row of ours would become one document there.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from curator.exports.columns import write_parquet
from curator.exports.form import Facts, Form, Item


class AxolotlForm(Form):
    """Parquet files with `input_ids`, `attention_mask` and `labels`, one document or piece of one a row."""

    kind: Literal["axolotl"] = "axolotl"
    soft: ClassVar[bool] = False
    packing: ClassVar[Literal["never", "optional", "always"]] = "never"
    guide: ClassVar[str] = """\
```yaml
datasets:
  - path: data            # this folder's data/
    data_files: data/*.parquet
    ds_type: parquet
    type:                 # empty: the rows are tokenised
sequence_len: 2048        # at least the number given to --sequence-length
sample_packing: true
excess_length_strategy: raise
```

* Export with `--sequence-length` equal to `sequence_len`: longer documents are cut into pieces that overlap by one
  token, and no kept token is lost. axolotl drops rows longer than `sequence_len` in silence unless
  `excess_length_strategy: raise` is set.
* `sample_packing` packs rows and keeps them apart; leave `dataset_exact_deduplication` off.
* `labels` are token-aligned, -100 where the weight is 0; the model shifts them. The loss is the HF Trainer's, divided
  by the number of labels of the whole step.
* There is no way in for a weight per token other than 0 and 1.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write `data/train-*.parquet`; see the base class."""
        rows = (
            {
                "input_ids": item["input_ids"],
                "attention_mask": np.ones(len(item["input_ids"]), np.int8),
                "labels": item["labels"].astype(np.int32),
            }
            for item in items
        )
        write_parquet(rows, folder / "data")
