"""Curated rows for Lightning: every rank its own, epoch after epoch, going on where a run stopped.

Lightning asks a loader for its iterator again at each of its epochs, fetches a batch ahead, starts processes that know
the number of ranks but not their own, and begins a resumed epoch at the loader's beginning. And ranks do not get
equally many items of a curated epoch: the first to finish would leave the others waiting in their next collective call,
in training and, where a model has buffers, in validation.

Invariant: over all ranks every row is read once an epoch; the batches that a run was trained on are those that one
without interruption would have been. This module imports lightning at its top; import it only to train.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from curator.errors import TrainingError
from curator.loading import load
from curator.training.collator import Collator
from curator.training.curated_dataset import CuratedDataset, RowChoice, check_whole
from curator.training.endless import Endless

Batch = dict[str, Tensor]


class CuratedDataModule(LightningDataModule):  # type: ignore[misc]
    """The training rows of a curated dataset; `trainer.fit(module, datamodule=CuratedDataModule(DIR, 1024, 4))`.

    The rows never end, so the Trainer needs `max_steps`, `max_time` or a whole number as `limit_train_batches`. An
    epoch of Lightning is as long as that limit; the next one, and a resumed run, go on with the batches that come next.
    Reading is resumed by reading again, so keep `num_workers`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        sequence_length: int | None = None,
        micro_batch: int = 1,
        *,
        seed: int = 0,
        rows: RowChoice = "kept",
        num_workers: int = 0,
        collator: Collator | None = None,
    ) -> None:
        """Say what to read; it is opened when ranks are known.

        Args:
            directory: as in `curator.load`.
            sequence_length: as in `curator.load`.
            micro_batch: rows of a batch.
            seed: of the shuffle.
            rows: as in `curator.load`.
            num_workers: of each rank's DataLoader.
            collator: None = `Collator()`.
        """
        super().__init__()
        self._open = partial(load, directory, sequence_length, seed, rows=rows)
        self._micro_batch = check_whole("micro_batch", micro_batch, 1)
        self._num_workers = check_whole("num_workers", num_workers, 0)
        self._collator = collator or Collator()

    def train_dataloader(self) -> "Stream":
        """This rank's batches, from the one that comes next.

        Raises:
            TrainingError: nothing would ever stop the training, or `curator.load` refuses.
        """
        trainer = self.trainer
        _check_end(trainer)
        data = self._open(rank=trainer.global_rank, world_size=trainer.world_size)
        loader = DataLoader(
            Endless(data), batch_size=self._micro_batch, num_workers=self._num_workers, collate_fn=self._collator
        )
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return Stream(loader, lambda: int(progress.total.processed))


class Stream:
    """The batches of a loader, each trained on once, however often the iterator is asked for."""

    def __init__(self, loader: DataLoader[Any], count_trained: Callable[[], int]) -> None:
        """Go on behind the batches that `count_trained` counts, now and whenever the iterator is asked for."""
        self._count_trained = count_trained
        self._given = count_trained()
        self._batches = islice(loader, self._given, None)
        self._recent: deque[Batch] = deque(maxlen=2)  # Lightning fetches one ahead, and forgets it at an epoch's end
        self._again: deque[Batch] = deque()

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(min(self._given - self._count_trained(), len(self._recent))):
            self._again.appendleft(self._recent.pop())
            self._given -= 1
        return self

    def __next__(self) -> Batch:
        batch = self._again.popleft() if self._again else next(self._batches)
        self._given += 1
        self._recent.append(batch)
        return batch


def _check_end(trainer: Trainer) -> None:
    limited = isinstance(trainer.limit_train_batches, int) and trainer.max_epochs not in (None, -1)
    timed = any(type(callback).__name__ == "Timer" for callback in trainer.callbacks)
    if trainer.max_steps == -1 and not limited and not timed:
        raise TrainingError(
            f"the rows of a CuratedDataModule never end, and neither would Trainer(max_steps=-1, max_epochs="
            f"{trainer.max_epochs}, limit_train_batches={trainer.limit_train_batches}); set max_steps"
        )


def check_ranks(trainer: Trainer, loaders: Any, training: bool) -> None:
    """Refuse loaders with which ranks would wait for each other for ever, or train on each other's rows.

    Args:
        trainer: knows the ranks.
        loaders: what Lightning reads: one loader, or any tree of them.
        training: they are for training, where each rank has its own rows; in validation each reads all.

    Raises:
        TrainingError: a curated dataset was opened for another rank, or, on several ranks, ends in training.
    """
    mine = (trainer.global_rank, trainer.world_size) if training else (0, 1)
    for loader in CombinedLoader(loaders).flattened if loaders is not None else ():
        data = getattr(loader, "dataset", None)
        ends = not isinstance(data, Endless)
        data = data.data if isinstance(data, Endless) else data
        if not isinstance(data, CuratedDataset):
            continue
        if data.reader != mine or (training and ends and trainer.world_size > 1):
            own = "give Trainer.fit a CuratedDataModule" if training else "validate on curator.load(DIR, rank=0, "
            own += "" if training else "world_size=1): each rank then reads all rows, and their mean stays the same"
            raise TrainingError(
                f"rank {trainer.global_rank} of {trainer.world_size} reads a curated dataset that was opened for rank "
                f"{data.reader[0]} of {data.reader[1]} and {'ends with its epoch' if ends else 'never ends'}; ranks "
                f"would get each other's rows, or unequally many and wait for each other: {own}"
            )
