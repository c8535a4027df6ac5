"""Tokenizers of every family, trained on the spot on a little of the mix, and texts to try them on."""

import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from curator.tokens.tokenizer import Tokenizer, TokensConfig, load_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

Write = Callable[[tokenizers.Tokenizer], Path]


@pytest.fixture(scope="session")
def mix(shared_data: Path) -> list[str]:
    """The first 3000 documents."""
    with gzip.open(shared_data / "corpus" / "mix.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in islice(file, 3000)]


@pytest.fixture(scope="session")
def training_texts(mix: list[str]) -> list[str]:
    return [text[:2000] for text in mix[::100]]


@pytest.fixture(scope="session")
def built(training_texts: list[str]) -> dict[str, tokenizers.Tokenizer]:
    """One tokenizer of each family, as the `tokenizers` library builds it."""
    return {
        "byte_level": byte_level(training_texts),
        "byte_level_prefix": byte_level(training_texts, add_prefix_space=True),
        "byte_level_nfc": byte_level(training_texts, normalizer=normalizers.NFC()),
        "llama": llama(training_texts),
        "metaspace_bpe": metaspace_bpe(training_texts),
        "unigram": unigram(training_texts),
    }


@pytest.fixture(scope="session")
def tokenizer_files(
    built: dict[str, tokenizers.Tokenizer], smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A tokenizer that must be accepted, by family; each has BOS `<s>` and EOS `</s>`, SmolLM2 its own."""
    files = {"smollm2": smollm2_gguf}
    for kind, tokenizer in built.items():
        folder = tmp_path_factory.mktemp(kind)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
        files[kind] = folder
    return files


class _Loaded(dict[str, Tokenizer]):
    """Loads a family when it is first asked for: SmolLM2 takes seconds, and only slow tests want it."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files

    def __missing__(self, kind: str) -> Tokenizer:
        self[kind] = load_tokenizer(str(self.files[kind]), None, TokensConfig())
        return self[kind]


@pytest.fixture(scope="session")
def good_tokenizers(tokenizer_files: dict[str, Path]) -> dict[str, Tokenizer]:
    """Every accepted family, with BOS and EOS as its own post-processor has it."""
    return _Loaded(tokenizer_files)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Save a tokenizer to a tokenizer.json of its own."""

    def save(tokenizer: tokenizers.Tokenizer) -> Path:
        path = tmp_path / "tokenizer.json"
        tokenizer.save(str(path))
        return path

    return save


def byte_level(
    texts: list[str], normalizer: normalizers.Normalizer | None = None, add_prefix_space: bool = False
) -> tokenizers.Tokenizer:
    """GPT-2's kind; with NFC, Qwen's; with the prefix space, RoBERTa's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _piece_model(texts: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a SentencePiece-like BPE: specials, bytes, pieces."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        limit_alphabet=90,
        special_tokens=["<unk>", "<s>", "</s>", *BYTES],
        initial_alphabet=["▁"],
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _piece_bpe(texts: list[str]) -> tokenizers.Tokenizer:
    vocab, merges = _piece_model(texts)
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return tokenizer


def llama(texts: list[str]) -> tokenizers.Tokenizer:
    """Llama 2's kind: the normaliser writes the spaces, every text gets one in front, BOS comes first."""
    tokenizer = _piece_bpe(texts)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def metaspace_bpe(texts: list[str]) -> tokenizers.Tokenizer:
    """The newer form of the same: the pre-tokeniser writes the spaces."""
    tokenizer = _piece_bpe(texts)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def unigram(texts: list[str]) -> tokenizers.Tokenizer:
    """SentencePiece unigram with byte fallback; its special pieces have the best score, as converters do it."""
    trained = tokenizers.Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=500, unk_token="<unk>", show_progress=False))
    pieces = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"] if piece != "<unk>"]
    specials = ["<unk>", "<s>", "</s>", *BYTES]
    vocab = [*((piece, 0.0) for piece in specials), *pieces]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer
