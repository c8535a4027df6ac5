"""What a tokenizer.json means for the ids of a text, and nothing else of it.

Two files can differ in bytes and still give every text the same ids: order of keys, truncation, padding, decoder,
chat template, the spelling of special tokens. The fingerprint looks through all of that, so that models are called
compatible exactly when they are.

It is also here that text is kept from forging special tokens: `encode_special_tokens` splits those that the tokenizer
matches itself, but a unigram model holds `<s>` as an ordinary piece (with the best score of all) and would still pick
it; such pieces are respelled so that no text can reach them.

Invariant: nothing here changes the ids of a text that names no special token.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from curator.errors import TokenizerError

Definition = dict[str, Any]
"""A parsed tokenizer.json."""


def build_backend(definition: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    """Make the library's tokenizer, set to split special tokens that stand in the text."""
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"tokenizer {source!r} cannot be loaded: {error}; is it a tokenizer.json?") from error
    backend.encode_special_tokens = True
    return backend


def settle(definition: Definition, special_contents: set[str]) -> Definition:
    """Switch off what depends on the call (truncation, padding, dropout), and mark special tokens as such.

    Some files list their EOS as an ordinary added token; text could then forge it.

    Args:
        definition: as the library writes it.
        special_contents: tokens that the files name as BOS, EOS and so on.
    """
    added = [
        {**token, "special": token["special"] or token["content"] in special_contents}
        for token in definition["added_tokens"]
    ]
    model = definition["model"]
    if model.get("dropout") is not None:
        model = {**model, "dropout": None}
    return {**definition, "truncation": None, "padding": None, "added_tokens": added, "model": model}


def read_vocabulary(definition: Definition) -> dict[str, int]:
    """Id of every token of the model, added tokens included."""
    vocab = definition["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}
    return ids | {token["content"]: token["id"] for token in definition["added_tokens"]}


def list_components(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The elements of a normaliser, pre-tokeniser or decoder, sequences unrolled."""
    if part is None:
        return
    if part.get("type") != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        for element in part.get(key) or []:
            yield from list_components(element)


def find_added_ids(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the post-processor puts before and after a text; found by encoding one, whatever its kind."""
    bare = backend.encode("a", add_special_tokens=False).ids
    dressed = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(dressed) - len(bare) + 1):
        if bare and dressed[start : start + len(bare)] == bare:
            return dressed[:start], dressed[start + len(bare) :]
    return [], []


def fingerprint(definition: Definition, special_contents: set[str], added_ids: tuple[list[int], list[int]]) -> str:
    """Sha256, in hex, over everything that decides the ids of a text.

    Model (vocabulary, merges and switches), normaliser, pre-tokeniser, the ids that the post-processor adds, and added
    tokens that match in text. Special tokens do not: they are split. So a base model and its chat variant, which
    renames reserved tokens, are equal.
    """
    model = {key: value or None for key, value in definition["model"].items() if key != "dropout"}
    vocab = definition["model"]["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {token: index for token, index in vocab.items() if token not in special_contents}
    else:  # unigram: ids are positions, so the place of a special piece stays
        model["vocab"] = [None if piece in special_contents else [piece, score] for piece, score in vocab]
    flags = ("id", "content", "single_word", "lstrip", "rstrip", "normalized")
    added = [[token[flag] for flag in flags] for token in definition["added_tokens"] if not token["special"]]
    content = {
        "model": model,
        "normalizer": list(list_components(definition["normalizer"])),
        "pre_tokenizer": [  # trim_offsets moves offsets, never ids
            {key: value for key, value in part.items() if key != "trim_offsets"}
            for part in list_components(definition["pre_tokenizer"])
        ],
        "added_ids": added_ids,
        "added_tokens": sorted(added),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def find_forgeable(backend: tokenizers.Tokenizer, special_ids: Mapping[str, int]) -> set[str]:
    """Special tokens whose id comes out of a text that spells them."""
    contents = [content for content in special_ids if content]
    texts = [text for content in contents for text in (content, f"a{content}b", f"a {content} b")]
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    return {
        content
        for index, content in enumerate(contents)
        if any(special_ids[content] in encoding.ids for encoding in encodings[3 * index : 3 * index + 3])
    }


def hide_specials(definition: Definition, contents: set[str]) -> Definition:
    """Respell special pieces so that no text reaches them: a space before the piece.

    Tokenizers that keep spaces spell them otherwise inside the model (`▁`, `Ġ`), so a piece with a plain space never
    matches. Ids stay, as the place in the vocabulary does.
    """
    model = dict(definition["model"])
    respelled = {content: f" {content}" for content in contents}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {respelled.get(token, token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[respelled.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in respelled:
        model["unk_token"] = respelled[model["unk_token"]]
    added = [token for token in definition["added_tokens"] if token["content"] not in respelled]
    return {**definition, "model": model, "added_tokens": added, "post_processor": None}
