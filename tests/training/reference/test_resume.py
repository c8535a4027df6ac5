"""An interrupted training goes on where it saved, and ends in the very weights of one that was not interrupted."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator.errors import OutputError
from curator.training.reference.milestones import find_progress
from curator.training.reference.record import TrainResult
from curator.training.reference.staging import staging_of

Make = Callable[..., dict[str, Any]]
Train = Callable[..., TrainResult]
OFTEN = {"checkpoint_minutes": 1e-6}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"method": "lora", "lora": {"dropout": 0.2}},
        {"learning_rate": 0.08, "patience": 4, "epochs": 40.0, "max_steps": None},
    ],
    ids=["full", "lora with dropout", "early stopping"],
)
def test_a_resumed_run_ends_in_the_same_bytes(
    train: Train, train_spec: Make, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = {"max_steps": 6, "eval_every": 1, "keep_every": 2, **change}
    whole = train(train_spec(output=str(tmp_path / "whole"), **settings))
    spec = train_spec(output=str(tmp_path / "cut"), run=OFTEN, **settings)
    for step in (3, 5):  # step 3 was measured and not saved: it is done again
        with pytest.raises(KeyboardInterrupt):
            train(spec, interrupt_at=f"step {step}: held-out")
    resumed = train(spec)
    assert resumed.resumed_at == (2, 4) and whole.resumed_at == ()
    assert (resumed.evaluations, resumed.checkpoints) == (whole.evaluations, whole.checkpoints)
    same = ("steps", "trained_tokens", "ended_by", "published_step", "loss_before", "loss_after", "data_digest")
    assert {name: getattr(resumed, name) for name in same} == {name: getattr(whole, name) for name in same}
    folders = ["", *(f"{kept.folder}/" for kept in whole.checkpoints)]
    for folder in folders:
        one, other = (tmp_path / name / folder / "model.safetensors" for name in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), folder
    assert not list(tmp_path.glob(".cut*")), "nothing is left beside the output"


def test_only_the_same_spec_and_data_go_on(train: Train, train_spec: Make, good_texts: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(good_texts.read_text())
    corpus = {"kind": "jsonl", "uri": str(texts)}
    settings = {"corpus": corpus, "max_steps": 4, "eval_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train(train_spec(run=OFTEN, **settings), interrupt_at="step 3: held-out")
    with pytest.raises(OutputError, match=r"unfinished training.*learning_rate: 0\.003 became 0\.001"):
        train(train_spec(learning_rate=1e-3, **settings))
    texts.write_text(good_texts.read_text().replace("four", "five"))
    with pytest.raises(OutputError, match=r"unfinished training.*data_digest"):
        train(train_spec(**settings))
    texts.write_text(good_texts.read_text())
    assert train(train_spec(**settings)).resumed_at == (2,), "nothing of that did harm"


def test_a_save_that_was_cut_off_is_not_resumed_from(train: Train, train_spec: Make, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "eval_every": 1}
    spec = train_spec(run=OFTEN, **settings)
    with pytest.raises(KeyboardInterrupt):
        train(spec, interrupt_at="step 3: held-out")
    half = staging_of(tmp_path / "reference").resume / "checkpoint-3"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert train(spec).resumed_at == (2,)


def test_what_cannot_be_resumed_leaves_nothing_behind(train: Train, train_spec: Make, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(train_spec(max_steps=4, eval_every=1), interrupt_at="step 2: held-out")
    assert not list(tmp_path.glob(".reference*"))


def test_two_do_not_train_the_same_output_at_once(train: Train, train_spec: Make, tmp_path: Path) -> None:
    root = staging_of(tmp_path / "reference").root
    root.mkdir()
    with open(root / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process is training"):
            train(train_spec(max_steps=1))
    assert train(train_spec(max_steps=1)).steps == 1


@pytest.mark.slow
def test_a_killed_process_is_resumed_by_the_same_command(train: Train, train_spec: Make, tmp_path: Path) -> None:
    settings = {"max_steps": 60, "eval_every": 20, "keep_checkpoints": [0.5]}
    whole = train(train_spec(output=str(tmp_path / "whole"), **settings))
    output = tmp_path / "killed"
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(train_spec(output=str(output), run=OFTEN, **settings)))
    command = [str(Path(sys.executable).parent / "curator"), "train-reference", str(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    resume = staging_of(output).resume
    until = time.monotonic() + 120
    while (progress := find_progress(resume)) is None or progress.step < 10:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=200)
    found = TrainResult.model_validate_json((output / "training.json").read_bytes())
    assert len(found.resumed_at) == 1 and found.resumed_at[0] >= 10
    assert found.checkpoints == whole.checkpoints and len(whole.checkpoints) == 1
    for name in ("model.safetensors", f"{whole.checkpoints[0].folder}/model.safetensors"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
