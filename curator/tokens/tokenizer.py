"""Ids and bytes of documents, through any fast tokenizer.

Every weight that this library writes belongs to a token, and every token to a run of bytes of the text. So a document
is tokenised once, with the number of UTF-8 bytes that each token covers, and the whole is compared with the text: no
later stage has to trust character offsets, which repeat a character for each of its pieces.

BOS comes first when the tokenizer's own post-processor puts it there (or as the spec says), EOS last when the spec
says so. Whatever else a post-processor adds ([SEP], a second prefix token, its own EOS) is left out: a dataset for
language models holds text between document boundaries and nothing more. Text never forges a special token.

Invariant: `token_bytes` sums to the length of the UTF-8 text, and the tokens' bytes are that text.
Cost: 4 to 10% beside the library's own encoding (a join, a comparison, a table look-up): 3.5 MB/s of a core for a
byte-level BPE. Linear in the length of a document, also for one character repeated 10 million times.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from pydantic import Field

from curator.data import IntArray, StrictModel
from curator.errors import TokenizerError
from curator.tokens.definition import (
    Definition,
    build_backend,
    find_added_ids,
    find_forgeable,
    fingerprint,
    hide_specials,
    read_vocabulary,
    settle,
)
from curator.tokens.pieces import PIECE_CHARACTERS, cut_text
from curator.tokens.probe import PROBES, explain_mismatch
from curator.tokens.sources import FoundTokenizer, find_tokenizer, parse_object
from curator.tokens.surfaces import build_surfaces, lay_tokens

_BATCH_CHARACTERS = 2 * PIECE_CHARACTERS
"""Characters handed to the library at once: it holds 150 bytes (English) to 400 (Chinese) for each."""


class TokensConfig(StrictModel):
    """How text becomes tokens."""

    tokenizer: str | None = Field(
        default=None, description="hub name, directory, tokenizer.json or .gguf; null = the reference's own"
    )
    bos: Literal["auto"] | bool = Field(
        default="auto", description="put BOS before a document; auto = iff the tokenizer's post-processor does"
    )
    eos: bool = Field(default=False, description="put EOS after a document, where it is scored and can be kept")


@dataclass(frozen=True)
class EncodedDocument:
    """Tokens of one document.

    Attributes:
        input_ids: shape (T,), with BOS and EOS where configured.
        token_bytes: UTF-8 bytes of the text that each token covers, shape (T,); 0 for BOS and EOS (and for a token
            that is only the space which some tokenizers put before a text). Sums to the text's length in bytes.
    """

    input_ids: IntArray
    token_bytes: IntArray


def load_tokenizer(source: str, revision: str | None, config: TokensConfig) -> "Tokenizer":
    """Load a tokenizer and check that it can serve a dataset.

    Args:
        source: a directory, a tokenizer.json, a .gguf file or a hub name (the only one that uses the network).
        revision: revision of a hub name.
        config: whether to add BOS and EOS.

    Raises:
        TokenizerError: there is none, it is not a fast one, it changes text, or it lacks a token that `config` wants.
    """
    return Tokenizer(find_tokenizer(source, revision), config)


class Tokenizer:
    """A checked tokenizer; pickles, so that one process can load it for all workers.

    Attributes:
        fingerprint: sha256 in hex of everything that decides the ids of a text; equal means interchangeable.
        vocab_size: one more than the largest id.
        bos_id: id put before every document, or None.
        eos_id: the tokenizer's EOS, or None; put after every document iff `appends_eos`.
        appends_eos: whether documents end with EOS.
    """

    def __init__(self, found: FoundTokenizer, config: TokensConfig) -> None:
        """Build from a tokenizer's files; use `load_tokenizer` to find them."""
        self._found, self._config = found, config
        named = {token for token in found.roles.values() if isinstance(token, str)}
        given = build_backend(parse_object(found.definition_json, found.source), found.source)
        self._definition: Definition = settle(json.loads(given.to_str()), named)
        self._backend = build_backend(self._definition, found.source)
        vocabulary = read_vocabulary(self._definition)
        before, after = find_added_ids(self._backend)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.bos_id = self._choose_bos(vocabulary, before)
        self.eos_id = self._find_role("eos", vocabulary)
        self.appends_eos = config.eos
        if config.eos and self.eos_id is None:
            raise TokenizerError(
                f"tokens.eos is true, but tokenizer {found.source!r} names no EOS; set eos_token in its "
                "tokenizer_config.json, or tokens.eos: false"
            )
        special_ids = {token["id"] for token in self._definition["added_tokens"] if token["special"]}
        special_ids |= {index for index in (self.bos_id, self.eos_id, *before, *after) if index is not None}
        specials = {token: index for token, index in vocabulary.items() if index in special_ids}
        self.fingerprint = fingerprint(self._definition, set(specials), (before, after))
        self._surfaces = build_surfaces(self._definition, special_ids)
        self._protect_specials(specials)
        self._check_partition()

    def encode(self, texts: Sequence[str]) -> list[EncodedDocument | str]:
        """Tokenise documents, in order; runs on as many threads as the tokenizers library is allowed.

        Args:
            texts: the documents, of any length; long ones are cut where their tokens part (see `pieces`).

        Returns:
            For each text its tokens, or, in words, why its tokens cannot partition its bytes.
        """
        raws = [_to_utf8(text) for text in texts]
        valid = [text for text, raw in zip(texts, raws, strict=True) if raw is not None]
        ids = self._encode_pieces(valid)
        return [
            "it holds a lone surrogate, which UTF-8 cannot express" if raw is None else self._lay(next(ids), text, raw)
            for text, raw in zip(texts, raws, strict=True)
        ]

    def surface(self, ids: Sequence[int] | IntArray) -> list[bytes]:
        """Bytes that each token stands for in the midst of a text; empty for special tokens.

        The first token of a document may carry a space that the text has not: to show what tokens cover, cut the
        text's bytes by `token_bytes`.
        """
        return [self._surfaces.bytes_V[index] for index in ids]

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[FoundTokenizer, TokensConfig]]:
        return Tokenizer, (self._found, self._config)

    def _encode_pieces(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Ids of each text, in order; long texts in pieces, so that memory follows a batch and not a text."""
        pieces = ((owner, piece) for owner, text in enumerate(texts) for piece in cut_text(text, self._ids))
        encoded = (
            (owner, ids)
            for batch in _cut_batches(pieces)
            for (owner, _), ids in zip(batch, self._ids([piece for _, piece in batch]), strict=True)
        )
        for _, group in groupby(encoded, key=lambda pair: pair[0]):
            yield [index for _, ids in group for index in ids]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _lay(self, ids: list[int], text: str, raw: bytes) -> EncodedDocument | str:
        token_bytes_T = lay_tokens(self._surfaces, ids, raw)
        if token_bytes_T is None:
            return explain_mismatch(self._definition, ids, self.surface(ids), text)
        before = [] if self.bos_id is None else [self.bos_id]
        after = [self.eos_id] if self.appends_eos and self.eos_id is not None else []
        input_ids_T = np.array([*before, *ids, *after], dtype=np.int32)
        if before or after:
            token_bytes_T = np.pad(token_bytes_T, (len(before), len(after)))
        return EncodedDocument(input_ids_T, token_bytes_T)

    def _choose_bos(self, vocabulary: dict[str, int], before: list[int]) -> int | None:
        wanted = self._config.bos
        if wanted == "auto":
            wanted = bool(before) if self._found.adds_bos is None else self._found.adds_bos
            return (before[0] if before else self._find_role("bos", vocabulary)) if wanted else None
        if not wanted:
            return None
        bos_id = before[0] if before else self._find_role("bos", vocabulary)
        if bos_id is None:
            raise TokenizerError(
                f"tokens.bos is true, but tokenizer {self._found.source!r} names no BOS; set bos_token in its "
                "tokenizer_config.json, or tokens.bos: auto"
            )
        return bos_id

    def _find_role(self, role: str, vocabulary: dict[str, int]) -> int | None:
        """Id of a special token that the files name; None when they name none."""
        token = self._found.roles.get(role)
        if isinstance(token, str) and token not in vocabulary:
            raise TokenizerError(
                f"tokenizer {self._found.source!r} names {token!r} as its {role.upper()}, which is not in its "
                "vocabulary; correct tokenizer_config.json"
            )
        return vocabulary[token] if isinstance(token, str) else token

    def _protect_specials(self, specials: dict[str, int]) -> None:
        """Make sure that text which spells a special token does not become one."""
        forgeable = find_forgeable(self._backend, specials)
        if not forgeable:
            return
        try:
            self._backend = build_backend(hide_specials(self._definition, forgeable), self._found.source)
        except TokenizerError as error:  # the vocabulary is built from one of them
            raise TokenizerError(
                f"tokenizer {self._found.source!r}: its files name {sorted(forgeable)} as special tokens, but other "
                "tokens are made of them, so they are ordinary text; correct bos_token_id, eos_token_id and "
                "pad_token_id in config.json and generation_config.json, or the names in tokenizer_config.json"
            ) from error
        still = find_forgeable(self._backend, specials)
        if still:
            raise TokenizerError(
                f"tokenizer {self._found.source!r}: text that spells {sorted(still)[0]!r} becomes that special token, "
                "so text could forge document boundaries; use another tokenizer"
            )

    def _check_partition(self) -> None:
        for kind, result in zip(PROBES, self.encode(list(PROBES.values())), strict=True):
            if isinstance(result, str):
                raise TokenizerError(
                    f"tokenizer {self._found.source!r} cannot serve: on a probe text ({kind}), {result}. Its tokens "
                    "cannot partition the bytes of a text, so no weight could be joined to it; use a model whose "
                    "tokenizer keeps text as it is (byte-level BPE, or SentencePiece with byte fallback)"
                )


def _to_utf8(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def _cut_batches(pieces: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Batches of bounded length, so that memory does not grow with the number of texts."""
    batch: list[tuple[int, str]] = []
    characters = 0
    for owner, piece in pieces:
        if batch and characters + len(piece) > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append((owner, piece))
        characters += len(piece)
    if batch:
        yield batch
