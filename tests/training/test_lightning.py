"""`WeightedModule` over `CuratedDataModule`: each batch once, in order, and no rank left waiting."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import curator
from curator.errors import TrainingError
from curator.training import Collator, CuratedDataModule, Endless, WeightedModule
from curator.training.lightning_data import Stream, check_ranks

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, about workers and the machine


class Recorder(WeightedModule):
    """Notes the first tokens of every batch, and fails at one of them if asked."""

    fails_at = -1

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen = [*getattr(self, "seen", []), batch["input_ids"][0, :6].tolist()]
        loss = super().training_step(batch, batch_idx)
        if len(self.seen) == self.fails_at:
            raise RuntimeError("power cut")
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


def make_module(canary: Path) -> Recorder:
    return Recorder(AutoModelForCausalLM.from_pretrained(canary / "model"), 0.01)


def make_trainer(**more: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", enable_checkpointing=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, **more,
    )  # fmt: skip


def starts(canary: Path, count: int) -> list[Any]:
    """Three epochs of five sequences, each in its order."""
    return [
        row["input_ids"][:6].tolist() for row in itertools.islice(Endless(curator.load(canary / "data", 64)), count)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_lightnings_epochs_and_resumed_runs_go_on_with_the_next_batch(
    tmp_path: Path, canary: Path, workers: int
) -> None:
    def fit(stops: dict[str, Any], checkpoint: Path | None = None) -> tuple[lightning.Trainer, list[Any]]:
        module, trainer = make_module(canary), make_trainer(**stops)
        trainer.fit(
            module, datamodule=CuratedDataModule(canary / "data", 64, num_workers=workers), ckpt_path=checkpoint
        )
        return trainer, module.seen

    expected = starts(canary, 12)
    _, seen = fit({"max_epochs": 3, "limit_train_batches": 4})
    assert seen == expected
    first, seen = fit({"max_steps": 7})
    assert seen == expected[:7]
    first.save_checkpoint(tmp_path / "seven.ckpt")
    _, seen = fit({"max_steps": 12}, tmp_path / "seven.ckpt")
    assert seen == expected[7:]


def test_a_batch_that_was_fetched_and_not_trained_on_comes_again() -> None:
    trained = 2
    stream = Stream(list(range(9)), lambda: trained)  # type: ignore[arg-type]
    assert [next(iter(stream)) for _ in range(3)] == [2, 2, 2], "however often the iterator is asked for"
    assert [next(stream), next(iter(stream))] == [3, 2]
    trained = 3
    assert list(iter(stream)) == [3, 4, 5, 6, 7, 8]


def test_a_training_that_nothing_stops_is_refused(canary: Path) -> None:
    with pytest.raises(TrainingError, match=r"never end.*max_epochs=2, limit_train_batches=1\.0\); set max_steps"):
        make_trainer(max_epochs=2).fit(make_module(canary), datamodule=CuratedDataModule(canary / "data"))


def test_a_step_that_was_cut_short_does_not_count_in_the_next_training(canary: Path) -> None:
    def train(module: Recorder) -> torch.Tensor:
        rows = CuratedDataModule(canary / "data", 64)
        make_trainer(max_steps=1, accumulate_grad_batches=2).fit(module, datamodule=rows)
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    cut = make_module(canary)
    cut.fails_at = 2
    with pytest.raises(RuntimeError, match="power cut"):
        train(cut)
    assert torch.equal(train(cut), train(make_module(canary)))


def loader(canary: Path, rank: int, world_size: int, endless: bool) -> Any:
    data = curator.load(canary / "data", rank=rank, world_size=world_size)
    return DataLoader(Endless(data) if endless else data, collate_fn=Collator())


@pytest.mark.parametrize(
    ("rank", "ranks", "endless", "training", "message"),
    [
        (1, 2, False, True, "rank 1 of 2 .* ends with its epoch.*: give Trainer.fit a CuratedDataModule"),
        (0, 2, True, True, "rank 1 of 2 .* opened for rank 0 of 2 and never ends"),
        (0, 1, True, True, "opened for rank 0 of 1"),
        (1, 2, False, False, r"validate on curator\.load\(DIR, rank=0, world_size=1\)"),
        (1, 2, True, True, None),
        (0, 1, False, False, None),
    ],
)
def test_rows_that_would_leave_ranks_waiting_are_refused(
    canary: Path, rank: int, ranks: int, endless: bool, training: bool, message: str | None
) -> None:
    trainer: Any = SimpleNamespace(global_rank=1, world_size=2)
    loaders = [loader(canary, rank, ranks, endless)]
    if message is None:
        check_ranks(trainer, loaders, training)
    else:
        with pytest.raises(TrainingError, match=message):
            check_ranks(trainer, loaders, training)


def test_one_device_may_train_an_epoch_at_a_time_on_all_rows_alone(canary: Path) -> None:
    make_trainer(max_epochs=1).fit(make := make_module(canary), loader(canary, 0, 1, endless=False))
    assert len(make.seen) == 6
    with pytest.raises(TrainingError, match=r"rank 0 of 1 reads .* opened for rank 0 of 2"):
        make_trainer(max_epochs=1).fit(make_module(canary), loader(canary, 0, 2, endless=False))
