"""The folder of an export: there complete or not at all, and never somebody else's."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from curator.errors import OutputError
from curator.export import export_dataset
from curator.exports.axolotl import AxolotlForm
from curator.exports.form import Facts, Item


class Interrupted(AxolotlForm):
    """Fails, or is stopped, after it has written something."""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        (folder / "half").write_text("half")
        next(iter(items))
        raise KeyboardInterrupt


def test_an_interrupted_export_leaves_nothing_behind(hard: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_dataset(hard, Interrupted(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_damaged_shard_leaves_nothing_behind(hard: Path, tmp_path: Path) -> None:
    shutil.copy(hard / "curated" / "00000.parquet", hard / "curated" / "00001.parquet")
    with pytest.raises(OutputError, match=r"00001\.parquet is damaged.*: 5 rows, the manifest says 6"):
        export_dataset(hard, "tinker", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_an_output_that_is_taken_is_left_alone(hard: Path, tmp_path: Path) -> None:
    taken = tmp_path / "out"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    with pytest.raises(OutputError, match="not an empty folder"):
        export_dataset(hard, "tinker", taken)
    assert [path.name for path in taken.iterdir()] == ["mine"]
    (taken / "mine").unlink()
    export_dataset(hard, "tinker", taken)
    assert sorted(path.name for path in taken.iterdir()) == ["README.md", "export.json", "train.jsonl"]


class Late(AxolotlForm):
    """Takes so long that somebody else takes the name of the output."""

    def write(self, items: Iterable[Item], folder: Path, facts: Facts) -> None:
        super().write(items, folder, facts)
        (folder.parent / "out").mkdir()
        (folder.parent / "out" / "theirs").write_text("theirs")


def test_an_output_that_is_taken_meanwhile_is_left_alone(hard: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="was taken while it was being written"):
        export_dataset(hard, Late(), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "out"]


@pytest.mark.parametrize("inside", ["", "curated/out", "out"])
def test_an_output_in_the_dataset_is_refused(hard: Path, inside: str) -> None:
    before = sorted(hard.rglob("*"))
    with pytest.raises(OutputError, match=r"lies in the dataset .*name a folder beside it"):
        export_dataset(hard, "tinker", hard / inside)
    assert sorted(hard.rglob("*")) == before
