"""Finding tokenizers, refusing unfit ones, and choosing BOS and EOS."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from curator.errors import TokenizerError
from curator.tokens.tokenizer import EncodedDocument, Tokenizer, TokensConfig, load_tokenizer

Built = dict[str, tokenizers.Tokenizer]
Write = Callable[[tokenizers.Tokenizer], Path]


def load(path: Path | str, **config: object) -> Tokenizer:
    return load_tokenizer(str(path), None, TokensConfig.model_validate(config))


def copy(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.to_str())


# ------------------------------------------------------------------------------------------- unfit tokenizers


def test_a_lower_casing_wordpiece_is_refused_by_name(training_texts: list[str], write: Write) -> None:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(training_texts, trainer)
    with pytest.raises(TokenizerError, match=r"normaliser \(BertNormalizer\) changes it.*use a model whose"):
        load(write(tokenizer))


def test_characters_with_an_unknown_token_are_refused(training_texts: list[str], write: Write) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(special_tokens=["<unk>"], vocab_size=80, show_progress=False)
    tokenizer.train_from_iterator(training_texts, trainer)
    with pytest.raises(TokenizerError, match="gives the unknown token"):
        load(write(tokenizer))


@pytest.mark.parametrize(
    ("normalizer", "name"),
    [
        (normalizers.Lowercase(), "Lowercase"),
        (normalizers.NFKC(), "NFKC"),
        (normalizers.NFD(), "NFD"),
        (normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]), "Lowercase"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "NFD"),
        (normalizers.Strip(), "Strip"),
        (normalizers.Replace("``", '"'), "Replace"),
    ],
)
def test_a_normaliser_that_changes_text_is_named(
    normalizer: normalizers.Normalizer, name: str, built: Built, write: Write
) -> None:
    tokenizer = copy(built["byte_level"])
    tokenizer.normalizer = normalizer
    with pytest.raises(TokenizerError, match=rf"normaliser \([^)]*{name}[^)]*\) changes it"):
        load(write(tokenizer))


def test_a_pre_tokeniser_that_drops_spaces_is_named(built: Built, write: Write) -> None:
    tokenizer = copy(built["byte_level"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(TokenizerError, match="no token for byte 0x20"):
        load(write(tokenizer))


# ------------------------------------------------------------------------------------------- BOS and EOS


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_asking_for_a_token_that_no_file_names_is_an_error(role: str, built: Built, write: Write) -> None:
    with pytest.raises(TokenizerError, match=rf"tokens\.{role} is true.*set {role}_token"):
        load(write(built["byte_level"]), **{role: True})


def test_eos_is_found_in_the_generation_config(built: Built, write: Write) -> None:
    path = write(built["byte_level"])
    (path.parent / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [2, 1]}))
    tokenizer = load(path.parent, eos=True)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.appends_eos) == (2, None, True)


def test_a_token_that_is_not_in_the_vocabulary_is_an_error(built: Built, write: Write) -> None:
    path = write(built["byte_level"])
    (path.parent / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    with pytest.raises(TokenizerError, match=r"'<\|end\|>' as its EOS, which is not in its vocabulary"):
        load(path.parent)


def test_of_a_classifiers_frame_only_the_first_token_stays(built: Built, write: Write) -> None:
    tokenizer = copy(built["byte_level"])
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    loaded = load(write(tokenizer))
    document = loaded.encode(["text"])[0]
    assert isinstance(document, EncodedDocument)
    assert document.input_ids[0] == 1 and 2 not in document.input_ids


def test_an_eos_that_is_an_ordinary_added_token_cannot_be_forged(built: Built, write: Write) -> None:
    tokenizer = copy(built["byte_level"])
    tokenizer.add_tokens([AddedToken("<|end|>", special=False, normalized=False)])
    index = tokenizer.token_to_id("<|end|>")
    path = write(tokenizer)
    unnamed = load(path).encode(["a<|end|>b"])[0]
    assert isinstance(unnamed, EncodedDocument) and index in unnamed.input_ids
    (path.parent / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    named = load(path, eos=True).encode(["a<|end|>b"])[0]
    assert isinstance(named, EncodedDocument)
    assert named.input_ids.tolist().count(index) == 1 and named.input_ids[-1] == index


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_gguf_header_decides_about_bos(adds_bos: bool, built: Built, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    model = json.loads(built["byte_level"].to_str())["model"]
    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_types([3, 3, 3] + [1] * (len(model["vocab"]) - 3))  # control, normal
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(adds_bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = load(tmp_path / "tiny.gguf")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1 if adds_bos else None, 2)
    document = tokenizer.encode(["some words"])[0]
    assert isinstance(document, EncodedDocument)
    inner = built["byte_level"].encode("some words", add_special_tokens=False).ids
    assert document.input_ids.tolist() == [1] * adds_bos + inner


# ------------------------------------------------------------------------------------------- sources


def test_vocabulary_and_merges_files_are_converted(built: Built, tmp_path: Path) -> None:
    model = json.loads(built["byte_level"].to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})
    )
    document = load(tmp_path).encode(["some words, 世界"])[0]
    assert isinstance(document, EncodedDocument)
    expected = built["byte_level"].encode("some words, 世界", add_special_tokens=False).ids
    assert document.input_ids.tolist() == expected


def test_a_directory_without_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TokenizerError, match=rf"no tokenizer in '{tmp_path}'.*copy the model's tokenizer.json there"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 3}', "\x00"])
def test_a_damaged_file_is_a_clear_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"is it|restore the file"):
        load(tmp_path)


@pytest.mark.parametrize("source", ["/nowhere/model", "./nowhere.json", "nowhere/at/all", "model.gguf"])
def test_a_path_that_does_not_exist_never_reaches_the_network(source: str) -> None:
    with pytest.raises(TokenizerError, match="does not exist"):
        load(source)


def test_a_hub_name_offline_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TokenizerError, match="neither a local path nor to be had from the hub"):
        load("nobody/no-such-model")


def test_code_beside_a_tokenizer_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "tokenization_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: ...\n")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "tokenization_evil.Evil"}}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}})
    )
    with pytest.raises(TokenizerError):
        load(tmp_path)
    assert not marker.exists()
