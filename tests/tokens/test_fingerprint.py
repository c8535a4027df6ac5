"""The fingerprint: equal for tokenizers that give every text the same ids, different for all others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, processors

from curator.tokens.tokenizer import EncodedDocument, Tokenizer, TokensConfig, load_tokenizer

Built = dict[str, tokenizers.Tokenizer]
Write = Callable[[tokenizers.Tokenizer], Path]


def load(path: Path) -> Tokenizer:
    return load_tokenizer(str(path), None, TokensConfig())


def copy(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.to_str())


def fingerprint(tokenizer: tokenizers.Tokenizer, write: Write) -> str:
    return load(write(tokenizer)).fingerprint


@pytest.mark.parametrize("kind", ["byte_level", "llama", "unigram"])
def test_fingerprint_looks_through_what_changes_no_ids(kind: str, built: Built, write: Write, tmp_path: Path) -> None:
    original = fingerprint(built[kind], write)
    changed = copy(built[kind])
    changed.enable_truncation(16)
    changed.enable_padding(length=32)
    changed.decoder = decoders.Fuse()
    changed.add_special_tokens(["<|chat|>"])
    assert fingerprint(changed, write) == original
    file = json.loads(built[kind].to_str())
    file["model"]["dropout"] = 0.5 if kind != "unigram" else None
    path = tmp_path / "reordered.json"
    path.write_text(json.dumps(dict(reversed(file.items())), indent=3))
    assert load(path).fingerprint == original


def test_a_template_that_adds_nothing_equals_none(built: Built, write: Write) -> None:
    changed = copy(built["byte_level"])
    changed.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert fingerprint(changed, write) == fingerprint(built["byte_level"], write)


def test_fingerprint_sees_what_changes_ids(built: Built, write: Write, tmp_path: Path) -> None:
    file = json.loads(built["byte_level"].to_str())
    vocab = dict(file["model"]["vocab"])
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    post = copy(built["byte_level"])
    post.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    added = copy(built["byte_level"])
    added.add_tokens(["<think>"])
    variants = {
        "vocabulary": {**file, "model": {**file["model"], "vocab": vocab}},
        "merges": {**file, "model": {**file["model"], "merges": file["model"]["merges"][:-1]}},
        "normaliser": {**file, "normalizer": {"type": "NFC"}},
        "pre-tokeniser": {**file, "pre_tokenizer": {**file["pre_tokenizer"], "add_prefix_space": True}},
        "post-processor": json.loads(post.to_str()),
        "added token": json.loads(added.to_str()),
    }
    prints = {"original": fingerprint(built["byte_level"], write)}
    for name, variant in variants.items():
        path = tmp_path / "variant.json"
        path.write_text(json.dumps(variant))
        prints[name] = load(path).fingerprint
    assert len(set(prints.values())) == len(prints), prints


def test_dropout_is_off(built: Built, write: Write) -> None:
    file = json.loads(built["byte_level"].to_str())
    file["model"]["dropout"] = 0.9
    random = load(write(tokenizers.Tokenizer.from_str(json.dumps(file)))).encode(["the theory of the thing"] * 5)
    steady = load(write(built["byte_level"])).encode(["the theory of the thing"])[0]
    assert isinstance(steady, EncodedDocument)
    for document in random:
        assert isinstance(document, EncodedDocument) and document.input_ids.tolist() == steady.input_ids.tolist()


@pytest.mark.slow
def test_a_gguf_and_the_directory_saved_from_it_are_equal(
    good_tokenizers: dict[str, Tokenizer], smollm2_gguf: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    theirs(["a", "longer text"], padding=True, truncation=True, max_length=8)  # writes both into the saved file
    theirs.save_pretrained(tmp_path)
    saved, ours = load(tmp_path), good_tokenizers["smollm2"]
    assert saved.fingerprint == ours.fingerprint
    assert (saved.bos_id, saved.eos_id, saved.vocab_size) == (ours.bos_id, ours.eos_id, 49152)
