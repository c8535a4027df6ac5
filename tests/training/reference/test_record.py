"""What a training says it was made of: the base's own weights and tokenizer, and no place of the machine."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from curator.errors import OutputError, TokenizerError, TrainingError
from curator.scorers.checkpoint import inspect_checkpoint
from curator.training import TrainSpec, train_reference
from curator.training.reference import train as training
from curator.training.reference.record import TrainResult, portable
from curator.training.reference.staging import staging_of

Make = Callable[..., dict[str, Any]]
Train = Callable[..., TrainResult]


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    """A base that a test may change."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "models" / "base"))


def replace_weights(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    save_file({name: 2 * w for name, w in weights.items()}, base / "model.safetensors", metadata={"format": "pt"})


def test_a_base_whose_weights_were_replaced_is_another_base(
    train: Train, train_spec: Make, base: Path, tmp_path: Path
) -> None:
    spec = train_spec(base=str(base), max_steps=1)
    result = train(spec)
    assert result.base_digest == inspect_checkpoint(str(base), None).weights_digest
    assert f"| weights of the base | `{result.base_digest}` |" in (tmp_path / "reference" / "README.md").read_text()
    assert train(spec) == result
    replace_weights(base)
    with pytest.raises(OutputError, match=r"another training \(base '.*/models/base' has other weights now\)"):
        train(spec)
    record = tmp_path / "reference" / "training.json"
    content = json.loads(record.read_text())
    del content["base_digest"], content["base_revision"]
    record.write_text(json.dumps(content))
    assert train(spec).base_digest is None, "an older record does not know it"


def test_a_training_does_not_go_on_from_another_base(
    train: Train, train_spec: Make, base: Path, tmp_path: Path
) -> None:
    spec = train_spec(base=str(base), max_steps=4, eval_every=1, run={"checkpoint_minutes": 1e-6})
    with pytest.raises(KeyboardInterrupt):
        train(spec, interrupt_at="step 3: held-out")
    before = (base / "model.safetensors").read_bytes()
    replace_weights(base)
    with pytest.raises(
        OutputError, match=r"another spec, base or data \(weights: '\w+ of .*/base' became '\w+ of .*/base'\)"
    ):
        train(spec)
    (base / "model.safetensors").write_bytes(before)
    assert train(spec).resumed_at == (2,)


def test_the_commit_of_a_base_from_the_hub_is_recorded(
    train: Train, train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "inspect_checkpoint", lambda *a: replace(inspect_checkpoint(*a), revision="c0ffee"))
    assert train(train_spec(max_steps=1)).base_revision == "c0ffee"
    assert "at `c0ffee` |" in (tmp_path / "reference" / "README.md").read_text()


@pytest.mark.parametrize("front", ["date: 2024-02-30", "a: [", "- 1", "license: 3"])
def test_a_strange_card_beside_the_base_is_no_reason_to_fail(
    train: Train, train_spec: Make, base: Path, front: str
) -> None:
    (base / "README.md").write_text(f"---\nlicense: mit\n{front}\n---\n# Base\n")
    assert train(train_spec(base=str(base), max_steps=1)).steps == 1


def test_the_license_is_read_before_anything_is_trained(
    train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(spec: TrainSpec) -> str:
        raise OSError("unreadable")

    monkeypatch.setattr(training, "find_license", fail)
    lines: list[str] = []
    with pytest.raises(OSError, match="unreadable"):
        train_reference(TrainSpec.model_validate(train_spec()), lines.append)
    assert not any(line.startswith("training on") for line in lines)


def test_a_tokenizer_that_is_not_the_bases_is_refused(
    train: Train, train_spec: Make, base: Path, tmp_path: Path
) -> None:
    same = str(base / "tokenizer.json")
    assert train(train_spec(tokens={"tokenizer": same}, max_steps=1)).steps == 1
    other = tmp_path / "other.json"
    definition = json.loads((base / "tokenizer.json").read_text())
    definition["normalizer"] = {"type": "NFC"} if definition.get("normalizer") is None else None
    other.write_text(json.dumps(definition))
    with pytest.raises(
        TrainingError, match=r"tokens\.tokenizer: '.*other\.json' is not the tokenizer of base '.*base'"
    ):
        train(train_spec(tokens={"tokenizer": str(other)}, output=str(tmp_path / "2")))
    with pytest.raises(TokenizerError, match="nowhere"):
        train(train_spec(tokens={"tokenizer": "/nowhere"}, output=str(tmp_path / "2")))


def test_relative_places_name_no_folder(
    train: Train, train_spec: Make, good_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret-data").mkdir()
    shutil.copy(good_texts, tmp_path / "secret-data" / "good.jsonl")
    corpus = {"kind": "jsonl", "uri": "secret-data/good.jsonl"}
    train(train_spec(corpus=corpus, output="secret-project/reference", max_steps=1))
    for name in ("training.json", "README.md"):
        assert "secret" not in (tmp_path / "secret-project" / "reference" / name).read_text(), name
    assert not staging_of(tmp_path / "secret-project" / "reference").root.exists()


def test_only_models_and_data_sets_may_be_names_on_a_hub() -> None:
    spec = {"base": "org/model", "dataset": "mine/curated", "output": "mine/out"}
    corpora = {"corpus": {"path": "org/data", "data_files": ["mine/*.csv", "a/b.csv"], "uri": "a/b"}}
    assert portable(spec | corpora) == {
        "base": "org/model", "dataset": "curated", "output": "out",
        "corpus": {"path": "org/data", "data_files": ["*.csv", "b.csv"], "uri": "b"},
    }  # fmt: skip
