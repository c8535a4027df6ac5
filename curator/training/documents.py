"""Good data for a reference model: from a corpus to micro-batches of token rows.

A document is cut into consecutive rows, each beginning with the last token of the row before, so every token but the
first of a document is predicted exactly once and none is truncated away. A row holds tokens of one document only, so
documents never see each other. Rows of like length share a micro-batch, which keeps padding small.

Invariant: every row of the corpus is either learned, held out, or counted by reason. Memory: 4 bytes a token.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from curator.data import BadRow, Corpus, Document, IntArray
from curator.tokens.tokenizer import Tokenizer

_SPLIT_BYTES = 1 << 28
_ENCODED_AT_ONCE = 512
_EXAMPLES = 3


@dataclass
class GoodData:
    """The documents of a corpus as token ids, and what could not become one.

    Attributes:
        documents: ids, each of shape (T,) with T >= 2.
        bad_rows: how many rows were lost, by reason.
        examples: the first of them in words.
    """

    documents: list[IntArray] = field(default_factory=list)
    bad_rows: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.documents))

    def digest(self) -> str:
        """Sha256 over the ids: the same data gives the same digest, wherever it lies."""
        digest = hashlib.sha256()
        for ids in self.documents:
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(ids.astype("<i4").tobytes())
        return digest.hexdigest()

    def lose(self, bad: BadRow) -> None:
        """Count a row that cannot be learned."""
        self.bad_rows[bad.reason] += 1
        if len(self.examples) < _EXAMPLES:
            row = "" if bad.row is None else f" row {bad.row}"
            self.examples.append(f"{bad.file}{row}: {bad.reason} {bad.detail}".rstrip())


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


def hold_out(documents: Sequence[IntArray], fraction: float, seed: int) -> tuple[list[IntArray], list[IntArray]]:
    """Set whole documents aside until they hold `fraction` of the tokens; at least one is left to train on.

    Returns:
        Documents to train on, and those held out.
    """
    wanted = fraction * sum(map(len, documents))
    held: set[int] = set()
    tokens = 0
    for index in np.random.default_rng([seed, 1]).permutation(len(documents)).tolist():
        if tokens >= wanted or len(held) == len(documents) - 1:
            break
        held.add(index)
        tokens += len(documents[index])
    train = [ids for index, ids in enumerate(documents) if index not in held]
    return train, [documents[index] for index in sorted(held)]


def cut_rows(documents: Sequence[IntArray], sequence_length: int) -> list[IntArray]:
    """Cut documents into rows of at most `sequence_length` tokens that overlap by one token."""
    step = sequence_length - 1
    return [ids[start : start + sequence_length] for ids in documents for start in range(0, len(ids) - 1, step)]


def make_batches(rows: Sequence[IntArray], micro_batch_tokens: int, seed: int) -> list[list[IntArray]]:
    """Group rows of like length into micro-batches of at most `micro_batch_tokens` tokens, padding included.

    A row that is longer than that makes a micro-batch of its own.
    """
    ties = np.random.default_rng([seed, 2]).permutation(len(rows))
    batches: list[list[IntArray]] = []
    batch: list[IntArray] = []
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), ties[i])):
        if batch and (len(batch) + 1) * len(batch[0]) > micro_batch_tokens:
            batches.append(batch)
            batch = []
        batch.append(rows[index])
    return [*batches, batch] if batch else batches
