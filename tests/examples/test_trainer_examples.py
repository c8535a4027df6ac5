"""Every in-process trainer example runs from the command line to a trained model, on a tiny model and dataset."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from curator.training.check.canary import write_canary

EXAMPLES = Path(__file__).parents[2] / "examples" / "trainers"
CALLS = {
    "hf_trainer": ("train_hf", False, ["--sequence-length", "64"]),
    "hf_trainer fused": ("train_hf", False, ["--sequence-length", "0", "--fused"]),
    "trl_sft": ("train_trl", False, ["--max-length", "48"]),
    "trl_sft hard": ("train_trl", True, ["--hard"]),
    "lightning": ("train_lightning", False, ["--sequence-length", "64"]),
    "lightning on two ranks": ("train_lightning", False, ["--sequence-length", "64", "--devices", "2"]),
    "accelerate": ("train_accelerate", False, ["--sequence-length", "64"]),
}


def run_example(folder: Path, script: str, hard: bool, options: list[str]) -> subprocess.CompletedProcess[str]:
    write_canary(folder / "canary", hard)
    paths = [str(folder / "canary" / "data"), str(folder / "canary" / "model"), str(folder / "out")]
    common = ["--cpu", "--steps", "6", "--micro-batch", "1", "--accumulate", "2", "--learning-rate", "0.01"]
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), *paths, *common, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_an_example_trains(tmp_path: Path, name: str) -> None:
    done = run_example(tmp_path, *CALLS[name])
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = (load_file(tmp_path / part / "model.safetensors") for part in ("canary/model", "out"))
    assert before.keys() == after.keys()
    assert all((after[key].float() - before[key]).abs().max() > 1e-3 for key in before)


@pytest.mark.slow
def test_soft_weights_are_not_dropped_by_the_hard_path(tmp_path: Path) -> None:
    done = run_example(tmp_path, "train_trl", False, ["--hard"])
    assert done.returncode == 1 and "the weights are soft" in done.stderr
