"""`curator check-trainer` says of real trainers what is true of them."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaForCausalLM, Trainer, TrainingArguments

from curator.training import Collator, WeightedTrainer
from curator.training.check.verdict import check_trainer

OPTIMIZERS = {"sgd": (torch.optim.SGD, {"lr": 0.1}), "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.0})}


def run_trainer(
    trainer_class: Any, canary: Path, output: Path, optimizer: str, config: Any = TrainingArguments, **options: Any
) -> Path:
    """One step of a real trainer over the canary, two rows in each of three micro-batches."""
    model = LlamaForCausalLM.from_pretrained(canary / "model", dtype=torch.float32)
    kind, settings = OPTIMIZERS[optimizer]
    stepper = kind(model.parameters(), **settings)
    rows = load_dataset(
        "parquet", data_files=str(canary / "data" / "curated" / "*.parquet"), split="train", cache_dir=str(output)
    )
    arguments = config(
        output_dir=str(output), per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=1, use_cpu=True,
        max_grad_norm=0, report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        logging_strategy="no", **options,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(stepper, lambda _: 1.0)
    more = {"data_collator": Collator()} if config is TrainingArguments else {}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # TRL's notices about its own future
        trainer = trainer_class(
            model=model, args=arguments, train_dataset=rows, optimizers=(stepper, schedule),
            processing_class=AutoTokenizer.from_pretrained(canary / "model"), **more,
        )  # fmt: skip
        trainer.train()
        trainer.save_model(str(output / "trained"))
    return output / "trained"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weighted_trainer_is_sound(canary: Path, tmp_path: Path, optimizer: str) -> None:
    verdict = check_trainer(canary, run_trainer(WeightedTrainer, canary, tmp_path, optimizer))
    assert verdict.sound and verdict.summary == "the weights reach the loss"
    assert verdict.fits[0].optimizer == ("SGD" if optimizer == "sgd" else "Adam")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_plain_trainer_drops_soft_weights_but_takes_hard_ones(
    canary: Path, hard_canary: Path, tmp_path: Path, optimizer: str
) -> None:
    soft = check_trainer(canary, run_trainer(Trainer, canary, tmp_path / "soft", optimizer))
    assert not soft.sound and soft.fits[0].name == "hard instead of soft"
    assert soft.summary.startswith("this looks like: hard instead of soft")
    hard = check_trainer(hard_canary, run_trainer(Trainer, hard_canary, tmp_path / "hard", optimizer))
    assert hard.sound


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trl(canary: Path, hard_canary: Path, tmp_path: Path, optimizer: str) -> None:
    from trl import SFTConfig, SFTTrainer

    from curator.training.trl_trainer import WeightedSFTTrainer

    plain = {"config": SFTConfig, "bf16": False}
    weighted = run_trainer(WeightedSFTTrainer, canary, tmp_path / "weighted", optimizer, **plain)
    assert check_trainer(canary, weighted).sound
    dropped = check_trainer(canary, run_trainer(SFTTrainer, canary, tmp_path / "soft", optimizer, **plain))
    assert not dropped.sound and dropped.fits[0].name == "hard instead of soft"
    assert check_trainer(hard_canary, run_trainer(SFTTrainer, hard_canary, tmp_path / "hard", optimizer, **plain)).sound
