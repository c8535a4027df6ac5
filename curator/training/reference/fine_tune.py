"""Fine-tuning on the HF Trainer, within steps or minutes, in one process or in several that share every step.

Weights and optimiser are float32 and only matrix products run in bfloat16, so that small updates are not rounded away.
The loss comes from hidden states wherever the model has a plain output head: a micro-batch's logits, which for a large
vocabulary outweigh the model, never exist at once.
This module imports torch and transformers; import it only to train.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from curator.errors import TrainingError
from curator.scorers.memory import keep_freed_memory
from curator.training.fused import can_be_fused
from curator.training.hf_trainer import WeightedTrainer
from curator.training.objective import Objective
from curator.training.reference import distributed
from curator.training.reference.checkpoint_files import Base, choose_dtype, save_model
from curator.training.reference.clock import Clock, Report
from curator.training.reference.course import Course
from curator.training.reference.documents import Example, cut_rows, hold_out, ids_of, make_batches
from curator.training.reference.lora import add_adapter, is_adapted, merged, plain_copy, save_adapter
from curator.training.reference.milestones import Evaluation, KeptCheckpoint, Progress, find_progress, resume_folder
from curator.training.reference.schedule import MicroBatch, Schedule, collate
from curator.training.reference.staging import Staging

if TYPE_CHECKING:
    from curator.training.reference.spec import Say, TrainSpec


class Outcome(NamedTuple):
    """What a fine-tuning did; see `TrainResult`."""

    steps: int
    trained_tokens: int
    seconds: float
    loss_before: float | None
    loss_after: float | None
    published_step: int
    ended_by: str
    evaluations: tuple[Evaluation, ...]
    checkpoints: tuple[KeptCheckpoint, ...]
    resumed_at: tuple[int, ...]


def fine_tune(base: Base, spec: "TrainSpec", documents: Sequence[Example], staging: Staging, say: "Say") -> Outcome:
    """Train a base, from the beginning or from the last resume point, and write what is to be published.

    Args:
        base: a causal language model in float32.
        spec: how to train.
        documents: each of T >= 2 tokens.
        staging: where to write; the model goes to `staging.model`.
        say: takes progress lines.

    Raises:
        TrainingError: the rows are longer than the model's context or hold tokens that it has not, nothing is left to
            hold out, or it diverged.
    """
    _check_fit(base.model, spec.sequence_length, documents)
    if not torch.accelerator.is_available():
        keep_freed_memory()  # 12% to 24% more tokens a second on one core
    adapter = spec.adapter
    model = base.model if adapter is None else add_adapter(base.model, adapter, spec.seed)
    train, held = _hold_out(spec, documents, say)
    batches = make_batches(cut_rows(train, spec.sequence_length), spec.micro_batch_tokens, spec.seed)
    held_batches = make_batches(cut_rows(held, spec.sequence_length), spec.micro_batch_tokens, spec.seed)
    schedule = Schedule(batches, spec.batch_tokens, distributed.processes(), spec.seed)
    clock = _make_clock(spec, schedule)
    trainer = _make_trainer(model, spec, schedule, clock, staging.resume)

    def write_copy(folder: Path) -> None:
        save_model(plain_copy(model, base.saved_dtype), base.saved_dtype, spec, folder)

    report = Report(clock, schedule.tokens, say)
    course = Course(spec, clock, report, staging, lambda: _measure(trainer, held_batches), write_copy, say)
    found = find_progress(staging.resume)
    loss_before = found.loss_before if found else _measure(trainer, held_batches)
    course.progress = Progress(loss_before=loss_before)
    _say_plan(spec, schedule, clock, model, sum(map(len, train)), loss_before, say)
    if found is not None:
        course.go_on(found)
    distributed.wait_for_all()  # whoever is first may write a new resume point
    trainer.add_callback(report)
    trainer.add_callback(course)
    trainer.train(resume_from_checkpoint=str(resume_folder(staging.resume, found.step)) if found else None)
    best = course.restore_best(model)
    loss_after = best.loss if best else _measure(trainer, held_batches)
    _check_finite(loss_after, _measure(trainer, batches[:1]) if loss_after is None else None)
    if loss_after is not None:
        say(f"held-out loss {loss_before:.4f} -> {loss_after:.4f} nats")
    if distributed.is_main():
        _write_model(model, base, spec, staging.model)
    return Outcome(
        steps=clock.step,
        trained_tokens=report.tokens,
        seconds=clock.elapsed_s,
        loss_before=loss_before,
        loss_after=loss_after,
        published_step=best.step if best else clock.step,
        ended_by=_why_ended(spec, course, clock, schedule),
        evaluations=course.progress.evaluations,
        checkpoints=course.progress.kept,
        resumed_at=course.progress.resumed_at,
    )


def _hold_out(
    spec: "TrainSpec", documents: Sequence[Example], say: "Say"
) -> tuple[Sequence[Example], Sequence[Example]]:
    train, held = hold_out(documents, spec.eval_fraction, spec.seed)
    if spec.eval_fraction > 0 and not held:
        raise TrainingError("one document cannot be trained on and held out; set eval_fraction: 0 or add documents")
    if held:
        share = sum(map(len, held)) / sum(map(len, documents))
        say(f"held out: {len(held):,} documents, {share:.1%} of the tokens (eval_fraction {spec.eval_fraction:.1%})")
    return train, held


def _check_finite(held_out: float | None, trained: float | None) -> None:
    """Refuse to publish what diverged; `trained` is the loss of some trained rows where none are held out."""
    for name, loss in (("held-out", held_out), ("training", trained)):
        if loss is not None and not math.isfinite(loss):
            raise TrainingError(f"the {name} loss is {loss} after the last step: it diverged; lower learning_rate")


def _check_fit(model: Any, sequence_length: int, documents: Sequence[Example]) -> None:
    known, highest = model.get_input_embeddings().weight.shape[0], max(int(ids_of(ids).max()) for ids in documents)
    if highest >= known:
        raise TrainingError(
            f"the data holds token {highest}, and the base's embedding has rows for 0 to {known - 1}; its tokenizer is "
            "another model's, or got tokens that the model was not resized for"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and sequence_length > context:
        raise TrainingError(f"sequence_length={sequence_length} exceeds the base's context of {context}; lower it")


def _make_clock(spec: "TrainSpec", schedule: Schedule) -> Clock:
    planned = math.ceil(spec.epochs * schedule.steps_per_epoch)
    schedule.steps = min(planned, spec.max_steps or planned)
    return Clock(schedule.steps, 60 * spec.max_minutes if spec.max_minutes else math.inf)


def _make_trainer(model: Any, spec: "TrainSpec", schedule: Schedule, clock: Clock, scratch: Path) -> WeightedTrainer:
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
        save_strategy="no",  # `Course` asks for it
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several GPUs need one process each; the Trainer would split each row list instead
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=0.0, fused=True)
    trainer = WeightedTrainer(
        model=model,
        args=arguments,
        train_dataset=schedule,
        data_collator=collate,
        objective=Objective(fused=can_be_fused(model)),  # full logits only where the architecture leaves no choice
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: clock.learning_rate_factor())),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _measure(trainer: WeightedTrainer, batches: Sequence[MicroBatch]) -> float | None:
    """Weighted mean loss per predicted token in nats, over all processes; None without batches."""
    if not batches:
        return None
    model, device = trainer.model, trainer.args.device
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


def _write_model(model: Any, base: Base, spec: "TrainSpec", folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    if is_adapted(model) and spec.adapter is not None and spec.adapter.keep_adapter:
        save_adapter(model, Path(spec.base).name if Path(spec.base).exists() else spec.base, folder / "adapter")
    save_model(merged(model), base.saved_dtype, spec, folder)


def _why_ended(spec: "TrainSpec", course: Course, clock: Clock, schedule: Schedule) -> str:
    if course.patience_lost:
        return "patience"
    if clock.step < clock.total_steps:
        return "max_minutes"
    return "max_steps" if clock.total_steps < math.ceil(spec.epochs * schedule.steps_per_epoch) else "epochs"


def _say_plan(
    spec: "TrainSpec",
    schedule: Schedule,
    clock: Clock,
    model: Any,
    tokens: int,
    loss_before: float | None,
    say: "Say",
) -> None:
    limit = f" or {clock.limit_s:,.0f} s" if clock.limit_s < math.inf else ""
    held = "" if loss_before is None else f"; held-out loss of the base {loss_before:.4f} nats"
    dtype = str(choose_dtype(spec.dtype)).removeprefix("torch.")
    say(f"training on {tokens:,} tokens in {dtype}: at most {clock.total_steps:,} steps{limit}{held}")
    if is_adapted(model):
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        trained, everything = sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes)
        say(f"adapters: {trained:,} of {everything:,} parameters are trained")
    workers = distributed.processes()
    if workers > schedule.per_step:
        say(f"{workers} processes share {schedule.per_step} micro-batches a step; lower micro_batch_tokens to use all")
