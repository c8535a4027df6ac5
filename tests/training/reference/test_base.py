"""A base that is damaged, incomplete or not what its config says is refused by name, before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from curator.errors import TokenizerError, TrainingError
from curator.scorers.checkpoint import Checkpoint
from curator.training import TrainSpec, train_reference

Make = Callable[..., dict[str, Any]]
Damage = Callable[[Path], Any]


@pytest.fixture
def copy_of(tiny_llama: Path, tmp_path: Path) -> Callable[[Damage], Path]:
    def make(damage: Damage) -> Path:
        folder = tmp_path / "damaged"
        shutil.copytree(tiny_llama, folder)
        damage(folder)
        return folder

    return make


def change_weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return damage


def change_config(**values: Any) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def without(part: str) -> Damage:
    return change_weights(lambda weights: {name: w for name, w in weights.items() if part not in name})


def cut(file: str, size: int) -> Damage:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


def refuse(spec: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises((TrainingError, TokenizerError), match=message):
        train_reference(TrainSpec.model_validate(spec), lambda line: None)
    assert [path.name for path in folder.iterdir()] == ["damaged"], "nothing half-made is left behind"


INCOMPLETE = {
    "no head": (without("lm_head"), r"has no lm_head\.weight, which LlamaForCausalLM needs: .*random numbers"),
    "a part of a layer": (
        without("layers.1.mlp"),
        r"has no model\.layers\.1\.mlp\.down_proj\.weight, model\.layers\.1",
    ),
    "a layer": (change_config(num_hidden_layers=3), r"has no model\.layers\.2\..* and 6 more, which"),
    "another architecture": (
        change_config(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        r"which GPT2LMHeadModel needs; it has model\.embed_tokens\.weight, .* and 17 more besides",
    ),
    "another size": (
        change_config(intermediate_size=80),
        r"has model\.layers\.0\.mlp\.down_proj\.weight of shape \(32, 64\) for \(32, 80\), .* and 3 more",
    ),
    "more than any memory": (
        change_config(intermediate_size=1 << 40),
        r"has model\.layers\.0\.mlp\.down_proj\.weight of shape \(32, 64\) for \(32, 1099511627776\), .* and 3 more",
    ),
    "a quantized model": (
        change_config(quantization_config={"quant_method": "fp8"}),
        r"is quantized \(fp8\), and .*name the model that it was made from",
    ),
}


DAMAGED = {
    "cut weights": (
        cut("model.safetensors", 5000),
        r"base: weights '.*damaged/model\.safetensors' are damaged: 5,000 bytes where .*copy or download them again",
    ),
    "empty weights": (
        cut("model.safetensors", 0),
        r"base: weights '.*damaged/model\.safetensors' are damaged: header of 0 bytes",
    ),
    "cut config": (cut("config.json", 20), r"config\.json' is not JSON .*restore the file"),
    "a config of something else": (lambda folder: (folder / "config.json").write_text("[]"), "holds a JSON list"),
    "a size that is no number": (
        change_config(hidden_size="abc"),
        r"base .*damaged' cannot be loaded \(StrictDataclass.*'hidden_size'",
    ),
    "no heads": (change_config(num_attention_heads=0), r"base .*damaged' cannot be loaded \(ZeroDivisionError: "),
    "an unknown activation": (
        change_config(hidden_act="nothing"),
        r"base .*damaged' cannot be loaded \(KeyError: 'nothing'",
    ),
    "a tokenizer config of something else": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"x": 3}}'),
        r"base .*damaged' cannot be loaded \(TypeError: ",
    ),
}


@pytest.mark.parametrize(("damage", "message"), (INCOMPLETE | DAMAGED).values(), ids=INCOMPLETE | DAMAGED)
def test_weights_that_would_be_random_are_named_and_damaged_files_are_one_clear_error(
    train_spec: Make, copy_of: Callable[[Damage], Path], tmp_path: Path, damage: Damage, message: str
) -> None:
    refuse(train_spec(base=str(copy_of(damage))), message, tmp_path)


def test_tokens_that_the_model_has_no_embedding_for_are_named(
    train_spec: Make, copy_of: Callable[[Damage], Path], tmp_path: Path
) -> None:
    def shrink(folder: Path) -> None:
        change_config(vocab_size=60)(folder)
        change_weights(lambda weights: {n: w[:60].clone() if len(w) > 1000 else w for n, w in weights.items()})(folder)

    refuse(train_spec(base=str(copy_of(shrink))), r"holds token \d+, and .*rows for 0 to 59", tmp_path)


def test_a_tied_head_is_not_missing_and_weights_that_are_left_over_are_said(
    train_spec: Make, copy_of: Callable[[Damage], Path], tmp_path: Path
) -> None:
    def tie(folder: Path) -> None:
        change_config(tie_word_embeddings=True, num_hidden_layers=1)(folder)
        without("lm_head")(folder)

    lines: list[str] = []
    spec = train_spec(base=str(copy_of(tie)), max_steps=1)
    assert train_reference(TrainSpec.model_validate(spec), lines.append).steps == 1
    assert "9 weights of the base are not used by LlamaForCausalLM: model.layers.1." in "\n".join(lines)


@pytest.mark.slow
def test_a_gguf_file_that_describes_far_more_than_it_holds_is_refused_before_it_is_loaded(smollm2_gguf: Path) -> None:
    from curator.training.reference.checkpoint_files import load_base

    spec = TrainSpec(base=str(smollm2_gguf), dataset="unused", output="unused")
    held = Checkpoint(revision=None, weights_digest="", stored_type="Q4_1", parameters=60_000_000, context=None)
    with pytest.raises(TrainingError, match=r"holds 60,000,000 weights, and its metadata describe a model of 134,515"):
        load_base(spec, held)


def test_a_base_whose_config_names_no_type_keeps_that_of_its_weights(
    train_spec: Make, copy_of: Callable[[Damage], Path], tmp_path: Path
) -> None:
    base = copy_of(change_config(dtype=None))
    train_reference(TrainSpec.model_validate(train_spec(base=str(base), max_steps=1, dtype="bfloat16")), lambda _: None)
    weights = load_file(tmp_path / "reference" / "model.safetensors").values()
    assert {str(weight.dtype) for weight in weights} == {"torch.float32"}
