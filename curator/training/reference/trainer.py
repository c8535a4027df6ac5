"""The HF Trainer as a reference is trained by it: its settings, its resume points, and the held-out loss.

Weights and optimiser are float32 and only matrix products run in bfloat16, so that small updates are not rounded away.
Invariant: a resume point that cannot be written or read is one clear error. This module imports torch and transformers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerState

from curator.training.fused import can_be_fused
from curator.training.hf_trainer import WeightedTrainer
from curator.training.objective import Objective
from curator.training.reference import distributed
from curator.training.reference.checkpoint_files import choose_dtype
from curator.training.reference.clock import Clock
from curator.training.reference.milestones import resume_folder, sound
from curator.training.reference.schedule import MicroBatch, Schedule, collate
from curator.training.reference.writing import written

if TYPE_CHECKING:
    from curator.training.reference.spec import TrainSpec

_PARTS = ("optimizer.pt", "scheduler.pt")


class ReferenceTrainer(WeightedTrainer):
    """A `WeightedTrainer` that says what is wrong with a resume point."""

    def go_on_from(self, place: Path) -> None:
        """Train from a resume point."""
        with sound(place):
            TrainerState.load_from_json(str(place / "trainer_state.json"))
            for name in _PARTS:  # without one, the library would begin that part anew
                (place / name).stat()
            if not list(place.glob("rng_state*.pth")):  # one for each process that there was
                raise FileNotFoundError(f"no rng_state.pth in {str(place)!r}")
        self.train(resume_from_checkpoint=str(place))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with written(resume_folder(Path(self.args.output_dir), self.state.global_step)):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with sound(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with sound(Path(checkpoint or ".")):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with sound(Path(checkpoint or ".")):
            super()._load_rng_state(checkpoint)


def make_trainer(model: Any, spec: "TrainSpec", schedule: Schedule, clock: Clock, scratch: Path) -> ReferenceTrainer:
    """A trainer of the schedule's steps, whose learning rate follows the clock; `scratch` is for resume points."""
    on_cpu = not torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=schedule.accumulate,
        max_steps=clock.total_steps,
        train_sampling_strategy="sequential",  # the schedule has an order of its own
        bf16=choose_dtype(spec.dtype) == torch.bfloat16,
        use_cpu=on_cpu,
        seed=spec.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log a loss that is no number as one
        save_strategy="no",  # `Course` asks for it
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several GPUs need one process each; the Trainer would split each row list instead
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=0.0, fused=True)
    trainer = ReferenceTrainer(
        model=model,
        args=arguments,
        train_dataset=schedule,
        data_collator=collate,
        objective=Objective(fused=can_be_fused(model)),  # full logits only where the architecture leaves no choice
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: clock.learning_rate_factor())),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def measure(trainer: WeightedTrainer, batches: Sequence[MicroBatch], model: Any = None) -> float:
    """Weighted mean loss per predicted token in nats, over all processes.

    Args:
        trainer: says how the loss is computed.
        batches: what to predict; at least one.
        model: another model than the trainer's.
    """
    model, device = model or trainer.model, trainer.args.device
    model.eval()
    total = weight_sum = 0.0
    for batch in batches[distributed.rank() :: distributed.processes()]:
        inputs = {name: values.to(device) for name, values in collate([batch]).items()}
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=trainer.args.bf16):
            loss, _ = trainer.objective.loss(model, inputs, denominator=1.0)
        total += loss.item()
        weight_sum += trainer.objective.amount(inputs).item()
    model.train()
    total, weight_sum = distributed.add_up(total, weight_sum)
    return total / weight_sum
