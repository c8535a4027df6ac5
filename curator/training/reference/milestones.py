"""What a training run has reached: its measurements, the copies it kept, and the places from which it can go on.

A resume point is a folder `checkpoint-N` of the HF Trainer with our `progress.json` in it. That file is written last
and at once, with the rest on the disk, so a folder without it is a save that was cut off, and is never resumed from;
one whose file says anything but how step N stood is damaged, and nothing is done about it but to say so.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from curator.data import StrictModel
from curator.errors import CuratorError, OutputError
from curator.training.reference.writing import flush, remove

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
    """Complete the resume point of `progress.step`, and remove all earlier ones when it is on the disk."""
    place = resume_folder(folder, progress.step)
    draft = place / (PROGRESS + ".draft")
    draft.write_text(progress.model_dump_json(), encoding="utf-8")
    flush(place)
    os.replace(draft, place / PROGRESS)
    flush(folder)
    for other in folder.glob(_PREFIX + "*"):
        if other != place:
            remove(other)


def has_resume_point(folder: Path) -> bool:
    """Whether there is one, sound or not."""
    return any(folder.glob(f"{_PREFIX}*/{PROGRESS}"))


def find_progress(folder: Path) -> Progress | None:
    """The last complete resume point; None if there is none. Raises OutputError for one that is damaged."""
    found = []
    for file in folder.glob(f"{_PREFIX}*/{PROGRESS}"):
        with sound(file.parent):
            progress = Progress.model_validate_json(file.read_bytes())
            if file.parent.name != f"{_PREFIX}{progress.step}":
                raise ValueError(f"{PROGRESS} is of step {progress.step}")
        found.append(progress)
    return max(found, key=lambda progress: progress.step, default=None)


@contextmanager
def sound(place: Path) -> Iterator[None]:
    """Read a resume point inside this; what the libraries raise over damaged files has every type.

    Raises:
        OutputError: it is damaged, with why and what helps.
    """
    try:
        yield
    except (CuratorError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # the device's
            raise
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise OutputError(
            f"resume point {place.name.removeprefix(_PREFIX)} in {str(place)!r} is damaged ({why}); remove that folder "
            "and run the same command again, which goes on from an earlier one or begins anew"
        ) from error
