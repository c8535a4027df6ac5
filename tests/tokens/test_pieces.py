"""Cutting long texts never changes an id, in any family of tokenizers."""

import pytest

from curator.tokens.pieces import cut_text
from curator.tokens.tokenizer import EncodedDocument, Tokenizer

KINDS = ["byte_level", "byte_level_prefix", "byte_level_nfc", "llama", "metaspace_bpe", "unigram"]
CUTTING = ["byte_level", "byte_level_nfc"]


@pytest.mark.parametrize("kind", [*KINDS, pytest.param("smollm2", marks=pytest.mark.slow)])
def test_pieces_give_the_ids_of_the_whole(good_tokenizers: dict[str, Tokenizer], mix: list[str], kind: str) -> None:
    tokenizer = good_tokenizers[kind]
    texts = ["\n".join(mix[i : i + 40]) for i in range(0, 80, 40)]
    for text in texts:
        pieces = cut_text(text, tokenizer._ids, limit=3000)
        assert "".join(pieces) == text
        assert [i for ids in tokenizer._ids(pieces) for i in ids] == tokenizer._ids([text])[0]
    if kind in [*CUTTING, "smollm2"]:
        assert all(len(cut_text(text, tokenizer._ids, limit=3000)) > len(text) / 30_000 for text in texts)


def test_a_text_without_places_to_cut_stays_whole(good_tokenizers: dict[str, Tokenizer]) -> None:
    ids = good_tokenizers["byte_level"]._ids
    for text in ("x" * 10_000, "\n" * 10_000, "漢字" * 5_000):
        assert cut_text(text, ids, limit=1000) == [text]


def test_documents_come_back_in_order_and_whole(good_tokenizers: dict[str, Tokenizer], mix: list[str]) -> None:
    tokenizer = good_tokenizers["byte_level"]
    texts = [mix[0], "\n".join(mix[:100]), mix[1], "\ud800", mix[2]]
    encoded = tokenizer.encode(texts)
    for text, document in zip(texts, encoded, strict=True):
        if text == "\ud800":
            assert isinstance(document, str)
            continue
        assert isinstance(document, EncodedDocument)
        assert document.token_bytes.sum() == len(text.encode())
        assert document.input_ids.tolist() == tokenizer._ids([text])[0]
