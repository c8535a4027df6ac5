"""ms-swift: a cached dataset whose only message is a document's token ids, with a loss scale for each.

Read from ms-swift 4.6.0. A message's content may be `{token_ids, loss_scale}`: `loss_scale/base.py` then takes one
scale for each token, and a token of scale 0 gets label -100 (`template/base.py`). Rows are encoded again whenever they
are read, so they go through a template that adds nothing, registered by the plug-in that is written beside them: the
templates that ship end in a suffix, and an EOS of weight 0 behind a kept token would be trained on after all, and the
`dummy` one adds a BOS.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from curator.exports.columns import FileRow, group_rows, list_column, write_dataset
from curator.exports.form import Facts, Form, Item

_PLUGIN = '''\
"""The template of token-curator's export: token ids as they are, nothing before, nothing behind."""

from swift.template import TemplateMeta, register_template

register_template(TemplateMeta("curated", prefix=[], prompt=["{{QUERY}}"], chat_sep=[], suffix=[]), exist_ok=True)
'''


class MsSwiftForm(Form):
    """A dataset on disk of messages made of token ids and loss scales, and a template for them."""

    kind: Literal["ms_swift"] = "ms_swift"
    soft: ClassVar[bool] = True
    packing: ClassVar[Literal["never", "optional", "always"]] = "never"
    guide: ClassVar[str] = """\
```
swift sft --model MODEL --external_plugins template.py --template curated --cached_dataset train \\
    --max_length 2048 --strict true --packing true --attn_impl flash_attn --is_binary_loss_scale false
```

* `--template curated` comes from `template.py` and adds no token. With any other template the tokens are not these.
* Export with `--sequence-length` equal to `--max_length`: longer documents are cut into pieces that overlap by one
  token. ms-swift removes longer rows and only logs it.
* `--packing true` packs rows and keeps their documents apart by position; it wants FlashAttention. Leave it out for
  plain padded batches.
* `--is_binary_loss_scale false` makes the scales reach the loss; masks of 0 and 1 work without it, through labels.
  `--loss_scale` stays at its default. Liger's fused loss knows no scales.
* The loss is the sum of scale times cross-entropy, divided by the number of labels of the whole step, not by the sum
  of scales. Weights of the kept tokens average 1 over a curated dataset, so the two agree on average, and each
  gradient has the right direction.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write `train/` and `template.py`; see the base class."""
        write_dataset((_table(group) for group in group_rows(_row(item) for item in items)), folder / "train")
        (folder / "template.py").write_text(_PLUGIN, encoding="utf-8")


def _row(item: Item) -> FileRow:
    return {"token_ids": item["input_ids"], "loss_scale": item["token_weights"]}


def _table(rows: Sequence[FileRow]) -> pa.Table:
    columns = {name: list_column([row[name] for row in rows]) for name in ("token_ids", "loss_scale")}
    content = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    message = pa.StructArray.from_arrays([pa.array(["assistant"] * len(rows)), content], names=["role", "content"])
    messages = pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1, dtype=np.int32)), message)
    lengths = pa.array([len(row["token_ids"]) for row in rows], pa.int32())
    return pa.table({"messages": messages, "lengths": lengths})
