"""A curated dataset without an end: one epoch after another, each in its own order.

Ranks do not get equally many items of an epoch, so a rank that stopped at its end would leave the others waiting in
their next collective call. Here none ever stops, and the trainer does, after a fixed number of steps.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from curator.errors import TrainingError
from curator.training.curated_dataset import CuratedDataset


class Endless(IterableDataset[dict[str, Any]]):
    """The items of epochs 0, 1, 2 and so on of a curated dataset, for ever."""

    def __init__(self, data: CuratedDataset) -> None:
        """Read `data`, which `curator.load` gave."""
        super().__init__()
        self.data = data

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for epoch in itertools.count():
            item = None
            for item in self.data.read_epoch(epoch):
                yield item
            if item is None:
                raise TrainingError(_explain(self.data))


def _explain(data: CuratedDataset) -> str:
    info = get_worker_info()
    reader = f"DataLoader worker {info.id} of {info.num_workers}" if info is not None else "this process"
    return (
        f"{reader} finds no row to train on: this rank has {data.num_rows} rows, of which {data.skipped_rows} were "
        "skipped, as they keep no token; use fewer processes or DataLoader workers, or a policy that keeps more"
    )
