"""MosaicML Streaming: MDS shards with a column of numpy arrays for each token column.

The layout is that of mosaicml-streaming 0.13.0 (base/format/mds): a shard is the number of its samples (uint32),
their offsets (uint32, one more than samples), its own description in JSON, and the samples. A sample is the sizes of
its columns, then the columns in alphabetical order; an array is one byte for its rank and the width of its shape, the
shape, and the values. `index.json` lists the shards. It is written here and not by that library because it cannot be
installed beside `transformers` 5 or numpy 2.2, and brings the clients of four clouds; its own reader reads the files.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from curator.exports.columns import FileRow
from curator.exports.form import Facts, Form, Item

_SHARD_BYTES = 1 << 26
"""Size after which a further shard is begun: the library's own."""

_SHAPE_TYPES: Sequence[type[np.unsignedinteger[Any]]] = (np.uint8, np.uint16, np.uint32, np.uint64)


class MosaicMLForm(Form):
    """MDS shards with `input_ids`, `labels`, `token_weights` and, packed, `position_ids` and `document_ids`."""

    kind: Literal["mosaicml"] = "mosaicml"
    soft: ClassVar[bool] = True
    packing: ClassVar[Literal["never", "optional", "always"]] = "optional"
    guide: ClassVar[str] = """\
```python
from streaming import StreamingDataset

rows = StreamingDataset(local="mds", shuffle=True, batch_size=8)   # or remote="s3://...", with a local cache
rows[0]["input_ids"], rows[0]["labels"], rows[0]["token_weights"]
```

`examples/trainers/train_mosaicml.py` of token-curator trains on it with the weights.

* Index t of every column concerns the prediction of token t. A Hugging Face model shifts `labels` by itself, and so
  does Composer's `HuggingFaceModel` around it; the loss of that example takes `token_weights`
  and shifts too.
* Soft weights need that loss, or another one that reads `token_weights`; divide by the weight sum of the whole step.
* Packed rows carry `position_ids` that restart with each document and `document_ids` (-1 = padding). Only newer
  versions of transformers, most of their architectures, and FlashAttention with one row a batch keep documents apart
  by `position_ids`, and only without `attention_mask` and cache. Try yours: change one document of a row, and the
  logits of the others must stay. If they move, export without `--sequence-length`.
* llm-foundry's own datasets do not fit: the one for fine-tuning takes `input_ids` for a prompt and `labels` for its
  response, the one for pre-training makes labels of all tokens. Use the rows with a collator of your own.
* mosaicml-streaming needs transformers below 5 and numpy below 2.2: train in an environment of its own.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write `mds/shard.*.mds` and `mds/index.json`; see the base class."""
        folder = folder / "mds"
        folder.mkdir()
        shards: list[dict[str, Any]] = []
        samples: list[bytes] = []
        size, description = 0, dict[str, Any]()
        for item in items:
            row = _row(item)
            description = description or _describe(row)
            samples.append(_encode_row(row))
            size += len(samples[-1])
            if size >= _SHARD_BYTES:
                shards.append(_write_shard(folder, len(shards), samples, description))
                samples, size = [], 0
        if samples:
            shards.append(_write_shard(folder, len(shards), samples, description))
        (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}, sort_keys=True))


def _row(item: Item) -> FileRow:
    """The item in the order and the types of the file: alphabetical, integers in 32 bits."""
    return {
        name: item[name].astype("<i4" if item[name].dtype.kind == "i" else "<f4", copy=False) for name in sorted(item)
    }


def _describe(row: FileRow) -> dict[str, Any]:
    return {
        "version": 2,
        "format": "mds",
        "compression": None,
        "hashes": [],
        "size_limit": _SHARD_BYTES,
        "column_names": list(row),
        "column_encodings": [f"ndarray:{values.dtype.name}" for values in row.values()],
        "column_sizes": [None] * len(row),
    }


def _encode_row(row: FileRow) -> bytes:
    columns = [_encode_array(values) for values in row.values()]
    return np.array([len(column) for column in columns], "<u4").tobytes() + b"".join(columns)


def _encode_array(values_T: npt.NDArray[Any]) -> bytes:
    width = next(code for code, kind in enumerate(_SHAPE_TYPES) if len(values_T) <= np.iinfo(kind).max)
    rank_and_width = bytes([1 << 2 | width])
    return rank_and_width + np.array([len(values_T)], _SHAPE_TYPES[width]).tobytes() + values_T.tobytes()


def _write_shard(folder: Path, number: int, samples: list[bytes], description: Mapping[str, Any]) -> dict[str, Any]:
    """Write one shard and give its entry in the index."""
    header = json.dumps(description, sort_keys=True).encode()
    start = 4 + 4 * (len(samples) + 1) + len(header)
    offsets = start + np.cumsum([0, *(len(sample) for sample in samples)])
    path = folder / f"shard.{number:05d}.mds"
    with path.open("wb") as file:
        file.write(np.array([len(samples), *offsets], "<u4").tobytes() + header)
        file.writelines(samples)
    raw = {"basename": path.name, "bytes": int(offsets[-1]), "hashes": {}}
    return {**description, "samples": len(samples), "raw_data": raw, "zip_data": None}
