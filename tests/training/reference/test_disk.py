"""A disk that is full, and resume points that it has damaged: one clear error each, and what was reached is kept."""

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from curator.errors import OutputError
from curator.training import TrainSpec, train_reference
from curator.training.reference.milestones import find_progress
from curator.training.reference.record import TrainResult
from curator.training.reference.staging import Staging, staging_of

Make = Callable[..., dict[str, Any]]
OFTEN = {"checkpoint_minutes": 1e-6}


def train(spec: dict[str, Any], say: Callable[[str], None] = lambda line: None) -> TrainResult:
    return train_reference(TrainSpec.model_validate(spec), say)


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """As on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, "model"),
        ({"run": OFTEN}, "resume/checkpoint-1"),
        ({"keep_every": 1}, r"checkpoints/\.step-000001"),
        ({"eval_every": 1}, r"best/1\.safetensors"),
    ],
    ids=["model", "resume point", "copy", "best step"],
)
def test_a_full_disk_is_an_error_that_names_the_place_and_the_remedy(
    train_spec: Make, change: dict[str, Any], place: str
) -> None:
    spec = train_spec(max_steps=2, **change)
    with (
        files_of_at_most(40_000),
        pytest.raises(OutputError, match=rf"training/{place}' cannot be written \(.*File too large.*make room there"),
    ):
        train(spec)
    assert train(spec).steps == 2


def test_a_disk_that_fills_along_the_way_costs_nothing_that_was_reached(train_spec: Make, tmp_path: Path) -> None:
    spec = train_spec(max_steps=6, eval_every=1, keep_every=2, run=OFTEN)
    staging = staging_of(tmp_path / "reference")
    weights = (Path(spec["base"]) / "model.safetensors").stat().st_size
    with files_of_at_most(1 << 30):

        def say(line: str) -> None:
            if line.startswith("step 4: held-out"):  # weights still go there, the optimiser does not
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (3 * weights // 2, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
                )

        with pytest.raises(OutputError, match=r"resume/checkpoint-4' cannot be written \(.*make room there"):
            train(spec, say)
    progress = find_progress(staging.resume)
    assert progress is not None and progress.step == 3
    assert [copy.name for copy in staging.copies] == ["step-000002", "step-000004"]
    lines: list[str] = []
    result = train(spec, lines.append)
    assert result.resumed_at == (3,) and [kept.step for kept in result.checkpoints] == [2, 4, 6]
    assert "1 kept copies of later steps are made again" in lines


def test_an_earlier_resume_point_goes_when_the_new_one_is_on_the_disk(
    train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many a disk says only when it is flushed that it has not kept what was written."""
    flush = os.fsync

    def fail_at_step_3(descriptor: int) -> None:
        if "checkpoint-3" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    spec = train_spec(max_steps=4, run=OFTEN)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail_at_step_3)
        with pytest.raises(OutputError, match=r"checkpoint-3' cannot be written \(Input/output error\)"):
            train(spec)
    assert train(spec).resumed_at == (2,)


def interrupted(spec: dict[str, Any]) -> Staging:
    """A training that ended with a resume point at step 2."""

    def say(line: str) -> None:
        if line.startswith("step 3: held-out"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, say)
    return staging_of(Path(spec["output"]))


def cut(file: str) -> Callable[[Path], None]:
    return lambda place: (place / file).write_bytes((place / file).read_bytes()[:-100])


def another_step(place: Path) -> None:
    file = place / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"step": 1}))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut("model.safetensors"), "SafetensorError: "),
        (cut("optimizer.pt"), "RuntimeError: "),
        (cut("scheduler.pt"), "RuntimeError: "),
        (cut("rng_state.pth"), ""),
        (cut("trainer_state.json"), "JSONDecodeError: "),
        (lambda place: (place / "optimizer.pt").unlink(), "FileNotFoundError: "),
        (lambda place: (place / "rng_state.pth").unlink(), "FileNotFoundError: "),
        (cut("progress.json"), "ValidationError: "),
        (lambda place: cut("2.safetensors")(place.parents[1] / "best"), "SafetensorError: "),
        (another_step, r"ValueError: progress\.json is of step 1"),
    ],
    ids=[
        "weights",
        "optimizer",
        "schedule",
        "random numbers",
        "state",
        "no optimizer",
        "no random numbers",
        "progress",
        "best step",
        "another step",
    ],
)
def test_a_damaged_resume_point_is_named_and_left(train_spec: Make, damage: Callable[[Path], None], why: str) -> None:
    spec = train_spec(max_steps=4, eval_every=1, run=OFTEN)
    place = interrupted(spec).resume / "checkpoint-2"
    damage(place)
    lines: list[str] = []
    for _ in range(2):
        with pytest.raises(OutputError, match=rf"resume point 2 in '.*checkpoint-2' is damaged \({why}.*remove that"):
            train(spec, lines.append)
    assert place.is_dir() and not any(line.startswith("interrupted") for line in lines)
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    assert train(spec).steps == 4


@pytest.mark.parametrize("content", ["", "[1]", '{"spec"'])
def test_nobody_goes_on_without_knowing_what_was_trained(train_spec: Make, content: str) -> None:
    spec = train_spec(max_steps=4, eval_every=1, run=OFTEN)
    staging = interrupted(spec)
    (staging.root / "run.json").write_text(content)
    with pytest.raises(OutputError, match=r"run\.json' is damaged, so nobody knows what .*; remove '.*-training', or"):
        train(spec)
    assert find_progress(staging.resume) is not None


def test_copies_of_a_run_without_a_resume_point_are_kept_until_they_are_made_again(
    train_spec: Make, tmp_path: Path
) -> None:
    spec = train_spec(max_steps=4, eval_every=1, keep_every=1)
    staging = interrupted(spec)
    assert len(staging.copies) == 2
    with pytest.raises(OutputError, match=r"another spec, base or data .*seed: 0 became 1"):
        train(spec | {"seed": 1})
    lines: list[str] = []
    assert len(train(spec, lines.append).checkpoints) == 4
    assert "2 kept copies, and no resume point: the training begins anew, and makes them again" in lines
