"""The rows that the examples' loaders give, and an error where a rank has none."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

import curator
from curator.errors import TrainingError

EXAMPLES = Path(__file__).parents[2] / "examples" / "trainers"


def test_accelerate_does_not_spin_on_a_rank_without_a_row(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, load_script: Callable[[Path], ModuleType]
) -> None:
    load = curator.load
    monkeypatch.setattr(curator, "load", lambda *arguments: load(*arguments, rows="scored"))  # no row has scores
    paths = [str(canary / "data"), str(canary / "model"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["train_accelerate.py", *paths, "--cpu", "--steps", "1"])
    with pytest.raises(TrainingError, match="this rank has 6 rows, of which 6 were skipped"):
        load_script(EXAMPLES / "train_accelerate.py").main()


def test_torchtitan_refuses_more_ranks_than_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load_script: Callable[[Path], ModuleType]
) -> None:
    stand_in: dict[str, dict[str, Any]] = {
        "components.dataloader": {"ParallelAwareDataloader": type("Loader", (DataLoader,), {"Config": object})},
        "components.validate": {"Validator": None},
        "models.llama3.config_registry": {"llama3_debugmodel": None},
        "trainer": {"Trainer": type("Trainer", (), {"Config": object})},
    }
    for name, values in stand_in.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, f"torchtitan.{name}", module)
    (tmp_path / "data").mkdir()
    rows = {"input": [[1, 2], [3, 4]], "positions": [[0, 1]] * 2, "labels": [[2, -100]] * 2}
    Dataset.from_dict(rows).to_parquet(tmp_path / "data" / "train-00000.parquet")
    example = load_script(EXAMPLES / "train_torchtitan.py")
    assert next(iter(example.CuratedRows(tmp_path, 2, 1, 2)))
    with pytest.raises(ValueError, match="holds 2 rows for 3 ranks; use fewer ranks"):
        example.CuratedRows(tmp_path, 2, 0, 3)
