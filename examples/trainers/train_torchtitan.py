"""Train with torchtitan on a dataset exported by `curator export DIR --for torchtitan --sequence-length N`.

    pip install torchtitan; curator export DATASET --for torchtitan --sequence-length 2048 --output curated_torchtitan
    PYTHONPATH=examples/trainers torchrun --nproc_per_node=8 -m torchtitan.train \
        --module train_torchtitan --config llama3_curated \
        --dataloader.dataset-path curated_torchtitan --hf-assets-path FOLDER_OF_THE_TOKENIZER

Labels of the export are shifted and rows are packed, so the dataloader gives them out as they are. The trainer divides
by the labels of the whole step over all ranks, and makes attention masks of `positions`. `llama3_curated` is the small
Llama of torchtitan's own tests; for another model copy its config and replace `dataloader`. Written for torchtitan
0.3.0, whose dataloader this is; the Grain loaders of its main branch are built otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import IterableDataset, get_worker_info
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.validate import Validator
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.trainer import Trainer


class CuratedRows(IterableDataset, Stateful):
    """Rows of one data-parallel rank, again and again, in a new order each epoch; resumes at a row."""

    def __init__(self, export: Path, seq_len: int, dp_rank: int, dp_world_size: int) -> None:
        """Open the parquet files of an export."""
        files = str(export / "data" / "*.parquet")
        rows = load_dataset("parquet", data_files=files, split="train").with_format("torch")
        if len(rows[0]["input"]) != seq_len:
            raise ValueError(
                f"{export} holds rows of {len(rows[0]['input'])} tokens, training.seq_len is {seq_len}; "
                "export with --sequence-length equal to it"
            )
        if dp_world_size > len(rows):
            raise ValueError(f"{export} holds {len(rows)} rows for {dp_world_size} ranks; use fewer ranks")
        self._rows, self._part = rows, (dp_rank, dp_world_size)
        self._epoch = self._next = 0

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        if get_worker_info() is not None:
            raise ValueError("--dataloader.num_workers must be 0: every worker would give out every row")
        rank, world_size = self._part
        while True:
            shuffled = self._rows.shuffle(seed=self._epoch)
            for row in split_dataset_by_node(shuffled, rank, world_size).skip(self._next):
                self._next += 1
                yield {"input": row["input"].long(), "positions": row["positions"].long()}, row["labels"].long()
            self._epoch, self._next = self._epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last row given out."""
        return {"epoch": self._epoch, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place that `state_dict` told."""
        self._epoch, self._next = state["epoch"], state["next"]


class CuratedDataLoader(ParallelAwareDataloader):
    """Batches of `CuratedRows`."""

    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        """Set `dataset_path` to the folder of the export."""

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int,
        snapshot_every_n_steps: int | None = 1, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Called by torchtitan."""
        rows = CuratedRows(Path(config.dataset_path or "curated_torchtitan"), seq_len, dp_rank, dp_world_size)
        super().__init__(
            rows, dp_rank=dp_rank, dp_world_size=dp_world_size, batch_size=local_batch_size,
            num_workers=config.num_workers, pin_memory=config.pin_memory,
            snapshot_every_n_steps=snapshot_every_n_steps,
        )  # fmt: skip


def llama3_curated() -> Trainer.Config:
    """The small Llama of torchtitan's tests on the curated rows, without its validation on C4."""
    return replace(llama3_debugmodel(), dataloader=CuratedDataLoader.Config(), validator=Validator.Config(enable=False))
