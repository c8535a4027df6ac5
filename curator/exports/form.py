"""What a trainer's on-disk form is: the one interface that every file of this folder fills, and what they share.

A form turns token-aligned items into the files that one trainer reads. The order of items, packing, skipping rows
that keep no token and refusing soft weights are the driver's business (`curator.export`): a form only lays out what
it is given.

Invariant: with (context token, predicted token, weight) for every position that carries weight, a form's files hold
exactly the triples of its items at t >= 1. Trainers that shift by themselves get token-aligned files, index t
concerning the prediction of token t; those that do not get `targets` of the item, one step to the left.

Shapes: T tokens of an item (a document, or a packed sequence of documents).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from curator.data import FloatArray, IntArray, StrictModel
from curator.errors import OutputError
from curator.tables import IGNORED_LABEL

Item = Mapping[str, npt.NDArray[Any]]
"""Token columns of one document or one packed sequence, each of shape (T,).

`input_ids` int32, `labels` int64 (-100 where the weight is 0), `token_weights` float32 and each `logprobs_<model>`
float32. A packed item also has `position_ids` int64, which restart at 0 with each document, and `document_ids` int64:
0, 1, ... and -1 for padding, which is at the end. The first token of an item, and of each document in it, has weight 0.
"""


@dataclass(frozen=True)
class Facts:
    """What a form may need to know of the whole export.

    Attributes:
        vocab_size: every token id is below it.
        eos_id: the tokenizer's end-of-text token, or None where it has none.
        sequence_length: T of every item when they are packed, else None.
        tokenizer: the folder or hub id that the dataset names.
    """

    vocab_size: int
    eos_id: int | None
    sequence_length: int | None
    tokenizer: str


class Form(StrictModel):
    """Base of every form's config; a subclass sets `kind` to its name and fills the rest.

    Attributes:
        soft: weights other than 0 and 1 reach the loss of this trainer; the guide says what it divides by.
        packing: whether documents are packed into sequences of one length before they are written. With "never" a
            sequence length still bounds the documents: longer ones are cut into pieces.
        guide: how to point the trainer at the files, in Markdown; it becomes README.md beside them.
    """

    kind: str
    soft: ClassVar[bool]
    packing: ClassVar[Literal["never", "optional", "always"]]
    guide: ClassVar[str]

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        """Write all items into `folder`, which exists and is empty.

        Args:
            items: given once; more than memory holds.
            folder: local; it gets its final name when this returns, and is gone if this raises.
            facts: of the whole export.

        Raises:
            SpecError: this trainer cannot hold such a dataset; the message says what to change.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Targets:
    """An item seen from the positions that predict: index t concerns the prediction of token t + 1.

    The last position predicts nothing that is known: its target is 0, its label -100 and its weight 0.
    """

    target_tokens_T: IntArray
    labels_T: npt.NDArray[np.int64]
    weights_T: FloatArray


def targets(item: Item) -> Targets:
    """Shift an item by one step, for trainers that compare the output at t with the target at t.

    The first token of a document has weight 0, so nothing is learned across documents of a packed item.
    """
    return Targets(
        target_tokens_T=np.append(item["input_ids"][1:], 0).astype(np.int32),
        labels_T=np.append(item["labels"][1:], IGNORED_LABEL).astype(np.int64),
        weights_T=np.append(item["token_weights"][1:], 0).astype(np.float32),
    )


def document_lengths(item: Item) -> npt.NDArray[np.int64]:
    """Lengths of the documents of an item, in order, shape (documents,); trailing padding counts as one more.

    They add up to T. An item that is not packed is one document.
    """
    if "document_ids" not in item:
        return np.array([len(item["input_ids"])])
    starts = np.flatnonzero(np.diff(item["document_ids"])) + 1
    return np.diff(np.concatenate([[0], starts, [len(item["document_ids"])]]))


def unpadded(item: Item) -> Item:
    """The item without its trailing padding, for trainers that pad or lay rows end to end by themselves."""
    if "document_ids" not in item:
        return item
    length = int((item["document_ids"] >= 0).sum())
    return {name: values[:length] for name, values in item.items()}


def smallest_id_type(facts: Facts, *choices: type[np.integer[Any]]) -> type[np.integer[Any]]:
    """The first of `choices`, smallest first, that holds every token id.

    Raises:
        OutputError: none does.
    """
    for choice in choices:
        if facts.vocab_size - 1 <= np.iinfo(choice).max:
            return choice
    raise OutputError(
        f"token ids up to {facts.vocab_size - 1} do not fit {np.dtype(choices[-1]).name}, the widest type of this "
        "form; choose another form"
    )
