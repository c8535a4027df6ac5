"""The bytes that each token id stands for, and laying a document's tokens over its text.

Offsets cannot tell how many bytes a token covers: for a character split over tokens they repeat the whole character.
So the bytes come from the vocabulary, which spells them in one of three ways:

    byte-level BPE   one printable character for each byte (GPT-2's map)
    SentencePiece    `▁` for a space, `<0xE2>` for a byte, otherwise the text itself
    added tokens     the text itself

Invariant: tokens are laid over the text left to right without gap or overlap, or not at all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from curator.data import IntArray
from curator.tokens.definition import Definition, list_components, read_vocabulary

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Surfaces:
    """What every id of a vocabulary covers; lists are indexed by id.

    Attributes:
        bytes_V: bytes of a token in the midst of a text; empty for special tokens and unused ids.
        lengths_V: their number, shape (V,).
        added: ids of added tokens, at which the text is cut before it is tokenised.
        literals: ids of byte pieces, with the text that spells them (`<0xE2>`), which some models match too.
        space: UTF-8 of the character that the vocabulary writes for a space; text may hold it as well.
    """

    bytes_V: list[bytes]
    lengths_V: IntArray
    added: frozenset[int]
    literals: Mapping[int, bytes]
    space: bytes | None


def build_surfaces(definition: Definition, special_ids: set[int]) -> Surfaces:
    """Work out the bytes of every id of a tokenizer.

    Args:
        definition: a parsed tokenizer.json, as the library writes it.
        special_ids: ids that stand for no text.
    """
    vocabulary = read_vocabulary(definition)
    added = {token["content"]: token["id"] for token in definition["added_tokens"]}
    letters = _byte_letters() if _is_byte_level(definition) else None
    space = None if letters else _find_space(definition)
    bytes_V = [b""] * (max(vocabulary.values(), default=-1) + 1)
    literals: dict[int, bytes] = {}
    for token, index in vocabulary.items():
        if index in special_ids:
            continue
        if token in added:
            bytes_V[index] = token.encode()
        elif letters is not None:
            bytes_V[index] = _spell_bytes(token, letters)
        elif definition["model"].get("byte_fallback") and (piece := _BYTE_PIECE.fullmatch(token)):
            bytes_V[index] = bytes([int(piece[1], 16)])
            literals[index] = token.encode()
        else:
            bytes_V[index] = (token.replace(space, " ") if space else token).encode()
    lengths_V = np.fromiter(map(len, bytes_V), dtype=np.int32, count=len(bytes_V))
    in_text = frozenset(added.values()) - special_ids
    return Surfaces(bytes_V, lengths_V, in_text, literals, space.encode() if space else None)


def _is_byte_level(definition: Definition) -> bool:
    parts = (definition["normalizer"], definition["pre_tokenizer"], definition["decoder"])
    return any(component["type"] == "ByteLevel" for part in parts for component in list_components(part))


def _find_space(definition: Definition) -> str | None:
    """The character that replaces a space: of Metaspace, or of a normaliser that replaces spaces."""
    for component in list_components(definition["pre_tokenizer"]):
        if component["type"] == "Metaspace":
            return str(component["replacement"])
    for component in list_components(definition["normalizer"]):
        if component["type"] == "Replace" and component["pattern"] == {"String": " "}:
            return str(component["content"]) or None
    return None


def _byte_letters() -> dict[str, int]:
    """GPT-2's map from printable characters to bytes: a visible Latin-1 byte is itself, the rest start at U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _spell_bytes(token: str, letters: Mapping[str, int]) -> bytes:
    """Bytes of a byte-level token; one with other characters was never made from bytes and is its own text."""
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode()


def lay_tokens(surfaces: Surfaces, ids: Sequence[int], text: bytes) -> IntArray | None:
    """Number of bytes of `text` that each token covers, shape (T,); None where the tokens are not this text.

    The quick way joins the surfaces and compares. Beside equality it knows the space that many tokenizers put before
    a text and that is not in it: the first token then covers one byte less.
    """
    joined = b"".join([surfaces.bytes_V[index] for index in ids])
    if joined == text:
        return surfaces.lengths_V[np.array(ids, dtype=np.int32)]
    if len(joined) == len(text) + 1 and joined.startswith(b" ") and joined.endswith(text):
        lengths_T = surfaces.lengths_V[np.array(ids, dtype=np.int32)]
        first = int(np.argmax(lengths_T > 0))
        if surfaces.bytes_V[ids[first]].startswith(b" "):
            lengths_T[first] -= 1
            return lengths_T
    lengths = _lay_segments(surfaces, ids, text)
    return None if lengths is None else np.array(lengths, dtype=np.int32)


def _lay_segments(surfaces: Surfaces, ids: Sequence[int], text: bytes) -> list[int] | None:
    """The slow way, for text that holds added tokens, `▁` or `<0xE2>` as such.

    The text is cut at added tokens and every part is tokenised for itself, so each may carry the extra space. A part
    is taken with or without it, whichever makes the next part meet its added token.
    """
    segments = [list(group) for _, group in groupby(enumerate(ids), key=lambda item: _segment_key(surfaces, item))]
    lengths: list[int] = []
    position = 0
    for number, segment in enumerate(segments):
        following = surfaces.bytes_V[segments[number + 1][0][1]] if number + 1 < len(segments) else None
        if following is not None and segments[number + 1][0][1] not in surfaces.added:
            following = b""  # after an added token comes plain text, which meets its own test
        for extra_space in (False, True):
            part = _lay_segment(surfaces, [index for _, index in segment], text, position, extra_space)
            if part is None:
                continue
            end = position + sum(part)
            if end == len(text) if following is None else text.startswith(following, end):
                break
        else:
            return None
        lengths += part
        position = end
    return lengths if position == len(text) else None


def _segment_key(surfaces: Surfaces, item: tuple[int, int]) -> tuple[int, int]:
    """Groups plain tokens together and leaves each added token alone."""
    place, index = item
    return (1, place) if index in surfaces.added else (0, 0)


def _lay_segment(surfaces: Surfaces, ids: list[int], text: bytes, start: int, extra_space: bool) -> list[int] | None:
    lengths: list[int] = []
    position = start
    for index in ids:
        surface = surfaces.bytes_V[index]
        if extra_space and not lengths:
            if not surface.startswith(b" "):
                return None
            surface = surface[1:]
        length = _match(surfaces, index, surface, text, position)
        if length is None:
            return None
        lengths.append(length)
        position += length
    return lengths


def _match(surfaces: Surfaces, index: int, surface: bytes, text: bytes, position: int) -> int | None:
    """Bytes that one token covers at `position`, or None when something else stands there."""
    if text.startswith(surface, position):
        return len(surface)
    literal = surfaces.literals.get(index)
    if literal is not None:
        return len(literal) if text.startswith(literal, position) else None
    if surfaces.space is None or b" " not in surface:
        return None
    end = position
    for number, piece in enumerate(surface.split(b" ")):
        if number > 0:  # the vocabulary writes a space and `▁` alike
            space = next((sign for sign in (b" ", surfaces.space) if text.startswith(sign, end)), None)
            if space is None:
                return None
            end += len(space)
        if not text.startswith(piece, end):
            return None
        end += len(piece)
    return end - position
