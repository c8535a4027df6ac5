"""Nanotron: datatrove's token files, with the mask in the `.loss` file that datatrove defines.

From datatrove's pipeline/tokens/tokenizer.py: `.ds` holds token ids (2 or 4 bytes each, little-endian), `.ds.index`
the end of every document as uint64, `.ds.loss` one boolean per token, `.ds.metadata` the tokenizer, the bytes of an
id and the number of tokens.

Nanotron reads windows of `sequence_length + 1` tokens that do not overlap, and its collators make `label_mask` from
positions alone, so a small dataset and collator (examples/trainers/train_nanotron.py) bring the mask in.

Invariant: a packed sequence is one window, and each of its documents is a document of the index, padding included.
The mask is token-aligned; that collator shifts it together with the labels.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from curator.exports.form import Facts, Form, Item, document_lengths, smallest_id_type


class NanotronForm(Form):
    """Token, index and mask files in datatrove's format, windows of one length, for nanotron."""

    kind: Literal["nanotron"] = "nanotron"
    soft: ClassVar[bool] = False
    packing: ClassVar[Literal["never", "optional", "always"]] = "always"
    guide: ClassVar[str] = """\
`curated.ds`, `curated.ds.index`, `curated.ds.loss` and `curated.ds.metadata` are a folder of tokens as datatrove
writes it; `.loss` is the mask, one boolean per token, False where the token is not learned.

* Nanotron's `tokens.sequence_length` must be one less than the number given to `--sequence-length`: it reads windows
  of `sequence_length + 1` tokens.
* Its own collators make `label_mask` from positions and would train on everything. Start
  `examples/trainers/train_nanotron.py` of token-curator in place of `run_train.py`; it swaps in a dataset
  and a collator that read `.loss`.
* `data.dataset` is a `NanosetDatasetsArgs` with `dataset_folder` set to this folder; the size of an id is read from
  `.metadata`.
* Models that take positions (Qwen2) get them from `.index`, so attention stays inside documents without any
  end-of-text token. The others attend to the whole window.
* Nanotron averages each micro-batch by itself, by its own number of kept tokens. Large micro-batches make that
  harmless; `batch_accumulation_per_replica: 1` makes it exact.
* Its masks are booleans: soft weights cannot be used.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write the four files; see the base class."""
        id_type = np.dtype(smallest_id_type(facts, np.uint16, np.uint32)).newbyteorder("<")
        tokens = 0
        with (
            open(folder / "curated.ds", "wb") as ids,
            open(folder / "curated.ds.index", "wb") as ends,
            open(folder / "curated.ds.loss", "wb") as masks,
        ):
            for item in items:
                ids.write(item["input_ids"].astype(id_type).tobytes())
                ends.write((tokens + np.cumsum(document_lengths(item))).astype("<u8").tobytes())
                masks.write((item["token_weights"] > 0).tobytes())
                tokens += len(item["input_ids"])
        metadata = f"{facts.tokenizer}|{id_type.itemsize}\n{tokens}\n{tokens} T"
        (folder / "curated.ds.metadata").write_text(metadata, encoding="utf-8")
