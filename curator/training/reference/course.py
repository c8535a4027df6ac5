"""What happens along a training run: measuring held-out loss, stopping early, keeping copies, saving to go on from.

Invariant: every decision follows from the step, the main process's clock and the summed loss, so that all processes of
a run take it alike; and whatever is decided is in the next resume point, so that a resumed run decides the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from curator.errors import TrainingError
from curator.training.reference import distributed
from curator.training.reference.clock import Clock, Report
from curator.training.reference.milestones import (
    Evaluation,
    KeptCheckpoint,
    Progress,
    resume_folder,
    sound,
    write_progress,
)
from curator.training.reference.staging import Staging
from curator.training.reference.writing import flush, remove, written

if TYPE_CHECKING:
    from curator.training.reference.spec import Say, TrainSpec


@dataclass
class Course(TrainerCallback):  # type: ignore[misc]
    """Acts after each step; comes behind `Report`, whose clock it reads.

    Attributes:
        spec: what is wanted.
        clock: how much of the run is over.
        report: counts tokens.
        staging: where things are kept.
        measure: the held-out loss of the model as it is.
        write_copy: writes the model as it is into a folder that engines load.
        say: takes lines.
        interrupted: whether somebody wants this process to leave.
        progress: what was reached so far.
        patience_lost: whether early stopping ended the run.
        left_early: whether the run ended since somebody wanted it to, at a resume point.
    """

    spec: "TrainSpec"
    clock: Clock
    report: Report
    staging: Staging
    measure: Callable[[], float]
    write_copy: Callable[[Path], None]
    say: "Say"
    interrupted: Callable[[], bool] = bool
    progress: Progress = field(default_factory=Progress)
    patience_lost: bool = False
    left_early: bool = False
    saved_at_s: float = 0.0

    def go_on(self, progress: Progress) -> None:
        """Take up an interrupted run; copies that it kept behind its last resume point are made again."""
        self.progress = progress.model_copy(update={"resumed_at": (*progress.resumed_at, progress.step)})
        self.clock.step, self.clock.elapsed_s = progress.step, progress.elapsed_s
        self.report.tokens = progress.trained_tokens
        if self.best is not None:
            with (
                sound(resume_folder(self.staging.resume, progress.step)),
                safe_open(self._best_file(self.best.step), "pt"),
            ):
                pass  # its header was read, and fits its size
        if distributed.is_main():
            self._remove_later_copies()
        self.say(f"going on from step {progress.step:,}")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The time to the next resume point counts from here."""
        self.saved_at_s = self.clock.elapsed_s

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any = None, **kwargs: Any) -> None:
        """Measure, keep a copy, stop and ask for a resume point, as the spec wants."""
        step, every = self.clock.step, self.spec.eval_every
        if every and (step % every == 0 or control.should_training_stop):
            self._evaluate(step, model)
            self.patience_lost = self._runs_out_of_patience()
            control.should_training_stop |= self.patience_lost
        self._keep_if_due(step)
        due = self.clock.elapsed_s - self.saved_at_s >= 60 * self.spec.run.checkpoint_minutes
        wanted = sum(distributed.add_up(float(self.interrupted()))) > 0  # of any process: all leave after one step
        self.left_early = wanted and not control.should_training_stop
        control.should_save = (due or wanted) and not control.should_training_stop
        control.should_training_stop |= self.left_early

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """End with the first step whose loss is no number."""
        if logs and "loss" in logs:
            self.check_finite(logs["loss"], "in")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete a resume point, when all have written their part of it."""
        distributed.wait_for_all()
        self.saved_at_s = self.clock.elapsed_s
        self.progress = self._now()
        if distributed.is_main():
            with written(resume_folder(self.staging.resume, self.progress.step)):
                if self.best is not None:
                    flush(self._best_file(self.best.step))
                write_progress(self.staging.resume, self.progress)
            for file in self.staging.best.glob("*.safetensors"):
                if self.best is None or file != self._best_file(self.best.step):
                    file.unlink()

    def check_finite(self, loss: float, when: Literal["in", "after"]) -> None:
        """Refuse weights that diverged, and remove what was reached: nothing could go on from it."""
        if math.isfinite(loss):
            return
        if distributed.is_main():
            self.staging.forget()
        step = self.clock.step
        if when == "in" and step == 1:
            raise TrainingError(
                f"base {self.spec.base!r} itself gives a loss of {loss} in the first step; its weights are damaged, or "
                f"too large for dtype {self.spec.dtype!r}: fetch it again, set dtype: float32, or name another base"
            )
        raise TrainingError(f"the loss is {loss} {when} step {step:,}: it diverged; lower learning_rate")

    @property
    def best(self) -> Evaluation | None:
        """The measurement with the lowest loss, the first of equals."""
        return min(self.progress.evaluations, key=lambda found: found.loss, default=None)

    def restore_best(self, model: Any) -> Evaluation | None:
        """Give the model the weights of the best step; None, and nothing done, where nothing was measured."""
        best = self.best
        if best is not None and best.step != self.clock.step:
            stored = load_file(self._best_file(best.step))
            for name, parameter in _trained(model).items():
                parameter.data.copy_(stored[name])
        return best

    def _now(self) -> Progress:
        reached = {
            "step": self.clock.step,
            "elapsed_s": self.clock.elapsed_s,
            "trained_tokens": self.report.tokens,
        }
        return self.progress.model_copy(update=reached)

    def _evaluate(self, step: int, model: Any) -> None:
        loss = self.measure()
        self.check_finite(loss, "after")
        self.say(f"step {step:,}: held-out loss {loss:.4f} nats")
        self.progress = self.progress.model_copy(
            update={"evaluations": (*self.progress.evaluations, Evaluation(step=step, loss=loss))}
        )
        if self.best is not None and self.best.step == step and distributed.is_main():
            weights = {name: parameter.detach().cpu().contiguous() for name, parameter in _trained(model).items()}
            with written(self._best_file(step)):
                self.staging.best.mkdir(exist_ok=True)
                save_file(weights, self._best_file(step))

    def _runs_out_of_patience(self) -> bool:
        if self.spec.patience is None or self.best is None:
            return False
        since = sum(found.step > self.best.step for found in self.progress.evaluations)
        return since >= self.spec.patience

    def _best_file(self, step: int) -> Path:
        """Named by its step: the best of a resume point stays until another resume point names a better one."""
        return self.staging.best / f"{step}.safetensors"

    def _remove_later_copies(self) -> None:
        known = {Path(kept.folder).name for kept in self.progress.kept}
        later = [folder for folder in self.staging.copies if folder.name not in known]
        if later:
            self.say(f"{len(later)} kept copies of later steps are made again")
        for folder in (*later, *self.staging.checkpoints.glob(".*")):  # a copy in the making has a dot before its name
            remove(folder)

    def _keep_if_due(self, step: int) -> None:
        passed = sum(share <= self.clock.progress + 1e-9 for share in self.spec.keep_checkpoints)
        every = self.spec.keep_every
        if passed == self.progress.shares_passed and not (every and step % every == 0):
            return
        name = f"step-{step:06d}"
        if distributed.is_main():
            draft, place = self.staging.checkpoints / f".{name}", self.staging.checkpoints / name
            for folder in (draft, place):
                remove(folder)
            with written(draft):
                draft.mkdir(parents=True)
                self.write_copy(draft)
                flush(draft)
                draft.rename(place)
        kept = KeptCheckpoint(step=step, folder=f"checkpoints/{name}", trained_tokens=self.report.tokens)
        self.progress = self.progress.model_copy(update={"kept": (*self.progress.kept, kept), "shares_passed": passed})


def _trained(model: Any) -> dict[str, Any]:
    """Parameters that training moves; a weight that two layers share is there once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
