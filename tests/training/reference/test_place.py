"""A place where a finished reference could not be put is refused before anything is trained; a finished one is kept."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator.errors import OutputError
from curator.training import TrainSpec, train_reference
from curator.training.reference.place import find_free_output
from curator.training.reference.staging import Staging, open_ray_folder, staging_of

Make = Callable[..., dict[str, Any]]


def put_file(place: Path) -> None:
    place.write_text("work")


def put_link_to_an_empty_folder(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to(place.parent / "elsewhere")


def put_link_to_nothing(place: Path) -> None:
    place.symlink_to(place.parent / "nowhere")


@pytest.mark.parametrize(
    ("put", "problem"),
    [
        (put_file, "is a file"),
        (put_link_to_an_empty_folder, "is a symbolic link"),
        (put_link_to_nothing, "is a symbolic link"),
    ],
)
def test_what_a_folder_cannot_be_renamed_to_is_refused_before_training(
    train_spec: Make, tmp_path: Path, put: Callable[[Path], None], problem: str
) -> None:
    put(tmp_path / "reference")
    before = sorted(tmp_path.rglob("*"))
    lines: list[str] = []
    with pytest.raises(OutputError, match=rf"output '.*reference' {problem}, .*; name another output"):
        train_reference(TrainSpec.model_validate(train_spec(max_steps=1)), lines.append)
    assert sorted(tmp_path.rglob("*")) == before and lines == []


def test_a_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").mkdir()
    assert find_free_output(str(tmp_path / "volume")) == tmp_path / "volume", "an empty folder is free"
    monkeypatch.setattr(os.path, "ismount", lambda place: str(place) == str(tmp_path / "volume"))
    with pytest.raises(OutputError, match=r"volume' is a mount point, .*such as a folder in it"):
        find_free_output(str(tmp_path / "volume"))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0,
    reason="no user namespaces here",
)
def test_a_real_mount_point_is_refused(train_spec: Make, tmp_path: Path) -> None:
    volume, spec = tmp_path / "volume", tmp_path / "spec.yaml"
    volume.mkdir()
    spec.write_text(yaml.safe_dump(train_spec(output=str(volume), max_steps=1)))
    command = f"mount -t tmpfs none {volume} && {Path(sys.executable).with_name('curator')} train-reference {spec}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is a mount point" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize("name", ["x" * 250, "x" * 300], ids=["its staging folder", "the output itself"])
def test_a_name_that_is_too_long_is_an_error_that_names_it(train_spec: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=rf"{name}.*\(File name too long\).*name an"):
        train_reference(TrainSpec.model_validate(train_spec(output=str(tmp_path / name))), lambda line: None)


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(train_spec: Make) -> None:
    with pytest.raises(OutputError, match=r"'/proc/nothing/\.x-training' cannot be written \(No such file"):
        train_reference(TrainSpec.model_validate(train_spec(output="/proc/nothing/x")), lambda line: None)


def test_so_is_one_for_ray() -> None:
    with pytest.raises(OutputError, match=r"'/proc/nothing/\.x-ray' cannot be written \(No such file"):
        open_ray_folder(Path("/proc/nothing/x")).__enter__()


def test_a_finished_reference_that_cannot_be_put_in_its_place_is_kept_and_put_there_later(
    train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TrainSpec.model_validate(train_spec(max_steps=4, keep_every=2))
    output, rename = tmp_path / "reference", Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if Path(target) == output:
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    for _ in range(2):
        with pytest.raises(OutputError, match=r"cannot be put at .* \(Device or resource busy\).*trains nothing anew"):
            train_reference(spec, lambda line: None)
    assert not output.exists() and staging_of(output).is_finished
    weights = (staging_of(output).model / "model.safetensors").read_bytes()
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputError, match=r"another spec, base or data .*seed: 0 became 1"):
        train_reference(spec.model_copy(update={"seed": 1}), lambda line: None)
    lines: list[str] = []
    result = train_reference(spec, lines.append)
    assert not any(line.startswith("training on") for line in lines)
    assert (output / "model.safetensors").read_bytes() == weights and result.steps == 4
    assert [kept.step for kept in result.checkpoints] == [2, 4] and (output / "checkpoints" / "step-000002").is_dir()
    assert list(tmp_path.glob(".reference*")) == []


def test_a_training_that_ends_as_it_is_interrupted_keeps_what_is_finished(
    train_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Staging, output: Path) -> None:
        raise KeyboardInterrupt

    lines: list[str] = []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Staging, "publish", interrupt)
        train_reference(TrainSpec.model_validate(train_spec(max_steps=1)), lines.append)
    assert lines[-1] == "interrupted; the reference is finished, and the same command puts it in its place"
    assert train_reference(TrainSpec.model_validate(train_spec(max_steps=1)), lines.append).steps == 1
