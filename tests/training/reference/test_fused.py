"""Training a reference takes its loss from hidden states: the same numbers, and no full logits."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curator.training import TrainSpec, objective, train_reference
from curator.training.reference import trainer
from curator.training.reference.record import TrainResult

Make = Callable[..., dict[str, Any]]


def train(spec: dict[str, Any]) -> TrainResult:
    return train_reference(TrainSpec.model_validate(spec), lambda line: None)


@pytest.fixture
def count_fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every loss that is taken from hidden states."""
    calls: list[int] = []
    taken = objective.fused_weighted_cross_entropy

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return taken(*args, **kwargs)

    monkeypatch.setattr(objective, "fused_weighted_cross_entropy", count)
    return calls


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_the_training_is_that_over_logits(
    train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_fused: list[int], method: str
) -> None:
    settings = {"max_steps": 3, "eval_every": 2, "method": method}
    fused = train(train_spec(output=str(tmp_path / "fused"), **settings))
    assert count_fused, "the base has a plain head"
    count_fused.clear()
    monkeypatch.setattr(trainer, "can_be_fused", lambda model: False)
    plain = train(train_spec(output=str(tmp_path / "plain"), **settings))
    assert not count_fused
    assert fused.loss_before == pytest.approx(plain.loss_before, rel=1e-6)
    assert [found.loss for found in fused.evaluations] == pytest.approx([f.loss for f in plain.evaluations], rel=1e-5)
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("fused", "plain"))
    for name, weight in left.items():  # Adam turns rounding of tiny gradients into steps of up to the learning rate
        assert (weight - right[name]).norm() <= 1e-3 * weight.norm(), name


def test_a_head_that_cannot_be_taken_out_trains_over_logits(
    train_spec: Make, tmp_path: Path, count_fused: list[int]
) -> None:
    result = train(train_spec(method="lora", lora={"target_modules": ["lm_head"]}, max_steps=3, learning_rate=1e-2))
    assert not count_fused and result.loss_after is not None and result.loss_before is not None
    assert result.loss_after < result.loss_before


SCRIPT = """
import json, sys
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from curator.training import TrainSpec, train_reference
from curator.training.reference import trainer

given = json.loads(sys.argv[1])
if not given["fused"]:
    trainer.can_be_fused = lambda model: False
train_reference(TrainSpec.model_validate(given["spec"]), lambda line: None)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""


@pytest.mark.slow
def test_a_large_vocabulary_takes_a_fraction_of_the_memory(train_spec: Make, tiny_llama: Path, tmp_path: Path) -> None:
    """1,024 rows of 131,072 logits are 512 MiB in float32, and plain autograd holds at least two such tensors."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=131_072, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    base = tmp_path / "wide"
    LlamaForCausalLM(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(base)
    texts = tmp_path / "long.jsonl"
    texts.write_text(json.dumps({"text": "two and two is four, " * 1000}))
    spec = train_spec(
        base=str(base), corpus={"kind": "jsonl", "uri": str(texts)}, sequence_length=1024, batch_tokens=1024,
        micro_batch_tokens=1024, max_steps=1, eval_fraction=0.0,
    )  # fmt: skip
    peaks = {}
    for name, fused in (("plain", False), ("fused", True)):
        given = {"fused": fused, "spec": spec | {"output": str(tmp_path / name)}}
        command = [sys.executable, "-c", SCRIPT, json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        peaks[name] = int(done.stdout.split()[-1]) / 1024
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in peaks)
    for key, weight in left.items():
        torch.testing.assert_close(weight, right[key], rtol=1e-3, atol=1e-4)
    print({name: f"{peak:,.0f} MiB" for name, peak in peaks.items()})
    assert peaks["fused"] < peaks["plain"] - 800
