"""The rows that the examples' loaders give: none twice after resuming, and an error where a rank has none."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import curator
from curator.errors import TrainingError
from curator.training.check.canary import write_canary

EXAMPLES = Path(__file__).parents[2] / "examples" / "trainers"


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary") / "canary"
    write_canary(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # Lightning's own, about workers and the machine
def test_lightning_resumes_with_the_order_of_the_epoch(tmp_path: Path, canary: Path) -> None:
    import lightning.pytorch as lightning

    example = load_example("train_lightning")

    class Recorder(example.CuratedModule):  # type: ignore[name-defined,misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append((self.current_epoch, batch["input_ids"][0, :6].tolist()))
            return super().training_step(batch, batch_idx)

    def fit(epochs: int, checkpoint: Path | None = None) -> tuple[Any, list[Any]]:
        model = AutoModelForCausalLM.from_pretrained(canary / "model")
        module = Recorder(model, 0.0, str(canary / "data"), 64, 1)
        module.seen = []
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=epochs, enable_checkpointing=False, logger=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, ckpt_path=checkpoint)
        return trainer, module.seen

    _, whole = fit(2)
    first, _ = fit(1)
    first.save_checkpoint(tmp_path / "first.ckpt")
    _, rest = fit(2, tmp_path / "first.ckpt")
    assert [epoch for epoch, _ in whole] == [0] * 5 + [1] * 5
    assert rest == whole[5:]


def test_accelerate_does_not_spin_on_a_rank_without_a_row(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = curator.load
    monkeypatch.setattr(curator, "load", lambda *arguments: load(*arguments, rows="scored"))  # no row has scores
    paths = [str(canary / "data"), str(canary / "model"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["train_accelerate.py", *paths, "--cpu", "--steps", "1"])
    with pytest.raises(TrainingError, match="this rank has 6 rows, of which 6 were skipped"):
        load_example("train_accelerate").main()


def test_torchtitan_refuses_more_ranks_than_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    example = load_example("train_torchtitan")
    assert next(iter(example.CuratedRows(tmp_path, 2, 1, 2)))
    with pytest.raises(ValueError, match="holds 2 rows for 3 ranks; use fewer ranks"):
        example.CuratedRows(tmp_path, 2, 0, 3)
