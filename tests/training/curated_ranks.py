"""What one rank of `WeightedTrainer` trains on; run by every process of test_curated_trainer.py.

python curated_ranks.py DATASET MODEL OUTPUT SEQUENCE_LENGTH      (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are set)
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainingArguments

import curator
from curator.training import WeightedTrainer


class Recorder(WeightedTrainer):
    """Notes the first tokens of every row it trains on."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Note, then compute."""
        if model.training:
            self.seen = [*getattr(self, "seen", []), *inputs["input_ids"][:, :6].tolist()]
        return super().compute_loss(model, inputs, *args, **kwargs)


def make_trainer(dataset: Path, model: Path, output: Path, sequence_length: int | None, **more: Any) -> Recorder:
    """A trainer of single rows over a dataset that was opened as anyone would."""
    arguments = TrainingArguments(
        output_dir=str(output), per_device_train_batch_size=2, per_device_eval_batch_size=2, learning_rate=1e-3,
        use_cpu=True, report_to="none", dataloader_pin_memory=False, disable_tqdm=True, logging_strategy="no",
        save_strategy="steps", **more,
    )  # fmt: skip
    data = curator.load(dataset, sequence_length)
    network = AutoModelForCausalLM.from_pretrained(model)
    return Recorder(model=network, args=arguments, train_dataset=data, eval_dataset=data)


if __name__ == "__main__":
    dataset, model, output = map(Path, sys.argv[1:4])
    trainer = make_trainer(
        dataset, model, output, int(sys.argv[4]) or None, max_steps=4, gradient_accumulation_steps=2, ddp_backend="gloo"
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    weights = sum(float(p.detach().double().abs().sum()) for p in trainer.model.parameters())
    told = {"seen": trainer.seen, "step": trainer.state.global_step, "loss": loss, "weights": weights}
    (output / f"{os.environ['RANK']}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()  # else its threads may abort the interpreter's end
