"""TRL's trainer over curated rows: what `curator.load` gives, online selection, and datasets without a token."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig

import curator
from curator.errors import TrainingError
from curator.training import Endless, Objective, WeightedSFTTrainer


def make_trainer(canary: Path, output: Path, rows: Any, objective: Objective | None = None, **more: Any) -> Any:
    config = SFTConfig(
        output_dir=str(output), per_device_train_batch_size=2, max_steps=2, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", save_strategy="no", dataloader_pin_memory=False,
        disable_tqdm=True, **more,
    )  # fmt: skip
    return WeightedSFTTrainer(
        str(canary / "model"), config, train_dataset=rows, objective=objective,
        processing_class=AutoTokenizer.from_pretrained(canary / "model"),
    )  # fmt: skip


@pytest.mark.parametrize("sequence_length", [None, 64])
def test_what_curator_load_gives_is_trained_on(tmp_path: Path, canary: Path, sequence_length: int | None) -> None:
    seen: list[Any] = []

    class Recorder(WeightedSFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.extend(inputs["input_ids"][:, :6].tolist())
            return super().compute_loss(model, inputs, *args, **kwargs)

    data = curator.load(canary / "data", sequence_length)
    trainer = make_trainer(canary, tmp_path, data)
    trainer.__class__ = Recorder
    assert trainer.train().training_loss > 0
    expected = itertools.islice(Endless(data), 4)
    assert seen == [row["input_ids"][:6].tolist() for row in expected]


SCORED = {
    "input_ids": [[5, 6, 7], [8, 9, 10], [11, 12, 13]],
    "labels": [[-100, 6, -100], [-100] * 3, [-100] * 3],
    "token_weights": [[0.0, 1.0, 0.0], [0.0] * 3, [0.0] * 3],
    "logprobs_base": [[float("nan"), -1.0, -2.0], [float("nan"), -1.0, -1.0], [float("nan")] * 3],
}


@pytest.mark.parametrize("max_length", [None, 1024])
def test_rows_are_left_out_by_what_the_objective_uses(tmp_path: Path, canary: Path, max_length: int | None) -> None:
    rows = Dataset.from_dict(SCORED)
    stored = make_trainer(canary, tmp_path, rows, max_length=max_length)
    online = make_trainer(canary, tmp_path, rows, Objective(keep=0.5, reference="base"), max_length=max_length)
    assert len(stored.train_dataset) == 1
    assert sorted(online.train_dataset["input_ids"]) == [[5, 6, 7], [8, 9, 10]]


def test_what_max_length_cuts_is_told(tmp_path: Path, canary: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict(SCORED).select([1, 0])
    make_trainer(canary, tmp_path, rows, max_length=2)
    assert "train dataset: 2 of 2 rows are longer than max_length=2, and the 2 tokens behind it are not" in caplog.text
    assert "train dataset: 1 of 2 rows have no token to train on and are left out" in caplog.text
    caplog.clear()
    make_trainer(canary, tmp_path, rows.select([1]), max_length=3)
    assert not caplog.text


def test_a_dataset_to_evaluate_may_be_called_train(tmp_path: Path, canary: Path) -> None:
    trainer = make_trainer(canary, tmp_path, curator.load(canary / "data"))
    rows = Dataset.from_dict(SCORED).select([0])
    prepared = trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, False, None, "train")
    assert prepared["input_ids"][:] == [[5, 6, 7]]


def test_a_dataset_without_a_token_to_train_on_is_refused(tmp_path: Path, canary: Path) -> None:
    rows = Dataset.from_dict(SCORED)
    for nothing in (rows.select([]), rows.select([1, 2]), rows.select([1, 2]).to_iterable_dataset()):
        with pytest.raises(TrainingError, match="train dataset has no row with a token to train on"):
            make_trainer(canary, tmp_path, nothing)


def test_documents_told_by_their_lengths_are_not_merged(tmp_path: Path, canary: Path) -> None:
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[-100, 6, 7]], "seq_lengths": [[2, 1]]})
    with pytest.raises(TrainingError, match="seq_lengths"):
        make_trainer(canary, tmp_path, rows)
