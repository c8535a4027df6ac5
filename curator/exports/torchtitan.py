"""torchtitan: packed rows of `input`, `positions` and `labels`, what its dataloaders give out.

Read from torchtitan 0.3.0: a batch is `({"input", "positions"}, labels)`, labels are already shifted, and the trainer
divides by the number of labels that are not IGNORE_INDEX (-100) over the whole step and all ranks (`trainer.py`).
Attention masks are made of the places where `positions` return to 0 (`models/common/attention.py`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from curator.exports.columns import FileRow, write_parquet
from curator.exports.form import Facts, Form, Item, targets


class TorchtitanForm(Form):
    """Parquet files of packed sequences with shifted labels."""

    kind: Literal["torchtitan"] = "torchtitan"
    soft: ClassVar[bool] = False
    packing: ClassVar[Literal["never", "optional", "always"]] = "always"
    guide: ClassVar[str] = """\
torchtitan's own datasets tokenise text. `examples/trainers/train_torchtitan.py` of token-curator holds a dataloader of
forty lines that gives out these rows as they are, and a config that uses it:

```
PYTHONPATH=examples/trainers torchrun --nproc_per_node=8 -m torchtitan.train \\
    --module train_torchtitan --config llama3_curated --dataloader.dataset-path THIS_FOLDER
```

* `labels` are shifted: the label at t is token t + 1, -100 where that token's weight is 0 and at the end of a row. Do
  not shift again.
* `training.seq_len` must be the number given to `--sequence-length`.
* Documents of a row are kept apart by `positions`, with the attention backends `flex` and `varlen`. The padding of the
  last row counts as a document of its own and has no label.
* The loss is divided by the number of labels of the whole step, over accumulation and ranks. It takes no weight per
  token: the trainer hands it logits, labels and positions alone.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write `data/train-*.parquet`; see the base class."""
        write_parquet((_row(item) for item in items), folder / "data")


def _row(item: Item) -> FileRow:
    return {
        "input": item["input_ids"],
        "positions": item["position_ids"].astype(np.int32),
        "labels": targets(item).labels_T.astype(np.int32),
    }
