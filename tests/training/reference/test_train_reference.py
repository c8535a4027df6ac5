"""Training a reference with a tiny real model, end to end."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

import curator
from curator.corpora.jsonl import JsonlCorpus
from curator.errors import CorpusError, OutputError, TrainingError
from curator.tokens.tokenizer import TokensConfig, load_tokenizer
from curator.training import TrainSpec, train_reference
from curator.training.reference.clock import Clock
from curator.training.reference.lora import plain_copy
from curator.training.reference.place import find_output

TOKENIZER = Path(curator.__file__).parent / "scorers" / "bigram_model" / "tokenizer.json"


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> Path:
    """What is trained."""
    return tiny_llama


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.jsonl"
    rows = [{"text": f"Document {i} says that two and two is four. " * (1 + i % 7)} for i in range(40)]
    path.write_text("\n".join([*map(json.dumps, rows), "not json"]))
    return path


def make_spec(base: Path, good: Path, output: Path, **changes: Any) -> TrainSpec:
    settings = {
        "base": str(base),
        "corpus": {"kind": "jsonl", "uri": str(good)},
        "output": str(output),
        "sequence_length": 64,
        "batch_tokens": 512,
        "micro_batch_tokens": 256,
        "learning_rate": 3e-3,
        "eval_fraction": 0.1,
        "dtype": "float32",
    }
    return TrainSpec.model_validate(settings | changes)


def test_a_reference_learns_the_good_data_and_is_a_model_directory(base: Path, good: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    result = train_reference(make_spec(base, good, tmp_path / "deep" / "reference"), lines.append)
    assert result.loss_before is not None and result.loss_after is not None
    assert result.loss_after < result.loss_before - 0.5
    assert result.bad_rows == {"not_json": 1} and "not_json 1" in "\n".join(lines)
    assert any("tokens/s" in line for line in lines)
    folder = tmp_path / "deep" / "reference"
    assert Path(result.output) == folder and [p.name for p in folder.parent.iterdir()] == ["reference"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training.json"} <= {
        path.name for path in folder.iterdir()
    }
    own, its = (load_tokenizer(str(place), None, TokensConfig()) for place in (folder, base))
    assert own.fingerprint == its.fingerprint
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("Document 3 says that two and two is four.", return_tensors="pt")
    with torch.no_grad():
        loss = model(input_ids=inputs["input_ids"], labels=inputs["input_ids"]).loss.item()
    assert loss < result.loss_before - 0.5
    assert model.dtype == torch.float32, "saved in the base's own type"
    assert f"{result.loss_after:.4f} under this model" in (folder / "README.md").read_text()


def test_the_same_training_is_not_done_twice_and_another_is_refused(base: Path, good: Path, tmp_path: Path) -> None:
    output = tmp_path / "reference"
    spec = make_spec(base, good, output, max_steps=2)
    first = train_reference(spec, lambda line: None)
    weights = (output / "model.safetensors").stat().st_mtime_ns
    assert train_reference(spec, lambda line: None) == first
    assert (output / "model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(OutputError, match=r"learning_rate: 0\.003 became 0\.001.*name another output"):
        train_reference(make_spec(base, good, output, max_steps=2, learning_rate=1e-3), lambda line: None)
    moved = tmp_path / "good.jsonl"
    moved.write_text(good.read_text().replace("four", "five"))
    original = good.read_text()
    try:
        good.write_text(moved.read_text())
        with pytest.raises(OutputError, match="other tokens"):
            train_reference(spec, lambda line: None)
    finally:
        good.write_text(original)


def test_a_folder_that_holds_something_else_is_left_alone(base: Path, good: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="already holds something else"):
        train_reference(make_spec(base, good, tmp_path), lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_equal_specs_train_equal_weights(base: Path, good: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_reference(make_spec(base, good, tmp_path / name, max_steps=3), lambda line: None)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.slow
def test_micro_batches_bound_memory_and_do_not_change_the_result(base: Path, good: Path, tmp_path: Path) -> None:
    """With one step over all the data, however it is cut, the same gradient is taken."""
    weights = []
    for name, micro in (("small", 64), ("large", 100_000)):
        spec = make_spec(
            base, good, tmp_path / name, micro_batch_tokens=micro, batch_tokens=100_000, max_steps=1, eval_fraction=0.0
        )
        assert train_reference(spec, lambda line: None).loss_after is None
        weights.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict())
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for key, value in weights[0].items():
        moved = (value - start[key]).abs().max()
        assert (value - weights[1][key]).abs().max() <= 0.02 * moved


def test_time_ends_the_training_between_steps(base: Path, good: Path, tmp_path: Path) -> None:
    result = train_reference(
        make_spec(base, good, tmp_path / "r", epochs=1e6, max_minutes=0.03, batch_tokens=64, micro_batch_tokens=64),
        lambda line: None,
    )
    assert 1 <= result.steps < 10_000 and result.seconds < 60  # a million epochs would be hours


@pytest.mark.parametrize("change", [{}, {"eval_fraction": 0.0}], ids=["held out", "nothing held out"])
def test_a_model_that_diverged_is_not_published(base: Path, good: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan after step 1: it diverged; lower learning_rate"):
        train_reference(
            make_spec(base, good, tmp_path / "r", learning_rate=1e30, max_steps=1, **change), lambda line: None
        )
    assert list(tmp_path.iterdir()) == []


def test_what_is_published_names_no_folder_and_still_tells_places_apart(base: Path, good: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "reference", tmp_path / "elsewhere" / base.name
    shutil.copytree(base, other)
    train_reference(make_spec(base, good, output, max_steps=1), lambda line: None)
    record = (output / "training.json").read_text()
    assert str(tmp_path) not in record and str(base.parent) not in record and str(good.parent) not in record
    content = json.loads(record)
    assert (content["output"], content["spec"]["base"]) == ("reference", base.name)
    assert content["spec"]["corpus"]["uri"] == good.name
    with pytest.raises(OutputError, match="lie elsewhere, under the same last name"):
        train_reference(make_spec(other, good, output, max_steps=1), lambda line: None)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_output_on_an_object_store_is_refused(base: Path, good: Path, tmp_path: Path, workers: int) -> None:
    spec = make_spec(base, good, tmp_path, run={"workers": workers}).model_copy(
        update={"output": "s3://bucket/reference"}
    )
    with pytest.raises(OutputError, match=r"'s3://bucket/reference' is not on a local disk.*name a folder"):
        train_reference(spec, lambda line: None)


def test_a_file_uri_is_the_folder_that_it_names(tmp_path: Path) -> None:
    assert find_output(f"file://{tmp_path}/reference") == tmp_path / "reference"


def test_a_kept_copy_is_made_on_the_cpu_in_the_type_that_it_is_saved_in(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    copied = plain_copy(model, torch.bfloat16)
    own, its = model.state_dict(), copied.state_dict()
    assert own.keys() == its.keys()
    for name, weight in own.items():
        assert its[name].dtype == torch.bfloat16 and its[name].data_ptr() != weight.data_ptr()
        assert torch.equal(weight, before[name]) and torch.equal(its[name], weight.to(torch.bfloat16))
    assert len(list(copied.parameters())) == len(list(model.parameters()))


@pytest.mark.slow
def test_the_learning_rate_falls_along_half_a_cosine(
    base: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train_reference(make_spec(base, good, tmp_path / "r", max_steps=4), lambda line: None)
    assert used == pytest.approx([3e-3 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])


def test_the_clock_goes_by_steps_or_time_whichever_is_further() -> None:
    clock = Clock(total_steps=100, limit_s=60, step=10, elapsed_s=30)
    assert clock.progress == 0.5 and clock.learning_rate_factor() == pytest.approx(0.5)
    assert not clock.over and Clock(total_steps=100, limit_s=60, step=10, elapsed_s=55).over
    assert Clock(total_steps=20, limit_s=math.inf, step=10, elapsed_s=1e6).progress == 0.5


def test_a_base_or_corpus_that_is_not_there_is_named(base: Path, good: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (empty / name).write_bytes((base / name).read_bytes())
    with pytest.raises(TrainingError, match=r"base: model '.*empty' has no weights: expected"):
        train_reference(make_spec(empty, good, tmp_path / "r"), lambda line: None)
    with pytest.raises(CorpusError):
        train_reference(make_spec(base, tmp_path / "nothing-*.jsonl", tmp_path / "r"), lambda line: None)
    with pytest.raises(TrainingError, match="exceeds the base's context of 128"):
        train_reference(make_spec(base, good, tmp_path / "r", sequence_length=129), lambda line: None)
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"text": " "}\n')
    with pytest.raises(TrainingError, match="no row to learn from"):
        train_reference(make_spec(base, blank, tmp_path / "r"), lambda line: None)
    assert not list(tmp_path.glob(".r-*")) and not (tmp_path / "r").exists(), "nothing half-made is left behind"


@pytest.mark.parametrize("change", [{"epochs": 0}, {"sequence_length": 1}, {"eval_fraction": 1.0}, {"steps": 3}])
def test_a_spec_out_of_range_is_refused(base: Path, good: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        make_spec(base, good, tmp_path, **change)


@pytest.mark.slow
def test_a_gguf_base_becomes_a_directory_with_the_same_tokenizer(
    smollm2_gguf: Path, good: Path, tmp_path: Path
) -> None:
    small = {"batch_tokens": 64, "micro_batch_tokens": 64}
    spec = make_spec(smollm2_gguf, good, tmp_path / "r", max_steps=1, dtype="auto", eval_fraction=0.01, **small)
    result = train_reference(spec, lambda line: None)
    assert result.steps == 1 and result.loss_before is not None and math.isfinite(result.loss_before)
    own, its = (load_tokenizer(str(place), None, TokensConfig()) for place in (tmp_path / "r", smollm2_gguf))
    assert own.fingerprint == its.fingerprint
    assert JsonlCorpus(uri=str(good)) == spec.corpus
