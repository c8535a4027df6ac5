"""Good data for a reference model: from a corpus or a curated dataset to micro-batches of token rows.

A document is cut into consecutive rows, each beginning with the last token of the row before, so every token but the
first of a document is predicted exactly once and none is truncated away. A row holds tokens of one document only, so
documents never see each other. Rows of like length share a micro-batch, which keeps padding small.

Invariant: every row of the data is either learned, held out, or counted by reason. Memory: 4 bytes a token, 8 with
weights.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, Self, TypeVar

import numpy as np

from curator import storage
from curator.data import BadRow, Corpus, Document, FloatArray, IntArray
from curator.errors import OutputError, TrainingError
from curator.manifest import ShardFolder, read_manifest
from curator.tokens.tokenizer import Tokenizer
from curator.training.epochs import read_epoch

_SPLIT_BYTES = 1 << 28
_ENCODED_AT_ONCE = 512
_EXAMPLES = 3


class Tokens(Protocol):
    """What can be cut into rows: an array of ids, or ids with weights."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Self: ...


AnyTokens = TypeVar("AnyTokens", bound=Tokens)


@dataclass(frozen=True, slots=True)
class WeightedTokens:
    """A document of a curated dataset, or a row of one.

    Attributes:
        ids_T: token ids.
        weights_T: how much predicting each of them counts; that of the first is never looked at.
    """

    ids_T: IntArray
    weights_T: FloatArray

    def __len__(self) -> int:
        return len(self.ids_T)

    def __getitem__(self, part: slice) -> "WeightedTokens":
        return WeightedTokens(self.ids_T[part], self.weights_T[part])


Example = IntArray | WeightedTokens
"""Ids of which every one weighs 1, or ids with weights."""


@dataclass
class GoodData:
    """Documents as token ids, and what could not become one.

    Attributes:
        documents: each of T >= 2 tokens.
        bad_rows: how many rows were lost, by reason.
        examples: the first of them in words.
        unweighted_rows: documents of a curated dataset without a kept token; nothing is learned from them.
        bos_id: the token that begins each document of a curated dataset, if any.
    """

    documents: list[Example] = field(default_factory=list)
    bad_rows: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    unweighted_rows: int = 0
    bos_id: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.documents))

    def digest(self) -> str:
        """Sha256 over the ids (and weights): the same data gives the same digest, wherever it lies."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(len(document).to_bytes(8, "little"))
            digest.update(ids_of(document).astype("<i4").tobytes())
            if isinstance(document, WeightedTokens):
                digest.update(document.weights_T.astype("<f4").tobytes())
        return digest.hexdigest()

    def lose(self, bad: BadRow) -> None:
        """Count a row that cannot be learned."""
        self.bad_rows[bad.reason] += 1
        if len(self.examples) < _EXAMPLES:
            row = "" if bad.row is None else f" row {bad.row}"
            self.examples.append(f"{bad.file}{row}: {bad.reason} {bad.detail}".rstrip())


def ids_of(example: Example) -> IntArray:
    """Token ids, shape (T,)."""
    return example.ids_T if isinstance(example, WeightedTokens) else example


def weights_of(example: Example) -> FloatArray:
    """Weights, shape (T,)."""
    return example.weights_T if isinstance(example, WeightedTokens) else np.ones(len(example), np.float32)


def read_documents(corpus: Corpus, tokenizer: Tokenizer) -> GoodData:
    """Read and tokenise a whole corpus; raises CorpusError when its files cannot be found."""
    data = GoodData()
    rows = _read_rows(corpus)
    while batch := list(islice(rows, _ENCODED_AT_ONCE)):
        documents = [row for row in batch if isinstance(row, Document)]
        for bad in batch:
            if isinstance(bad, BadRow):
                data.lose(bad)
        for document, encoded in zip(documents, tokenizer.encode([d.text for d in documents]), strict=True):
            if isinstance(encoded, str):
                data.lose(BadRow(file=document.file, row=document.row, reason="tokens", detail=encoded))
            elif len(encoded.input_ids) < 2:
                data.lose(BadRow(file=document.file, row=document.row, reason="one_token"))
            else:
                data.documents.append(encoded.input_ids)
    return data


def _read_rows(corpus: Corpus) -> Iterator[Document | BadRow]:
    for source in corpus.list_sources():
        split = corpus.split(source, _SPLIT_BYTES)
        yield from split.damage
        for _, row in corpus.read(source, split.extents):
            yield row


def read_dataset(directory: str, tokenizer: Tokenizer) -> GoodData:
    """Read a whole curated dataset, ids and weights.

    Args:
        directory: folder or URI with manifest.json.
        tokenizer: the base's.

    Raises:
        OutputError: there is no finished dataset in `directory`, or it is damaged.
        TrainingError: its tokens are of another tokenizer.
    """
    root = storage.absolute(directory)
    manifest = read_manifest(root)
    if manifest.content != "dataset":
        raise OutputError(f"{root!r} holds {manifest.content} without tokens; name the dataset it was selected from")
    if manifest.tokenizer.get("fingerprint") != tokenizer.fingerprint:
        raise TrainingError(
            f"dataset {directory!r} has tokens of {manifest.tokenizer.get('source')!r}, which is not the base's "
            "tokenizer (their fingerprints differ); name a base of that tokenizer, or train on the texts by corpus"
        )
    data = GoodData(bos_id=manifest.tokenizer.get("bos_id"))
    shards = sorted(manifest.shards, key=lambda shard: shard.number)
    folder = ShardFolder(root=root, name="curated")
    strange = [shard.file for shard in shards if shard.file != folder.file(shard.number)]
    if strange:
        raise OutputError(f"the manifest of {root!r} names {strange[0]!r} as a shard, which no dataset of ours has")
    for _, row in read_epoch(root, shards, 0, 0, 0, sum(shard.rows for shard in shards)):
        if row["token_weights"][1:].any():
            data.documents.append(WeightedTokens(row["input_ids"].astype(np.int32), row["token_weights"]))
        else:
            data.unweighted_rows += 1
    return data


def hold_out(documents: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Set whole documents aside until they hold about `fraction` of the tokens; at least one is left to train on.

    Documents of the same ids go together, or what is held out would be learned all the same. A document that would lead
    further above the share than it is missed without it is left to train on; if all would, the shortest is held out
    alone.

    Returns:
        Documents to train on, and those held out.
    """
    if fraction == 0:
        return list(documents), []
    first_of = _find_first(documents)
    tokens = Counter[int]()  # of all documents that are equal, by the first of them
    for document, first in zip(documents, first_of, strict=True):
        tokens[first] += len(document)
    missing = fraction * tokens.total()
    held: set[int] = set()
    order = np.random.default_rng([seed, 1]).permutation(len(documents)).tolist()
    for index in order:
        if missing <= 0 or len(held) == len(tokens) - 1:
            break
        if index in tokens and tokens[index] <= 2 * missing:
            held.add(index)
            missing -= tokens[index]
    if missing > 0 and not held and len(tokens) > 1:
        held.add(min((index for index in order if index in tokens), key=lambda index: tokens[index]))
    train = [document for document, first in zip(documents, first_of, strict=True) if first not in held]
    return train, [document for document, first in zip(documents, first_of, strict=True) if first in held]


def _find_first(documents: Sequence[Example]) -> list[int]:
    """For each document the place of the first with the same ids."""
    seen: dict[bytes, int] = {}
    return [
        seen.setdefault(hashlib.blake2b(ids_of(document).tobytes(), digest_size=16).digest(), index)
        for index, document in enumerate(documents)
    ]


def cut_rows(documents: Sequence[AnyTokens], sequence_length: int) -> list[AnyTokens]:
    """Cut documents into rows of at most `sequence_length` tokens that overlap by one; rows without weight are left."""
    step = sequence_length - 1
    rows = [
        document[start : start + sequence_length]
        for document in documents
        for start in range(0, len(document) - 1, step)
    ]
    return [row for row in rows if not isinstance(row, WeightedTokens) or row.weights_T[1:].any()]


def make_batches(rows: Sequence[AnyTokens], micro_batch_tokens: int, seed: int) -> list[list[AnyTokens]]:
    """Group rows of like length into micro-batches of at most `micro_batch_tokens` tokens, padding included.

    A row that is longer than that makes a micro-batch of its own.
    """
    ties = np.random.default_rng([seed, 2]).permutation(len(rows))
    batches: list[list[AnyTokens]] = []
    batch: list[AnyTokens] = []
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), ties[i])):
        if batch and (len(batch) + 1) * len(batch[0]) > micro_batch_tokens:
            batches.append(batch)
            batch = []
        batch.append(rows[index])
    return [*batches, batch] if batch else batches
