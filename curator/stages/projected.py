"""Shards for a model with a tokenizer of its own: its tokens in, its scores laid onto the dataset's tokens out.

The text of a token shard is encoded anew, row group by row group; only ids and byte counts are kept. What the model
sees is its own tokenisation of the same documents, in the same order.

Shapes: S tokens of the model, T tokens of the dataset, each of many documents end to end; D documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from curator import tables
from curator.data import IntArray, TokenScores
from curator.errors import ScorerError
from curator.manifest import ShardFolder
from curator.tokens.projection import count_first_span, project_logprobs
from curator.tokens.tokenizer import EncodedDocument, Tokenizer


@dataclass(frozen=True)
class OwnTokens:
    """The documents of a shard in a model's own tokens.

    Attributes:
        has_bos: each begins with BOS.
        ids: each document's ids, shape (S,).
        source_bytes: UTF-8 bytes that each of these covers, shape (S,).
        target_bytes: the same of the dataset's tokens, shape (T,).
    """

    has_bos: bool
    ids: list[IntArray] = field(default_factory=list)
    source_bytes: list[IntArray] = field(default_factory=list)
    target_bytes: list[IntArray] = field(default_factory=list)

    def add(self, documents: Sequence[EncodedDocument], target_bytes: Sequence[IntArray]) -> None:
        """Append documents."""
        self.ids.extend(document.input_ids for document in documents)
        self.source_bytes.extend(document.token_bytes for document in documents)
        self.target_bytes.extend(target_bytes)


def read_own_tokens(folder: ShardFolder, number: int, tokenizer: Tokenizer, model: str) -> OwnTokens:
    """Encode the text of a token shard with a model's own tokenizer; raises ScorerError, see `encode_own`."""
    own = OwnTokens(tokenizer.bos_id is not None)
    with folder.open(number) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            rows = parquet.read_row_group(group, columns=["doc_id", "text", "token_bytes"])
            texts, doc_ids = rows.column("text").to_pylist(), rows.column("doc_id").to_pylist()
            encoded = encode_own(tokenizer, texts, doc_ids, model, f"shard {number:05d}", len(own.ids))
            bytes_T, offsets = tables.flat(rows.column("token_bytes"))
            own.add(encoded, [bytes_T[start:stop] for start, stop in pairwise(offsets)])
    return own


def encode_own(
    tokenizer: Tokenizer, texts: Sequence[str], doc_ids: Sequence[str], model: str, where: str, first_row: int = 0
) -> list[EncodedDocument]:
    """Encode texts with a model's own tokenizer.

    Args:
        tokenizer: the model's.
        texts: documents, which the dataset's tokenizer could represent.
        doc_ids: their ids, for messages.
        model: its name in the spec, for messages.
        where: what holds the documents, for messages.
        first_row: number of the first of them.

    Raises:
        ScorerError: the tokenizer cannot represent one; the message names it.
    """
    encoded = []
    for row, document in enumerate(tokenizer.encode(texts)):
        if isinstance(document, str):
            raise ScorerError(
                f"model {model!r}: its tokenizer cannot represent row {first_row + row} of {where}, document "
                f"{doc_ids[row]!r}: {document}; use a model whose tokenizer keeps this text as it is, remove the "
                "document, or accept the loss of its shard by on_bad_shard: quarantine"
            )
        encoded.append(document)
    return encoded


def project_scores(scores: Sequence[TokenScores], own: OwnTokens) -> tuple[list[TokenScores], list[int]]:
    """Lay the scores of a model's own tokens onto the dataset's tokens.

    Args:
        scores: of each document of `own`, over its own tokens.
        own: both tokenisations.

    Returns:
        Scores over the dataset's tokens, and how many tokens at each document's start may be unscored: those of the
        first span. The very first always is, by the alignment that holds everywhere.
    """
    projected, unscored = [], []
    for document, source_bytes_S, target_bytes_T in zip(scores, own.source_bytes, own.target_bytes, strict=True):
        logprobs_T = project_logprobs(document.logprobs_T, source_bytes_S, target_bytes_T).astype(np.float32)
        logprobs_T[:1] = np.nan
        projected.append(TokenScores(logprobs_T))
        unscored.append(count_first_span(source_bytes_S, target_bytes_T))
    return projected, unscored
