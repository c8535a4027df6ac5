r"""Megatron-LM: an indexed dataset of token ids, and a second one, row-aligned, of their weights.

Megatron's own format has no room for weights, and its `GPTDataset` builds the loss mask from token ids alone. So the
weights are an indexed dataset of their own: the same documents, the same lengths, float32 in place of ids. A dataset
class (examples/trainers/train_megatron.py) reads both at the same offsets.

Layout, from megatron/core/datasets/indexed_dataset.py: `.bin` holds the values of all documents end to end; `.idx` is
`MMIDIDX\0\0`, version 1 (uint64), the type's code (uint8), number of sequences and of document boundaries (uint64),
then lengths (int32), byte offsets (int64) and document boundaries (int64), all little-endian.

Invariant: index t of a document's weights concerns its token t, and no document's first token has weight. Megatron
lays documents end to end and cuts windows that share one token, so each token is learned once, whatever the window.
"""

import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from curator.exports.form import Facts, Form, Item, smallest_id_type

_CODES: dict[type[np.number[Any]], int] = {np.int32: 4, np.float32: 7, np.uint16: 8}
"""What the format calls each type."""

_CHUNK_DOCUMENTS = 1 << 20
"""Documents whose index entries are in memory at once."""


class MegatronForm(Form):
    """Indexed datasets `curated` (token ids) and `curated_weights` (float32) for Megatron-LM and Megatron Core."""

    kind: Literal["megatron"] = "megatron"
    soft: ClassVar[bool] = True
    packing: ClassVar[Literal["never", "optional", "always"]] = "never"
    guide: ClassVar[str] = """\
`curated.bin` and `curated.idx` are an indexed dataset as Megatron-LM's `tools/preprocess_data.py` writes it, one
sequence per document. `curated_weights.bin` and `curated_weights.idx` are a second one with the float32 weight of
each token, at the same offsets.

A stock `pretrain_gpt.py --data-path .../curated` reads the tokens and trains on all of them. To use the weights, start
`examples/trainers/train_megatron.py` of token-curator in its place, with the same arguments. It swaps
the dataset class for one whose `loss_mask` is made of the weights.

* Pass `--calculate-per-token-loss`. Without it Megatron averages each micro-batch by itself, so a token's weight would
  depend on how much of its micro-batch is kept.
* Masks of 0 and 1 need nothing more. Soft weights: Megatron cuts the sum of `loss_mask` of every micro-batch to an
  integer before it adds them up, so up to 1 is lost for each, and one that sums to less than 1 counts as 0.
  `--weight-scale 256` makes both sides 256 times larger and that error 256 times smaller; keep scale times tokens per
  global batch below 2**31. A mixture of experts then needs `--moe-aux-loss-coeff` times the same number, since that
  loss is divided by the same sum.
* Megatron packs by itself: `--seq-length` is free. `--dataloader-inter-document-masking` keeps attention inside
  documents; it needs no end-of-text token. `--reset-attention-mask` does: publish with `tokens.eos: true` for it.
* The last window of an epoch, if it is not full, is left out by Megatron.
* `--tokenizer-type HuggingFaceTokenizer --tokenizer-model` takes the `tokenizer` that `export.json` names.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write both indexed datasets; see the base class."""
        id_type = smallest_id_type(facts, np.uint16, np.int32)
        lengths_file = folder / "lengths.tmp"
        with (
            open(folder / "curated.bin", "wb") as ids,
            open(folder / "curated_weights.bin", "wb") as weights,
            open(lengths_file, "wb") as lengths,
        ):
            for item in items:
                ids.write(_bytes(item["input_ids"], id_type))
                weights.write(_bytes(item["token_weights"], np.float32))
                lengths.write(struct.pack("<i", len(item["input_ids"])))
        _write_index(folder / "curated.idx", lengths_file, id_type)
        _write_index(folder / "curated_weights.idx", lengths_file, np.float32)
        lengths_file.unlink()


def _bytes(values: npt.NDArray[Any], dtype: type[np.number[Any]]) -> bytes:
    return values.astype(np.dtype(dtype).newbyteorder("<")).tobytes()


def _write_index(path: Path, lengths_file: Path, dtype: type[np.number[Any]]) -> None:
    """Write an `.idx` from the file of lengths, a chunk at a time: its size is the number of documents."""
    documents = lengths_file.stat().st_size // 4
    with open(path, "wb") as index, open(lengths_file, "rb") as lengths:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, _CODES[dtype], documents, documents + 1))
        shutil.copyfileobj(lengths, index)
        lengths.seek(0)
        offset = 0
        while chunk := lengths.read(4 * _CHUNK_DOCUMENTS):
            sizes = np.frombuffer(chunk, "<i4").astype(np.int64) * np.dtype(dtype).itemsize
            ends = offset + np.cumsum(sizes)
            index.write(_bytes(ends - sizes, np.int64))
            offset = int(ends[-1])
        for start in range(0, documents + 1, _CHUNK_DOCUMENTS):
            index.write(_bytes(np.arange(start, min(start + _CHUNK_DOCUMENTS, documents + 1)), np.int64))
