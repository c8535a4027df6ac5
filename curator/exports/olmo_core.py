"""OLMo-core: a flat array of token ids and a flat array of booleans, without headers.

From olmo_core/data/numpy_dataset.py: despite their `.npy` names the files are raw little-endian values of all
documents end to end; `label_mask_paths` names, for each token file, a file of as many booleans. A mask is
token-aligned: `get_labels` blanks the labels where it is False and shifts them afterwards.

`NumpyFSLDataset` cuts the array into windows of its sequence length and predicts nothing across two windows. Packed
sequences of that length are those windows exactly, so no token is lost. Documents are found by the end-of-text token
alone: here each document ends with one, which is added with mask False where it is missing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from curator.errors import SpecError
from curator.exports.form import Facts, Form, Item, document_lengths, smallest_id_type


class OlmoCoreForm(Form):
    """Token and label-mask arrays for the numpy datasets of OLMo-core."""

    kind: Literal["olmo_core"] = "olmo_core"
    soft: ClassVar[bool] = False
    packing: ClassVar[Literal["never", "optional", "always"]] = "optional"
    guide: ClassVar[str] = """\
`tokens_<type>.npy` holds the token ids (`<type>` is the `dtype` to give OLMo-core), `label_mask.npy` one boolean per
token, False where the token is not learned. Both are raw values without a header: read them with `np.memmap`, not
`np.load`.

```python
NumpyFSLDatasetConfig(
    paths=[".../tokens_uint16.npy"], label_mask_paths=[".../label_mask.npy"], dtype=NumpyDatasetDType.uint16,
    sequence_length=N, tokenizer=tokenizer_config, generate_doc_lengths=True, work_dir=...,
)
```

* With `--sequence-length N` the array is made of windows of N tokens that begin with a document, or repeat the last
  token of the window before; use `NumpyFSLDatasetConfig` with `sequence_length=N` and no token is lost.
* Without it, documents lie end to end. `NumpyFSLDatasetConfig` then skips the first token of every window, and
  `NumpyPackedFSLDatasetConfig` may cut long documents.
* `generate_doc_lengths=True` keeps attention inside documents. OLMo-core finds them by `eos_token_id` of the
  `TokenizerConfig`, which must be the dataset's. A tokenizer whose BOS is the same token also needs `bos_token_id`.
* OLMo-core divides by the number of labels of the whole step of a rank, so gradient accumulation is exact.
* Its masks are booleans: soft weights cannot be used.

A runnable example: `examples/trainers/train_olmo_core.py` of token-curator.
"""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write both arrays; see the base class."""
        id_type = smallest_id_type(facts, np.uint16, np.uint32)
        dtype = np.dtype(id_type).newbyteorder("<")
        with (
            open(folder / f"tokens_{np.dtype(id_type).name}.npy", "wb") as ids,
            open(folder / "label_mask.npy", "wb") as masks,
        ):
            for item in items:
                ids_T, mask_T = _ended(item, facts) if facts.sequence_length is None else _packed(item, facts)
                ids.write(ids_T.astype(dtype).tobytes())
                masks.write(mask_T.tobytes())


def _ended(item: Item, facts: Facts) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """A document and its mask, with an end-of-text token that is not learned where it has none."""
    ids_T, mask_T = item["input_ids"], item["token_weights"] > 0
    if ids_T[-1] == facts.eos_id:
        return ids_T, mask_T
    return np.append(ids_T, _eos(facts)).astype(np.int32), np.append(mask_T, False)


def _packed(item: Item, facts: Facts) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """A packed sequence and its mask, once its documents are seen to end with the end-of-text token."""
    last = np.cumsum(document_lengths(item))[:-1] - 1
    if len(last) and not (item["input_ids"][last] == _eos(facts)).all():
        raise SpecError(
            f"tokens.eos: a document of a packed sequence does not end with the end-of-text token {facts.eos_id}, by "
            "which alone OLMo-core finds documents; publish the dataset with tokens.eos: true, or export without "
            "--sequence-length, which adds the missing tokens with mask False"
        )
    return item["input_ids"], item["token_weights"] > 0


def _eos(facts: Facts) -> int:
    if facts.eos_id is None:
        raise SpecError(
            f"tokens.tokenizer: no end-of-text token of {facts.tokenizer} was found here, and by it alone OLMo-core "
            "finds documents; make the tokenizer available if it is not, use one that has one, or another form"
        )
    return facts.eos_id
