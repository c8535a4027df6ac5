"""`WeightedTrainer` over `curator.load`: every rank its own rows, and a resumed run the rows that come next."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import curator
from curator.errors import TrainingError
from curator.training import Endless

SCRIPT = Path(__file__).parent / "curated_ranks.py"


@pytest.fixture(scope="module")
def ranks(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(SCRIPT)


def starts(canary: Path, count: int, sequence_length: int | None, rank: int = 0, world_size: int = 1) -> list[Any]:
    """The first tokens of the rows that a rank reads."""
    rows = Endless(curator.load(canary / "data", sequence_length, rank=rank, world_size=world_size))
    return [row["input_ids"][:6].tolist() for row in itertools.islice(rows, count)]


def test_a_resumed_run_goes_on_with_the_rows_that_come_next(tmp_path: Path, ranks: ModuleType, canary: Path) -> None:
    def train(**more: Any) -> Any:
        trainer = ranks.make_trainer(
            canary / "data", canary / "model", tmp_path, 64, max_steps=8, save_steps=5, gradient_accumulation_steps=1
        )
        trainer.train(**more)
        return trainer.seen

    whole = train()
    assert whole == starts(canary, 16, 64), "three epochs of five sequences, each in its order"
    assert train(resume_from_checkpoint=str(tmp_path / "checkpoint-5")) == whole[10:]


def test_rows_are_split_by_the_trainer_whatever_rank_they_were_opened_for(
    tmp_path: Path, ranks: ModuleType, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as environment:
        environment.setenv("RANK", "1")
        environment.setenv("WORLD_SIZE", "2")
        data = curator.load(canary / "data")
    trainer = ranks.make_trainer(canary / "data", canary / "model", tmp_path, None, max_steps=1)
    trainer.train_dataset = data
    loader = iter(trainer.get_train_dataloader())
    rows = [row.tolist() for batch in itertools.islice(loader, 3) for row in batch["input_ids"][:, :6]]
    assert rows == starts(canary, 6, None)


def test_ranks_that_share_batches_are_refused(
    tmp_path: Path, ranks: ModuleType, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ranks.make_trainer(canary / "data", canary / "model", tmp_path, None, max_steps=1)
    parallel = SimpleNamespace(non_data_parallel_size=2)
    monkeypatch.setattr(type(trainer.accelerator), "parallelism_config", parallel)
    with pytest.raises(TrainingError, match=r"share a batch.*curator export --for hugging_face"):
        trainer.get_train_dataloader()


@pytest.mark.slow
@pytest.mark.parametrize("sequence_length", [None, 64])
def test_two_ranks_train_each_on_its_own_rows(tmp_path: Path, canary: Path, sequence_length: int | None) -> None:
    paths = [str(canary / "data"), str(canary / "model"), str(tmp_path), str(sequence_length or 0)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank in range(2):
        assert told[rank]["step"] == 4
        assert told[rank]["seen"] == starts(canary, 16, sequence_length, rank, 2), f"rows of rank {rank}"
    assert told[0]["loss"] == told[1]["loss"] and told[0]["weights"] == told[1]["weights"], "one model on both"
