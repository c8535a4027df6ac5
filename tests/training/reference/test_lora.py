"""Adapters: trained by peft, folded in, loaded by anyone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from curator.errors import TrainingError
from curator.training import TrainSpec, train_reference
from curator.training.reference.lora import add_adapter
from curator.training.reference.spec import LoraOptions

Make = Callable[..., dict[str, Any]]


def train(spec: dict[str, Any]) -> Any:
    return train_reference(TrainSpec.model_validate(spec), lambda line: None)


def test_an_adapter_is_learned_and_merged_into_a_plain_model(
    train_spec: Make, tiny_llama: Path, tmp_path: Path
) -> None:
    lora = {"rank": 4, "alpha": 8, "keep_adapter": True}
    result = train(train_spec(method="lora", lora=lora, learning_rate=1e-2))
    assert result.loss_after < result.loss_before - 0.2
    folder = tmp_path / "reference"
    base, own = (load_file(place / "model.safetensors") for place in (tiny_llama, folder))
    assert base.keys() == own.keys(), "no trace of the adapter"
    changed = {name for name in base if not torch.equal(base[name], own[name])}
    assert changed == {name for name in base if "_proj." in name}, "all linear layers, and nothing else"
    ids = torch.arange(20)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        loose = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folder / "adapter")
        torch.testing.assert_close(loose(ids).logits, merged, rtol=1e-4, atol=1e-4)
    config = (folder / "adapter" / "adapter_config.json").read_text()
    assert str(tiny_llama.parent) not in config and json.loads(config)["r"] == 4
    assert "LoRA of rank 4, alpha 8" in (folder / "README.md").read_text()


def test_only_the_named_layers_are_adapted(train_spec: Make, tiny_llama: Path, tmp_path: Path) -> None:
    train(train_spec(method="lora", lora={"target_modules": ["q_proj", "v_proj"]}, max_steps=1))
    base, own = (load_file(place / "model.safetensors") for place in (tiny_llama, tmp_path / "reference"))
    changed = {name for name in base if not torch.equal(base[name], own[name])}
    assert changed == {name for name in base if name.endswith(("q_proj.weight", "v_proj.weight"))}
    assert not (tmp_path / "reference" / "adapter").exists()


def test_a_layer_that_the_base_has_not_is_named_with_those_that_it_has(train_spec: Make) -> None:
    with pytest.raises(TrainingError, match=r"'c_attn'.*down_proj, gate_proj.*q_proj"):
        train(train_spec(method="lora", lora={"target_modules": ["c_attn"]}))


@pytest.fixture
def tied(tiny_llama: Path, tmp_path: Path) -> Path:
    """A base whose output head is its embedding."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "tied"))
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "model.embed_tokens"])
def test_an_adapter_that_cannot_be_merged_alone_is_refused(train_spec: Make, tied: Path, target: str) -> None:
    spec = train_spec(base=str(tied), method="lora", lora={"target_modules": ["q_proj", target]})
    with pytest.raises(TrainingError, match=rf"target_modules: '{target}' shares its weights .*leave it out"):
        train(spec)


def test_an_adapter_leaves_tied_embeddings_alone(train_spec: Make, tied: Path, tmp_path: Path) -> None:
    train(train_spec(base=str(tied), method="lora", max_steps=1))
    base, own = (load_file(place / "model.safetensors") for place in (tied, tmp_path / "reference"))
    assert base.keys() == own.keys()
    assert {name for name in base if torch.equal(base[name], own[name])} == {n for n in base if "_proj" not in n}


def test_the_layers_of_a_base_with_transposed_ones_are_named() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(TrainingError, match="linear layers end in c_attn, c_fc, c_proj, lm_head"):
        add_adapter(model, LoraOptions(target_modules=("nope",)), seed=0)
