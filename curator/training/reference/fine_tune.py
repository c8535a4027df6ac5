"""Fine-tuning within steps or minutes, from base to model directory, by one process or several that share every step.

The loss comes from hidden states wherever the model has a plain output head: a micro-batch's logits, which for a large
vocabulary outweigh the model, never exist at once.
Invariant: the loss that is reported is that of the very weights that are written.
This module imports torch and transformers; import it only to train.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from curator import interrupts
from curator.errors import TrainingError
from curator.scorers.memory import keep_freed_memory
from curator.training.reference import distributed
from curator.training.reference.checkpoint_files import Base, choose_dtype, round_weights, save_model
from curator.training.reference.clock import Clock, Report
from curator.training.reference.course import Course
from curator.training.reference.documents import Example, cut_rows, hold_out, ids_of, make_batches
from curator.training.reference.lora import add_adapter, is_adapted, merged, plain_copy, save_adapter
from curator.training.reference.milestones import Evaluation, KeptCheckpoint, Progress, find_progress, resume_folder
from curator.training.reference.schedule import MicroBatch, Schedule
from curator.training.reference.staging import Staging
from curator.training.reference.trainer import ReferenceTrainer, make_trainer, measure
from curator.training.reference.writing import written

if TYPE_CHECKING:
    from curator.training.reference.spec import Say, TrainSpec

_ROUNDING_SAID = 0.002
"""Nats by which storing the weights in the base's type may raise the loss without a word."""


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


def fine_tune(
    base: Base,
    spec: "TrainSpec",
    documents: Sequence[Example],
    staging: Staging,
    finish: Callable[[Outcome], None],
    say: "Say",
) -> None:
    """Train a base, from the beginning or from the last resume point, and write what is to be published.

    A Ctrl-C or SIGTERM while it trains ends it after the step, at a resume point; behind the last step, when all is
    written.

    Args:
        base: a causal language model in float32.
        spec: how to train.
        documents: each of T >= 2 tokens.
        staging: where to write; the model goes to `staging.model`.
        finish: called when it lies there.
        say: takes progress lines.

    Raises:
        TrainingError: the rows are longer than the model's context or hold tokens that it has not, nothing is left to
            hold out, it diverged, or the base's own loss is no number.
        OutputError: the disk is full, or the resume point is damaged.
    """
    _check_fit(base.model, spec.sequence_length, documents)
    if not torch.accelerator.is_available():
        keep_freed_memory()  # 12% to 24% more tokens a second on one core
    adapter = spec.adapter
    model = base.model if adapter is None else add_adapter(base.model, adapter, spec.seed)
    train, held = _hold_out(spec, documents, say)
    batches = _make_batches(train, spec)
    held_batches = _make_batches(held, spec)
    schedule = Schedule(batches, spec.batch_tokens, distributed.processes(), spec.seed)
    clock = _make_clock(spec, schedule)
    trainer = make_trainer(model, spec, schedule, clock, staging.resume)

    def write_copy(folder: Path) -> None:
        save_model(plain_copy(model, base.saved_dtype), base.saved_dtype, spec, folder)

    report = Report(clock, schedule.tokens, say)
    course = Course(spec, clock, report, staging, lambda: measure(trainer, held_batches), write_copy, say)
    found = find_progress(staging.resume)
    loss_before = found.loss_before if found else measure(trainer, held_batches) if held else None
    _check_base(loss_before, spec)
    course.progress = Progress(loss_before=loss_before)
    _say_plan(spec, schedule, clock, model, sum(map(len, train)), loss_before, say)
    _say_long_rows(spec, batches, say)
    if found is not None:
        course.go_on(found)
    distributed.wait_for_all()  # whoever is first may write a new resume point
    trainer.add_callback(report)
    trainer.add_callback(course)
    with interrupts.postponed(SIGTERM) as interrupted:
        course.interrupted = interrupted
        if found is None:
            trainer.train()
        else:
            trainer.go_on_from(resume_folder(staging.resume, found.step))
        if course.left_early:
            raise KeyboardInterrupt
        best = course.restore_best(model)
        loss = _publish(trainer, course, base, held_batches or batches[:1], best)
        loss_after = loss if held else None
        _say_losses(loss_before, loss_after, say)
        finish(_make_outcome(schedule, course, best, loss_before, loss_after))


def _publish(
    trainer: ReferenceTrainer,
    course: Course,
    base: Base,
    batches: Sequence[MicroBatch],
    best: Evaluation | None,
) -> float:
    """Give the weights the form in which they are published, measure that, and write it."""
    model, spec, folder = trainer.model, course.spec, course.staging.model
    trained = best.loss if best else measure(trainer, batches)
    course.check_finite(trained, "after")
    if distributed.is_main():
        _write_adapter(model, spec, folder)
    plain = merged(model)
    loss = trained
    if is_adapted(model) or base.saved_dtype != torch.float32:
        round_weights(plain, base.saved_dtype)
        loss = measure(trainer, batches, plain)
        course.check_finite(loss, "after")
    if loss - trained > _ROUNDING_SAID:
        dtype = str(base.saved_dtype).removeprefix("torch.")
        course.say(f"stored in {dtype}, the base's type, the model loses {loss - trained:.4f} nats")
    if distributed.is_main():
        with written(folder):
            save_model(plain, base.saved_dtype, spec, folder)
    return loss


def _write_adapter(model: Any, spec: "TrainSpec", folder: Path) -> None:
    if is_adapted(model) and spec.adapter is not None and spec.adapter.keep_adapter:
        with written(folder):
            name = Path(spec.base).name if Path(spec.base).exists() else spec.base
            save_adapter(model, name, folder / "adapter")


def _make_batches(documents: Sequence[Example], spec: "TrainSpec") -> list[list[Example]]:
    return make_batches(cut_rows(documents, spec.sequence_length), spec.micro_batch_tokens, spec.seed)


def _make_outcome(
    schedule: Schedule, course: Course, best: Evaluation | None, loss_before: float | None, loss_after: float | None
) -> Outcome:
    clock, progress = course.clock, course.progress
    return Outcome(
        steps=clock.step,
        trained_tokens=course.report.tokens,
        seconds=clock.elapsed_s,
        loss_before=loss_before,
        loss_after=loss_after,
        published_step=best.step if best else clock.step,
        ended_by=_why_ended(course, schedule),
        evaluations=progress.evaluations,
        checkpoints=progress.kept,
        resumed_at=progress.resumed_at,
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


def _say_losses(before: float | None, after: float | None, say: "Say") -> None:
    if before is None or after is None:
        return
    say(f"held-out loss {before:.4f} -> {after:.4f} nats")
    if after > before:
        say(
            "the reference is worse than its base on what was held out: it learned the rest by heart, or learning_rate "
            "is too high; train for less, or lower it"
        )


def _check_base(loss: float | None, spec: "TrainSpec") -> None:
    if loss is not None and not math.isfinite(loss):
        raise TrainingError(
            f"base {spec.base!r} itself gives a held-out loss of {loss}; its weights are damaged, or too large for "
            f"dtype {spec.dtype!r}: fetch it again, set dtype: float32, or name another base"
        )


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


def _why_ended(course: Course, schedule: Schedule) -> str:
    clock = course.clock
    if course.patience_lost:
        return "patience"
    if clock.step < clock.total_steps:
        return "max_minutes"
    planned = math.ceil(course.spec.epochs * schedule.steps_per_epoch)
    return "max_steps" if clock.total_steps < planned else "epochs"


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


def _say_long_rows(spec: "TrainSpec", batches: Sequence[MicroBatch], say: "Say") -> None:
    longest = max(len(row) for batch in batches for row in batch)
    if longest > spec.micro_batch_tokens:
        say(
            f"rows of up to {longest:,} tokens are longer than micro_batch_tokens ({spec.micro_batch_tokens:,}), and "
            "each makes a micro-batch of its own; lower sequence_length to bound memory so"
        )
