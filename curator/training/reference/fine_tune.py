"""Fine-tuning within steps or minutes, from base to model directory, by one process or several that share every step.

The loss comes from hidden states wherever the model has a plain output head: a micro-batch's logits, which for a large
vocabulary outweigh the model, never exist at once.
Invariant: the loss that is reported is that of the very weights that are written.
This module imports torch and transformers; import it only to train.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

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
    from curator.training.reference.spec import Leaving, Say, TrainSpec

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


class _Run(NamedTuple):
    """A training that is set up."""

    base: Base
    schedule: Schedule
    trainer: ReferenceTrainer
    course: Course
    measured: Sequence[MicroBatch]
    """What is held out; where nothing is, some of the rest, to see whether it diverged."""


def fine_tune(
    base: Base,
    spec: "TrainSpec",
    documents: Sequence[Example],
    staging: Staging,
    finish: Callable[[Outcome], None],
    say: "Say",
    leaving: "Leaving",
) -> None:
    """Train a base, from the beginning or from the last resume point, and write what is to be published.

    Whoever wants it to end ends it after the step, at a resume point; behind the last step, when all is written.

    Args:
        base: a causal language model in float32.
        spec: how to train.
        documents: each of T >= 2 tokens.
        staging: where to write; the model goes to `staging.model`.
        finish: called when it lies there.
        say: takes progress lines.
        leaving: who wants it to end.

    Raises:
        KeyboardInterrupt: somebody wanted it to end.
        TrainingError: rows beyond the model's context or vocabulary, nothing to hold out, or a loss that is no number.
        OutputError: the disk is full, or the resume point is damaged.
    """
    _check_fit(base.model, spec.sequence_length, documents)
    if not torch.accelerator.is_available():
        keep_freed_memory()  # 12% to 24% more tokens a second on one core
    train, held = _hold_out(spec, documents, say)
    run = _set_up(base, spec, train, held, staging, say)
    trainer, course = run.trainer, run.course
    found = find_progress(staging.resume)
    before = found.loss_before if found else measure(trainer, run.measured) if held else None
    _check_base(before, spec)
    _say_plan(run, sum(map(len, train)), before)
    course.progress = Progress(loss_before=before)
    if found is not None:
        course.go_on(found)
    distributed.wait_for_all()  # whoever is first may write a new resume point
    with leaving() as interrupted:
        course.interrupted = interrupted
        if found is None:
            trainer.train()
        else:
            trainer.go_on_from(resume_folder(staging.resume, found.step))
        if course.left_early:
            raise KeyboardInterrupt
        finish(_publish(run, before))


def _set_up(
    base: Base,
    spec: "TrainSpec",
    train: Sequence[Example],
    held: Sequence[Example],
    staging: Staging,
    say: "Say",
) -> _Run:
    model = base.model if spec.adapter is None else add_adapter(base.model, spec.adapter, spec.seed)
    batches, held_batches = _make_batches(train, spec), _make_batches(held, spec)
    _say_long_rows(spec, batches, say)
    measured = held_batches or batches[:1]
    schedule = Schedule(batches, spec.batch_tokens, distributed.processes(), spec.seed)
    clock = _make_clock(spec, schedule)
    trainer = make_trainer(model, spec, schedule, clock, staging.resume)

    def write_copy(folder: Path) -> None:
        save_model(plain_copy(model, base.saved_dtype), base.saved_dtype, spec, folder)

    report = Report(clock, schedule.tokens, say)
    course = Course(spec, clock, report, staging, lambda: measure(trainer, measured), write_copy, say)
    trainer.add_callback(report)
    trainer.add_callback(course)
    return _Run(base, schedule, trainer, course, measured)


def _publish(run: _Run, before: float | None) -> Outcome:
    """Give the weights the form in which they are published, measure that, and write it."""
    model, course, dtype = run.trainer.model, run.course, run.base.saved_dtype
    best = course.restore_best(model)
    trained = best.loss if best else measure(run.trainer, run.measured)
    course.check_finite(trained, "after")
    if distributed.is_main():
        _write_adapter(model, course.spec, course.staging.model)
    plain, after = merged(model), trained
    if is_adapted(model) or dtype != torch.float32:
        round_weights(plain, dtype)
        after = measure(run.trainer, run.measured, plain)
        course.check_finite(after, "after")
    _say_losses(run, before, trained, after)
    if distributed.is_main():
        with written(course.staging.model):
            save_model(plain, dtype, course.spec, course.staging.model)
    return _make_outcome(run, best, before, None if before is None else after)


def _write_adapter(model: Any, spec: "TrainSpec", folder: Path) -> None:
    if is_adapted(model) and spec.adapter is not None and spec.adapter.keep_adapter:
        with written(folder):
            name = Path(spec.base).name if Path(spec.base).exists() else spec.base
            save_adapter(model, name, folder / "adapter")


def _make_batches(documents: Sequence[Example], spec: "TrainSpec") -> list[list[Example]]:
    return make_batches(cut_rows(documents, spec.sequence_length), spec.micro_batch_tokens, spec.seed)


def _make_outcome(run: _Run, best: Evaluation | None, before: float | None, after: float | None) -> Outcome:
    clock, progress = run.course.clock, run.course.progress
    return Outcome(
        steps=clock.step,
        trained_tokens=run.course.report.tokens,
        seconds=clock.elapsed_s,
        loss_before=before,
        loss_after=after,
        published_step=best.step if best else clock.step,
        ended_by=_why_ended(run),
        evaluations=progress.evaluations,
        checkpoints=progress.kept,
        resumed_at=progress.resumed_at,
    )


def _hold_out(
    spec: "TrainSpec", documents: Sequence[Example], say: "Say"
) -> tuple[Sequence[Example], Sequence[Example]]:
    train, held = hold_out(documents, spec.eval_fraction, spec.seed)
    if spec.eval_fraction > 0 and not held:
        raise TrainingError(
            "one document, however often it is there, cannot be trained on and held out; set eval_fraction: 0 or "
            "add documents"
        )
    if held:
        share = sum(map(len, held)) / sum(map(len, documents))
        say(f"held out: {len(held):,} documents, {share:.1%} of the tokens (eval_fraction {spec.eval_fraction:.1%})")
    return train, held


def _say_losses(run: _Run, before: float | None, trained: float, after: float) -> None:
    """Say the losses of the base, of the trained weights and of what is published, as far as they are news."""
    say = run.course.say
    if after - trained > _ROUNDING_SAID:
        dtype = str(run.base.saved_dtype).removeprefix("torch.")
        say(f"stored in {dtype}, the base's type, the model loses {after - trained:.4f} nats")
    if before is None:
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


def _why_ended(run: _Run) -> str:
    clock, spec = run.course.clock, run.course.spec
    if run.course.patience_lost:
        return "patience"
    if clock.step < clock.total_steps:
        return "max_minutes"
    planned = math.ceil(spec.epochs * run.schedule.steps_per_epoch)
    return "max_steps" if clock.total_steps < planned else "epochs"


def _say_plan(run: _Run, tokens: int, before: float | None) -> None:
    clock, spec, say, model = run.course.clock, run.course.spec, run.course.say, run.trainer.model
    limit = f" or {clock.limit_s:,.0f} s" if clock.limit_s < math.inf else ""
    held = "" if before is None else f"; held-out loss of the base {before:.4f} nats"
    dtype = str(choose_dtype(spec.dtype)).removeprefix("torch.")
    say(f"training on {tokens:,} tokens in {dtype}: at most {clock.total_steps:,} steps{limit}{held}")
    if is_adapted(model):
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        trained, everything = sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes)
        say(f"adapters: {trained:,} of {everything:,} parameters are trained")
    workers, shared = distributed.processes(), run.schedule.per_step
    if workers > shared:
        say(f"{workers} processes share {shared} micro-batches a step; lower micro_batch_tokens to use all")


def _say_long_rows(spec: "TrainSpec", batches: Sequence[MicroBatch], say: "Say") -> None:
    longest = max(len(row) for batch in batches for row in batch)
    if longest > spec.micro_batch_tokens:
        say(
            f"rows of up to {longest:,} tokens are longer than micro_batch_tokens ({spec.micro_batch_tokens:,}), and "
            "each makes a micro-batch of its own; lower sequence_length to bound memory so"
        )
