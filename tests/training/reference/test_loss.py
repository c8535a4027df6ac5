"""The losses that are reported: a run that diverges ends at once, and what is published has the loss that is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from curator.errors import TrainingError
from curator.tokens.tokenizer import TokensConfig, load_tokenizer
from curator.training import TrainSpec, train_reference
from curator.training.reference import fine_tune
from curator.training.reference.documents import cut_rows, hold_out, read_documents
from curator.training.reference.record import TrainResult
from curator.training.reference.staging import staging_of

Make = Callable[..., dict[str, Any]]
OFTEN = {"checkpoint_minutes": 1e-6}


def train(spec: dict[str, Any], lines: list[str] | None = None) -> TrainResult:
    return train_reference(TrainSpec.model_validate(spec), (lambda line: None) if lines is None else lines.append)


@pytest.fixture
def base_of(tiny_llama: Path, tmp_path: Path) -> Callable[[Callable[[torch.Tensor], torch.Tensor]], Path]:
    def make(change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
        folder = tmp_path / "models" / "changed"
        shutil.copytree(tiny_llama, folder)
        weights = load_file(folder / "model.safetensors")
        changed = {name: change(weight) for name, weight in weights.items()}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        dtype = str(next(iter(changed.values())).dtype).removeprefix("torch.")
        config = json.loads((folder / "config.json").read_text()) | {"dtype": dtype}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_the_first_step_that_diverged_ends_the_run_and_nothing_is_gone_on_from(
    train_spec: Make, tmp_path: Path, held_out: float
) -> None:
    settings = {"max_steps": 500, "keep_every": 1, "eval_fraction": held_out}
    lines: list[str] = []
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in step 2: it diverged; lower learning_rate"):
        train(train_spec(learning_rate=1e30, run=OFTEN, **settings), lines)
    assert not staging_of(tmp_path / "reference").root.exists()
    assert not any(line.startswith("interrupted") for line in lines)
    settings["max_steps"] = 1
    assert train(train_spec(**settings)).steps == 1, "the advice can be followed"


@pytest.mark.parametrize(
    ("held_out", "message"),
    [(0.1, "itself gives a held-out loss of nan; its weights"), (0.0, "itself gives a loss of nan in the first step")],
)
def test_a_base_that_has_no_loss_is_blamed_itself(
    train_spec: Make, base_of: Callable[..., Path], held_out: float, message: str
) -> None:
    base = base_of(lambda weight: torch.full_like(weight, torch.nan))
    with pytest.raises(TrainingError, match=rf"base '.*changed' {message}.*name another base"):
        train(train_spec(base=str(base), eval_fraction=held_out))


def loss_of(folder: Path, spec: dict[str, Any]) -> float:
    """Mean loss of the held-out tokens under a model directory, row by row in float32."""
    parsed = TrainSpec.model_validate(spec)
    assert parsed.corpus is not None
    documents = read_documents(parsed.corpus, load_tokenizer(spec["base"], None, TokensConfig())).documents
    _, held = hold_out(documents, parsed.eval_fraction, parsed.seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = tokens = 0.0
    for row in cut_rows(held, parsed.sequence_length):
        ids = torch.tensor([list(row)])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        total -= log_probs.gather(-1, ids[0, 1:, None]).sum().item()
        tokens += len(row) - 1
    return total / tokens


@pytest.mark.parametrize("change", [{}, {"eval_every": 2}, {"method": "lora"}], ids=["full", "best step", "lora"])
def test_the_loss_that_is_reported_is_that_of_the_published_weights(
    train_spec: Make,
    base_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    monkeypatch.setattr(fine_tune, "_ROUNDING_SAID", -1.0)
    spec = train_spec(base=str(base_of(lambda weight: weight.to(torch.bfloat16))), max_steps=4, **change)
    lines: list[str] = []
    result = train(spec, lines)
    stored = load_file(tmp_path / "reference" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert result.loss_after == pytest.approx(loss_of(tmp_path / "reference", spec), abs=1e-5)
    assert any(line.startswith("stored in bfloat16, the base's type, the model loses ") for line in lines)


def test_a_reference_that_is_worse_than_its_base_says_so(train_spec: Make, tmp_path: Path) -> None:
    lines: list[str] = []
    result = train(train_spec(max_steps=3, learning_rate=3.0), lines)
    assert result.loss_before is not None and result.loss_after is not None and result.loss_after > result.loss_before
    assert any(line.startswith("the reference is worse than its base") for line in lines)
    assert "under this model, which is worse than its base |" in (tmp_path / "reference" / "README.md").read_text()


def test_rows_that_are_longer_than_a_micro_batch_are_said(train_spec: Make) -> None:
    lines: list[str] = []
    train(train_spec(max_steps=1, micro_batch_tokens=16), lines)
    assert any("rows of up to 64 tokens are longer than micro_batch_tokens (16)" in line for line in lines)
    lines.clear()
    train(train_spec(max_steps=1, micro_batch_tokens=64, output=train_spec()["output"] + "-2"), lines)
    assert not any("micro_batch_tokens" in line for line in lines)
