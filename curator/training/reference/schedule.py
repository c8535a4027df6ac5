"""Which micro-batches make a step, for any number of processes.

An epoch is the micro-batches in an order of its own, cut into steps. A step's micro-batches are dealt to the processes
in turn; where they do not come out even, a process forwards an empty one, which weighs nothing. So what a step learns
does not depend on how many work on it, no token is repeated to fill up, and the place in a run is the step's number.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from curator.training.collator import Collator
from curator.training.reference.documents import Example, ids_of, weights_of

MicroBatch = Sequence[Example]


class Schedule(Dataset[MicroBatch]):
    """All micro-batches of a run in order, `accumulate` a step for each of `processes` processes.

    Attributes:
        steps_per_epoch: steps in which every token is learned once.
        accumulate: micro-batches that each process forwards in a step.
        per_step: micro-batches that a step learns, over all processes.
    """

    def __init__(self, batches: Sequence[MicroBatch], batch_tokens: int, processes: int, seed: int) -> None:
        """Plan steps of about `batch_tokens` tokens, padding included."""
        padded = sum(len(batch) * max(map(len, batch)) for batch in batches)
        self._batches, self._seed = batches, seed
        self.per_step = max(1, round(min(batch_tokens, padded) * len(batches) / padded))
        self.accumulate = math.ceil(self.per_step / processes)
        self.steps_per_epoch = math.ceil(len(batches) / self.per_step)
        self.steps = self.steps_per_epoch
        self._slots = self.accumulate * processes
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.steps * self._slots

    def __getitem__(self, index: int) -> MicroBatch:
        step, slot = divmod(index, self._slots)
        chosen = self.step(step)
        return chosen[slot] if slot < len(chosen) else []

    def step(self, number: int) -> list[MicroBatch]:
        """What step `number`, from 0, learns."""
        epoch, part = divmod(number, self.steps_per_epoch)
        if self._shuffled[0] != epoch:
            order = np.random.default_rng([self._seed, 3, epoch]).permutation(len(self._batches))
            self._shuffled = epoch, order.tolist()
        first = part * self.per_step
        return [self._batches[i] for i in self._shuffled[1][first : first + self.per_step]]

    def tokens(self, number: int) -> int:
        """Tokens of step `number`, without padding."""
        return sum(len(row) for batch in self.step(number) for row in batch)


_EMPTY: MicroBatch = (np.zeros(2, np.int32),)


def collate(items: Sequence[MicroBatch]) -> dict[str, Tensor]:
    """Micro-batches are made beforehand, so what comes in is a list of one; an empty one becomes a row of weight 0."""
    rows = [row for batch in items for row in batch]
    batch = Collator()([{"input_ids": ids_of(row), "token_weights": weights_of(row)} for row in rows or _EMPTY])
    return batch if rows else {**batch, "token_weights": torch.zeros_like(batch["token_weights"])}
