"""The folders beside an output: never another's, never removed unless a training made them, published at once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curator.errors import OutputError
from curator.training.reference import staging as staging_module
from curator.training.reference import train as training
from curator.training.reference.record import TrainResult
from curator.training.reference.staging import (
    Staging,
    open_ray_folder,
    open_staging,
    ray_folder_of,
    staging_of,
)

Make = Callable[..., dict[str, Any]]
Train = Callable[..., TrainResult]


def put_link(folder: Path, thesis: Path) -> None:
    folder.symlink_to(thesis.parent)


def put_link_inside(folder: Path, thesis: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / ("best" if folder.name.endswith("-training") else "training")).symlink_to(thesis.parent)


def put_folder(folder: Path, thesis: Path) -> None:
    folder.mkdir()
    (folder / "notes").write_text("more work")


def put_folder_of_like_names(folder: Path, thesis: Path) -> None:
    for name in ("model", "checkpoints", "training"):
        (folder / name).mkdir(parents=True)


def put_file(folder: Path, thesis: Path) -> None:
    folder.write_text("work")


@pytest.mark.parametrize("take", ["staging", "ray"])
@pytest.mark.parametrize("put", [put_link, put_link_inside, put_folder, put_folder_of_like_names, put_file])
def test_what_no_training_made_is_refused_and_left_alone(
    tmp_path: Path, put: Callable[[Path, Path], None], take: str
) -> None:
    thesis, output = tmp_path / "years" / "thesis.tex", tmp_path / "out"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    put(staging_of(output).root if take == "staging" else ray_folder_of(output), thesis)
    before = {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    opened = open_ray_folder(output) if take == "ray" else open_staging(output, {}, lambda line: None)
    with pytest.raises(OutputError, match="move it away, or name another output"), opened:
        pass
    assert {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_training_refuses_a_staging_folder_that_is_a_link(train: Train, train_spec: Make, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.tex").write_text("years of work")
    staging_of(tmp_path / "reference").root.symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is a symbolic link"):
        train(train_spec(max_steps=1))
    assert [path.name for path in elsewhere.iterdir()] == ["thesis.tex"]


def test_what_a_killed_training_left_is_taken_and_removed(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for folder in (staging_of(output).root, ray_folder_of(output)):
        folder.mkdir()
        (folder / "run.json").write_text("{}")
    (ray_folder_of(output) / "failed").touch()
    staging_of(output).model.mkdir()
    with open_ray_folder(output) as folder:
        assert not (folder / "failed").exists(), "a new training is not the one that failed"
        with pytest.raises(OutputError, match="another process is training"), open_ray_folder(output):
            pass
        assert folder.is_dir(), "that of a training is not another's to remove"
    with open_staging(output, {"spec": 1}, lambda line: None) as staging:
        assert sorted(path.name for path in staging.root.iterdir()) == ["lock", "run.json"]
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """As by SIGKILL, between two renames."""


@pytest.mark.slow
def test_a_publication_that_was_cut_off_is_made_good(
    train: Train, train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 6, "eval_every": 1, "keep_every": 2}
    whole = train(train_spec(output=str(tmp_path / "whole"), **settings))
    spec = train_spec(output=str(tmp_path / "cut"), **settings)

    def cut_off(self: Staging, output: Path) -> None:
        self.checkpoints.rename(self.model / "checkpoints")
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Staging, "publish", cut_off)
        train(spec)
    assert train(spec).checkpoints == whole.checkpoints
    for folder in ("", *(f"{kept.folder}/" for kept in whole.checkpoints)):
        one, other = (tmp_path / name / folder / "model.safetensors" for name in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), folder
    assert not list(tmp_path.glob(".cut*"))


def test_what_is_left_beside_a_published_reference_is_removed_by_the_same_command(
    train: Train, train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(max_steps=3, eval_every=1, run={"checkpoint_minutes": 1e-6})

    def cut_off(folder: Path) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(staging_module, "remove_folder", cut_off)
        train(spec)
    root = staging_of(tmp_path / "reference").root
    assert (root / "resume" / "checkpoint-2").is_dir()
    identity = (root / "run.json").read_text()
    (root / "run.json").write_text("{}")
    train(spec)
    assert root.exists(), "that is of another training"
    (root / "run.json").write_text(identity)
    assert train(spec).steps == 3 and not root.exists()


def test_a_reference_that_another_process_has_finished_meanwhile_is_taken(
    train: Train, train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, output, elsewhere = train_spec(max_steps=1), tmp_path / "reference", tmp_path / "elsewhere"
    finished = train(spec)
    output.rename(elsewhere)

    def open_late(*given: Any) -> Any:
        elsewhere.rename(output)
        return open_staging(*given)

    monkeypatch.setattr(training, "open_staging", open_late)
    lines: list[str] = []
    assert train(spec, lines.append) == finished
    assert not any(line.startswith("training on") for line in lines)


def test_an_output_that_was_filled_meanwhile_is_said_and_publishing_can_be_repeated(tmp_path: Path) -> None:
    output = tmp_path / "out"
    staging = staging_of(output)
    for folder in (staging.model, staging.checkpoints / "step-000002", output / "thesis"):
        folder.mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot be put at .*out' \(Directory not empty\); make that an absent"):
        staging.publish(output)
    os.rmdir(output / "thesis")
    staging.publish(output)
    assert (output / "checkpoints" / "step-000002").is_dir()
