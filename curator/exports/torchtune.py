"""torchtune: rows of `tokens` and `labels`, what its datasets give out.

Read from torchtune 0.6.1, the last release: the recipes shift labels by one step (`recipes/full_finetune_*.py`), so
these are token-aligned. Its unreleased main branch shifts in the dataset instead and would need shifted labels: hence
the version check in the component that is written beside the rows. `PackedDataset` packs rows and keeps them apart by
a block mask.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from curator.exports.columns import write_parquet
from curator.exports.form import Facts, Form, Item

_COMPONENT = '''\
"""The dataset component of token-curator's export, for a torchtune config: `_component_: curated.dataset`."""

from importlib.metadata import version
from pathlib import Path

from datasets import load_dataset
from torchtune.datasets import PackedDataset

if not version("torchtune").startswith("0.6."):
    raise RuntimeError(
        f"these labels are for recipes that shift them, those of torchtune 0.6; torchtune {version('torchtune')} may "
        "shift in its datasets, and would then learn each token from itself: install torchtune 0.6.1"
    )


def dataset(tokenizer, packed=False):
    files = str(Path(__file__).parent / "data" / "*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train")
    if not packed:
        return rows
    return PackedDataset(rows, max_seq_len=tokenizer.max_seq_len, padding_idx=tokenizer.pad_id)
'''


class TorchtuneForm(Form):
    """Parquet files with `tokens` and `labels`, one document or piece of one a row."""

    kind: Literal["torchtune"] = "torchtune"
    soft: ClassVar[bool] = False
    packing: ClassVar[Literal["never", "optional", "always"]] = "never"
    guide: ClassVar[str] = """\
`curated.py` in this folder is a dataset component for a config of any recipe; run it from here, or put this folder on
PYTHONPATH. `examples/trainers/torchtune.yaml` of token-curator is a whole config.

```yaml
dataset:
  _component_: curated.dataset
  packed: true
tokenizer: {..., max_seq_len: 2048}   # the number given to --sequence-length
```

* `labels` are token-aligned, -100 where the weight is 0, for torchtune 0.6.1, whose recipes shift them. The main branch
  after it shifts in its datasets; `curated.py` stops there rather than let it learn each token from itself.
* Export with `--sequence-length` equal to `max_seq_len`: longer documents are cut into pieces that overlap by one
  token. Packing then never has to split a row.
* The recipes divide by the number of labels of the whole step, so gradient accumulation is exact.
* Its losses take no weight per token.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write `data/train-*.parquet` and `curated.py`; see the base class."""
        (folder / "curated.py").write_text(_COMPONENT, encoding="utf-8")
        rows = ({"tokens": item["input_ids"], "labels": item["labels"].astype(np.int32)} for item in items)
        write_parquet(rows, folder / "data")
