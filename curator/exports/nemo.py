"""NeMo and Megatron-Bridge: packed fine-tuning data as parquet.

Megatron-Bridge, where NeMo's language models are trained, reads packed sequences from parquet with the columns
`input_ids`, `seq_start_id` and `loss_mask` (megatron/bridge/data/packing/parquet.py). The older form, an .npy of
dictionaries, can only be read by unpickling; it is not written.

Its collator drops the last token of each document from the inputs and the first from the targets, then takes the mask
at the inputs' places. Hence `loss_mask` is target-aligned: index t concerns the prediction of token t + 1.

Invariant: a row holds whole pieces of a packed sequence, without padding. Pieces of a single token predict nothing
and would be sequences of length 0 in Megatron's attention, so they are left out.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.exports.columns import FileRow, group_rows, list_table
from curator.exports.form import Facts, Form, Item, document_lengths, targets

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("seq_start_id", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
    ]
)


class NemoForm(Form):
    """Packed parquet for `GPTSFTPackedParquetDataset` of Megatron-Bridge (NeMo)."""

    kind: Literal["nemo"] = "nemo"
    soft: ClassVar[bool] = False
    packing: ClassVar[Literal["never", "optional", "always"]] = "always"
    guide: ClassVar[str] = """\
`curated.idx.parquet` is packed data for Megatron-Bridge, which trains NeMo's language models: a row is a packed
sequence with `input_ids`, `seq_start_id` (where each document begins) and `loss_mask` (0 or 1, target-aligned).

* Name the file as `offline_packing_specs.packed_train_data_path` with `enable_offline_packing=True`; an example is
  `examples/trainers/train_nemo.py` of token-curator. `packed_sequence_size` and the model's `seq_length`
  are the number given to `--sequence-length`.
* Keep `answer_only_loss=True`: with False the collator ignores `loss_mask` and trains on everything.
* Offline packing needs `micro_batch_size=1`. Set `calculate_per_token_loss=True` on the model and
  `average_in_collective=False` on the data-parallel config, or each packed row is averaged by itself.
* Attention stays inside documents, by `cu_seqlens`; no end-of-text token is needed.
* The collator turns the mask into integers, so soft weights cannot be used here. For those, export for `megatron`.
* NeMo 2.x releases before Megatron-Bridge read packed data only from pickled .npy files, which are not written.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write one parquet file; see the base class."""
        groups = (list_table(group) for group in group_rows(_rows(items)))
        with pq.ParquetWriter(folder / "curated.idx.parquet", _SCHEMA, compression="zstd") as writer:
            for table in groups:
                writer.write_table(table)


def _rows(items: Iterable[Item]) -> Iterator[FileRow]:
    for item in items:
        lengths = document_lengths(item)
        kept = lengths > 1
        if "document_ids" in item and item["document_ids"][-1] == -1:
            kept[-1] = False
        token_kept = np.repeat(kept, lengths)
        if kept.any():
            yield {
                "input_ids": item["input_ids"][token_kept],
                "seq_start_id": (np.cumsum(lengths[kept]) - lengths[kept]).astype(np.int32),
                "loss_mask": (targets(item).weights_T[token_kept] > 0).astype(np.int8),
            }
