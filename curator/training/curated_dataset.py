"""A curated dataset as one rank reads it: documents or packed sequences, an epoch at a time; see `curator.load`.

The order of an epoch (see `epochs.py`) is cut into one contiguous part per rank and, in it, one per DataLoader worker.
So every row has exactly one reader, a shard is opened only by those whose part it touches, and the place in an epoch
is two numbers.

Invariant: over all ranks and workers an epoch gives every row once, whatever their number; a resumed reader goes on
with exactly what the interrupted one would have given next.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from curator import tables
from curator.errors import TrainingError
from curator.manifest import Manifest
from curator.training.epochs import Row, read_epoch
from curator.training.packing import pack

_MAX_WORKERS = 1024
_STATE_VERSION = 1
"""Of what `state_dict` gives; raise it when a place would be told, or an epoch be ordered, in another way."""

RowChoice = Literal["kept", "scored"]
"""Which rows are given: those with a kept token, or those with a log-prob."""


@dataclass(frozen=True)
class _Position:
    """Where a reader stands: `row` of its own part, `token` of that row, rows skipped so far."""

    epoch: int = 0
    row: int = 0
    token: int = 0
    skipped: int = 0
    worker: int = 0
    workers: int = 1


class CuratedDataset(IterableDataset[dict[str, Any]]):
    """The documents or packed sequences of one rank, shuffled by epoch.

    Items are dicts of tensors of shape (T,): `input_ids` and `labels` int64, `token_weights` float32, and float32
    `logprobs_<model>` for every model that was published. Rows that `load` was not asked for are skipped and counted.

    One document per item: also `doc_id`; batch with `curator.training.Collator`. Packed: also `position_ids`, which
    restart at 0 with every document, and `document_ids`. A document that does not fit goes on in the next sequence,
    which begins by repeating its last token, so that each kept token is learned exactly once; the first token of every
    piece has weight 0 and label -100. Only the last sequence of a reader is padded, at its end (label -100, weight 0).

    `num_rows` is exact and differs by at most 1 between ranks, but skipped rows and packing make the number of items
    differ: ranks do NOT get equally many, and there is no `len`. When training needs all ranks in every step, read it
    through `curator.training.Endless`, which never ends, and stop after a fixed number of steps.
    """

    def __init__(
        self,
        root: str,
        manifest: Manifest,
        sequence_length: int | None,
        seed: int,
        rank: int,
        world_size: int,
        rows: RowChoice,
    ) -> None:
        """Use `load`."""
        super().__init__()
        self._root, self._manifest = root, manifest
        self._shards = sorted(manifest.shards, key=lambda shard: shard.number)
        self._layout: dict[str, Any] = {
            "dataset": hashlib.sha256("".join(shard.sha256 for shard in self._shards).encode()).hexdigest(),
            "sequence_length": sequence_length,
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            "rows": rows,
        }
        self._sequence_length, self._seed, self._rows = sequence_length, seed, rows
        total = sum(shard.rows for shard in self._shards)
        self._part = (total * rank // world_size, total * (rank + 1) // world_size)
        # In shared memory: persistent workers see a new epoch, and the main process what workers have read and skipped.
        self._epoch = _shared(0)
        self._skipped = _shared(*[0] * _MAX_WORKERS)
        self._epoch_of_workers = _shared(-1)
        # The number of the state that was loaded last, and of the one that each reader has gone on from: once, as the
        # copy of this object that a worker has is gone after its epoch.
        self._loaded = 0
        self._resumed = _shared(*[0] * _MAX_WORKERS)
        self._position = _Position()
        self._chosen = 0  # the epoch that was set when reading of `_position` began
        self._passes = _shared(*[0] * _MAX_WORKERS)

    def split(self, rank: int, world_size: int) -> "CuratedDataset":
        """The same dataset, from its beginning, as another rank of another number of processes reads it.

        Raises:
            TrainingError: it was to go on from a place that was loaded, which is of its own rank.
        """
        if self._loaded > int(self._resumed.max()):
            raise TrainingError(
                "the dataset was given a state to resume, which is lost when a trainer splits it over its ranks; pass "
                "it fresh, and let the trainer resume (resume_from_checkpoint reads again what was read)"
            )
        return CuratedDataset(
            self._root, self._manifest, self._sequence_length, self._seed, rank, world_size, self._rows
        )

    @property
    def reader(self) -> tuple[int, int]:
        """Rank and world size that it was opened for."""
        return self._layout["rank"], self._layout["world_size"]

    @property
    def num_rows(self) -> int:
        """Rows of this rank in every epoch, counting those that are skipped."""
        return self._part[1] - self._part[0]

    @property
    def skipped_rows(self) -> int:
        """Rows skipped so far in this epoch, over all workers of this rank."""
        return int(self._skipped.sum())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; call it before each epoch, as with a DistributedSampler."""
        self._epoch.fill_(check_whole("epoch", epoch, 0))
        self._passes.fill_(0)

    def state_dict(self) -> dict[str, Any]:
        """The place after the last item given out; call it where the dataset is iterated.

        That is this process without DataLoader workers, else the worker: torchdata's StatefulDataLoader does so.

        Raises:
            TrainingError: workers are reading this epoch, and this is not one of them.
        """
        epoch = int(self._epoch)
        if get_worker_info() is None and int(self._epoch_of_workers) == epoch:
            raise TrainingError(
                "DataLoader workers read this epoch, and only they know their places; use torchdata's "
                "StatefulDataLoader, which asks them, or num_workers=0"
            )
        position = self._position if self._chosen == epoch else _Position(epoch=epoch)
        return {"version": _STATE_VERSION, **self._layout, **asdict(position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, with the next iteration, from a place that `state_dict` told.

        Raises:
            TrainingError: the state is of another dataset, seed, sequence length, rank, world size or choice of rows,
                of another version, or is not one.
        """
        version = state.get("version", 1)
        if version != _STATE_VERSION:
            raise TrainingError(
                f"the state to resume has version {version!r}, and this token-curator goes on from version "
                f"{_STATE_VERSION}; install the one that saved it, or begin the epoch again"
            )
        places = asdict(_Position())
        missing = sorted({*self._layout, *places} - state.keys())
        if missing:
            raise TrainingError(f"the state to resume has no {', '.join(missing)}; pass what state_dict() gave")
        changed = {name: (state[name], value) for name, value in self._layout.items() if state[name] != value}
        if changed:
            told = ", ".join(f"{name} {then} (now {now})" for name, (then, now) in changed.items())
            told = "another dataset" if "dataset" in changed else told
            raise TrainingError(f"the state to resume was saved with {told}; load the dataset as it was then")
        self._position = _Position(**{name: state[name] for name in places})
        self._loaded = int(self._resumed.max()) + 1
        self._chosen = self._position.epoch
        self.set_epoch(self._chosen)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.read_epoch(int(self._epoch))

    def read_epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        """This reader's items of an epoch, be it the one that `set_epoch` has chosen or a later one (see `Endless`)."""
        position = _begin_epoch(epoch)
        self._chosen = int(self._epoch)
        self._epoch_of_workers.fill_(-1 if get_worker_info() is None else self._chosen)
        return self._read(self._resume(position))

    def begin_pass(self) -> int:
        """The epoch with which this reader's next stream of epochs begins: the chosen one, then each time one later."""
        worker = _begin_epoch(0).worker
        self._passes[worker] += 1
        return int(self._epoch + self._passes[worker]) - 1

    def _resume(self, position: _Position) -> _Position:
        """Where this reader begins: at `position`, or, once, at the place that was loaded."""
        worker, workers = position.worker, position.workers
        if self._loaded <= int(self._resumed[worker]):
            return position
        if self._position.epoch == position.epoch:
            if (self._position.worker, self._position.workers) != (worker, workers):
                raise TrainingError(
                    f"the state to resume is of worker {self._position.worker} of {self._position.workers}, this is "
                    f"{worker} of {workers}; use as many workers, and a loader that gives each its own state"
                )
            position = self._position
        self._resumed[worker] = self._loaded
        self._resumed[workers:] = self._loaded
        return position

    def _read(self, position: _Position) -> Iterator[dict[str, Any]]:
        self._position = position
        self._skipped[position.worker] = position.skipped
        self._skipped[position.workers :] = 0  # slots of workers that an earlier loader had
        return self._items(position)

    def _items(self, position: _Position) -> Iterator[dict[str, Any]]:
        """Give out items; before each, `_position` moves behind it."""
        rows = self._wanted_rows(position)
        if self._sequence_length is None:
            for number, doc_id, row in rows:
                self._move(number + 1, 0)
                yield {"doc_id": doc_id, **_tensors(row)}
        else:
            numbered = ((number, row) for number, _, row in rows)
            for (number, token), sequence in pack(numbered, self._sequence_length, position.token):
                self._move(number, token)
                yield _tensors(sequence)

    def _move(self, row: int, token: int) -> None:
        skipped = int(self._skipped[self._position.worker])
        self._position = replace(self._position, row=row, token=token, skipped=skipped)

    def _wanted_rows(self, position: _Position) -> Iterator[tuple[int, str, Row]]:
        """This reader's rows that were asked for, numbered within its part, from `position` on."""
        start, stop = self._part
        size = stop - start
        first = start + size * position.worker // position.workers
        stop = start + size * (position.worker + 1) // position.workers
        skipped = position.skipped
        rows = read_epoch(self._root, self._shards, self._seed, position.epoch, first + position.row, stop)
        for number, (doc_id, row) in enumerate(rows, start=position.row):
            if _has_token(row, self._rows):
                yield number, doc_id, row
            else:
                skipped += 1
                self._skipped[position.worker] = skipped


def check_whole(name: str, value: Any, least: int, reason: str = "") -> int:
    """The argument as an int; raises TrainingError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise TrainingError(f"{name}={value!r}; use a whole number of at least {least}{reason}")
    return int(value)


def _begin_epoch(epoch: int) -> _Position:
    """The first place of this process, or of this worker of it."""
    info = get_worker_info()
    if info is None:
        return _Position(epoch=epoch)
    if info.num_workers > _MAX_WORKERS:
        raise TrainingError(f"{info.num_workers} DataLoader workers; at most {_MAX_WORKERS} are supported")
    return _Position(epoch=epoch, worker=info.id, workers=info.num_workers)


def _has_token(row: Row, choice: RowChoice) -> bool:
    if choice == "kept":
        return bool(row["token_weights"][1:].any())
    scores = (values for name, values in row.items() if name.startswith(tables.LOGPROBS_PREFIX))
    return any(not np.isnan(values_T[1:]).all() for values_T in scores)


def _shared(*values: int) -> torch.Tensor:
    tensor: torch.Tensor = torch.tensor(values).squeeze().share_memory_()  # type: ignore[no-untyped-call]
    return tensor


def _tensors(row: Mapping[str, npt.NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in row.items()}
