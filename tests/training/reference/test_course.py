"""Along the way: measuring, stopping early, publishing the best step, keeping copies that engines load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from curator.tokens.tokenizer import TokensConfig, load_tokenizer
from curator.training import TrainSpec, train_reference
from curator.training.reference.documents import hold_out, read_documents
from curator.training.reference.record import TrainResult

Make = Callable[..., dict[str, Any]]


def train(spec: dict[str, Any]) -> TrainResult:
    return train_reference(TrainSpec.model_validate(spec), lambda line: None)


def held_out_loss(folder: Path, spec: dict[str, Any]) -> float:
    """Of a saved model, document by document, with the library's own loss."""
    parsed = TrainSpec.model_validate(spec)
    assert parsed.corpus is not None
    documents = read_documents(parsed.corpus, load_tokenizer(parsed.base, None, TokensConfig())).documents
    _, held = hold_out(documents, parsed.eval_fraction, parsed.seed)
    model = AutoModelForCausalLM.from_pretrained(folder)
    total, tokens = 0.0, 0
    for ids in held:
        assert not isinstance(ids, list) and len(ids) <= parsed.sequence_length, "a document that is cut loses context"
        inputs = torch.from_numpy(ids.astype("int64"))[None]  # type: ignore[union-attr]
        with torch.no_grad():
            total += model(inputs, labels=inputs).loss.item() * (len(ids) - 1)
        tokens += len(ids) - 1
    return total / tokens


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_that_gets_worse_ends_and_publishes_its_best_step(train_spec: Make, tmp_path: Path, method: str) -> None:
    spec = train_spec(
        method=method, learning_rate=0.5 if method == "lora" else 0.08, epochs=40, eval_every=1, patience=2,
        sequence_length=128,
    )  # fmt: skip
    result = train(spec)
    assert result.ended_by == "patience"
    losses = {found.step: found.loss for found in result.evaluations}
    assert list(losses) == list(range(1, result.steps + 1))
    best = min(losses, key=lambda step: losses[step])
    assert best == result.published_step == result.steps - 2, "two measurements in a row brought nothing better"
    assert result.loss_after == losses[best]
    assert held_out_loss(tmp_path / "reference", spec) == pytest.approx(losses[best], rel=1e-4)
    card = (tmp_path / "reference" / "README.md").read_text()
    assert "ended by patience" in card and f"weights of step {best}" in card
    assert "falling along a cosine that early stopping cut off" in card and "falling to 0" not in card


def test_without_patience_the_run_goes_on_and_the_best_step_is_published_all_the_same(
    train_spec: Make, tmp_path: Path
) -> None:
    spec = train_spec(learning_rate=0.08, max_steps=7, eval_every=3, sequence_length=128)
    result = train(spec)
    assert result.ended_by == "max_steps" and [found.step for found in result.evaluations] == [3, 6, 7]
    assert result.loss_after == min(found.loss for found in result.evaluations)
    assert held_out_loss(tmp_path / "reference", spec) == pytest.approx(result.loss_after, rel=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_kept_copies_are_model_directories_of_their_step(train_spec: Make, tmp_path: Path, method: str) -> None:
    result = train(train_spec(method=method, max_steps=8, keep_checkpoints=[0.25, 0.5], keep_every=4))
    assert [(kept.step, kept.folder) for kept in result.checkpoints] == [
        (2, "checkpoints/step-000002"),
        (4, "checkpoints/step-000004"),
        (8, "checkpoints/step-000008"),
    ]
    tokens = [kept.trained_tokens for kept in result.checkpoints]
    assert tokens == sorted(tokens) and tokens[-1] == result.trained_tokens
    reference = tmp_path / "reference"
    assert sorted(path.name for path in (reference / "checkpoints").iterdir()) == [
        "step-000002", "step-000004", "step-000008",
    ]  # fmt: skip
    states = [load_file(reference / kept.folder / "model.safetensors") for kept in result.checkpoints]
    final = load_file(reference / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(states[0][name], states[1][name])
    assert all(torch.equal(states[2][key], final[key]) for key in final), "keeping a copy does not disturb the run"
    AutoModelForCausalLM.from_pretrained(reference / "checkpoints/step-000002")
    own, its = (load_tokenizer(str(place), None, TokensConfig()) for place in (reference / "checkpoints/step-000002", reference))  # fmt: skip # noqa: E501
    assert own.fingerprint == its.fingerprint


def test_measuring_and_keeping_change_nothing_in_what_is_learned(train_spec: Make, tmp_path: Path) -> None:
    train(train_spec(max_steps=4, output=str(tmp_path / "plain")))
    train(train_spec(max_steps=4, output=str(tmp_path / "watched"), keep_every=1, run={"checkpoint_minutes": 1e-6}))
    plain, watched = (tmp_path / name / "model.safetensors" for name in ("plain", "watched"))
    assert plain.read_bytes() == watched.read_bytes()


def test_the_card_says_how_to_make_it_again_and_names_no_folder(
    train_spec: Make, tiny_llama: Path, tmp_path: Path
) -> None:
    base = tmp_path / "licensed"
    base.mkdir()
    for file in tiny_llama.iterdir():
        (base / file.name).symlink_to(file)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    result = train(train_spec(base=str(base), max_steps=1, keep_every=1))
    card = (tmp_path / "reference" / "README.md").read_text()
    assert "license: apache-2.0\n" in card and "The base is under `apache-2.0`" in card
    assert str(tmp_path) not in card and str(tiny_llama.parent) not in card
    for said in (
        result.data_digest,
        "max_steps: 1",
        "base: licensed",
        "uri: good.jsonl",
        "1 steps",
        "checkpoints/step",
    ):
        assert said in card
    (base / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    train(train_spec(base=str(base), max_steps=1, output=str(tmp_path / "second")))
    assert "files state none" in (tmp_path / "second" / "README.md").read_text()
