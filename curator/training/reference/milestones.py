"""What a training run has reached: its measurements, the copies it kept, and the places from which it can go on.

A resume point is a folder `checkpoint-N` of the HF Trainer with our `progress.json` in it. That file is written last
and at once, so a folder without it is a save that was cut off, and is never resumed from.
"""

import os
import shutil
from pathlib import Path

from pydantic import Field, ValidationError

from curator.data import StrictModel

PROGRESS = "progress.json"
_PREFIX = "checkpoint-"


class Evaluation(StrictModel):
    """A measurement of the held-out loss along the way."""

    step: int
    loss: float = Field(description="mean loss of the held-out tokens, in nats")


class KeptCheckpoint(StrictModel):
    """A copy of the model that was kept along the way: a plain model directory, as the reference itself."""

    step: int
    folder: str = Field(description="relative to the reference")
    trained_tokens: int = Field(description="tokens seen up to then, repeated ones counted again")


class Progress(StrictModel):
    """Where a run stands, besides weights, optimiser and random numbers."""

    step: int = 0
    elapsed_s: float = 0.0
    trained_tokens: int = 0
    evaluations: tuple[Evaluation, ...] = ()
    kept: tuple[KeptCheckpoint, ...] = ()
    shares_passed: int = Field(default=0, description="of keep_checkpoints, in rising order")
    resumed_at: tuple[int, ...] = Field(default=(), description="steps at which an interrupted run went on")
    loss_before: float | None = None


def resume_folder(folder: Path, step: int) -> Path:
    """Where the Trainer saves what belongs to a step."""
    return folder / f"{_PREFIX}{step}"


def write_progress(folder: Path, progress: Progress) -> None:
    """Complete the resume point of `progress.step`, and remove all earlier ones."""
    place = resume_folder(folder, progress.step)
    draft = place / (PROGRESS + ".draft")
    draft.write_text(progress.model_dump_json(), encoding="utf-8")
    os.replace(draft, place / PROGRESS)
    for other in folder.glob(_PREFIX + "*"):
        if other != place:
            shutil.rmtree(other)


def find_progress(folder: Path) -> Progress | None:
    """The last complete resume point; None if there is none."""
    found = []
    for file in folder.glob(f"{_PREFIX}*/{PROGRESS}"):
        try:
            found.append(Progress.model_validate_json(file.read_bytes()))
        except (OSError, ValidationError):  # of another version: as good as none
            continue
    return max(found, key=lambda progress: progress.step, default=None)
