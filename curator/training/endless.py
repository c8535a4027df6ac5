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
    """The items of a curated dataset for ever, epoch after epoch from the one that its `set_epoch` has chosen.

    A second iteration begins one epoch later than the first, and so on: a loop that takes a hundred batches and asks
    for the loader's iterator again gets other rows each time. `state_dict` and `load_state_dict` are the dataset's: the
    place is told in the process that reads.
    """

    def __init__(self, data: CuratedDataset) -> None:
        """Read `data`, which `curator.load` gave."""
        super().__init__()
        self.data = data

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first = self.data.begin_pass()
        found = True  # a state to resume may stand at the end of the first epoch
        for epoch in itertools.count(first):
            item = None
            for item in self.data.read_epoch(epoch):
                yield item
            if item is None and not found:
                raise TrainingError(_explain(self.data))
            found = item is not None

    def state_dict(self) -> dict[str, Any]:
        """The place after the last item given out, in whichever epoch; see `CuratedDataset.state_dict`."""
        return self.data.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, with the next iteration, from a place that `state_dict` told, and with the epochs behind it."""
        self.data.load_state_dict(state)


def _explain(data: CuratedDataset) -> str:
    info = get_worker_info()
    reader = f"DataLoader worker {info.id} of {info.num_workers}" if info is not None else "this process"
    return (
        f"{reader} finds no row to train on: this rank has {data.num_rows} rows, of which {data.skipped_rows} were "
        "skipped, as they keep no token; use fewer processes or DataLoader workers, or a policy that keeps more"
    )
