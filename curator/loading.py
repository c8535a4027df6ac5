"""Reading a curated dataset for training: `curator.load`.

It is read through its manifest alone, so a dataset that is still being written cannot be loaded. The order of an epoch
(see `training/epochs.py`) is cut into one contiguous part per rank and, in it, one per DataLoader worker. So every row
has exactly one reader, a shard is opened only by those whose part it touches, and the place in an epoch is two numbers.

Invariant: over all ranks and workers an epoch gives every row once, whatever their number; a resumed reader goes on
with exactly what the interrupted one would have given next.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from curator import storage
from curator.errors import OutputError, TrainingError
from curator.manifest import Manifest, read_manifest
from curator.training.epochs import Row, read_epoch
from curator.training.packing import pack

_MAX_WORKERS = 1024


def load(
    directory: str | os.PathLike[str],
    sequence_length: int | None = None,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> "CuratedDataset":
    """Open a published dataset for training.

    Args:
        directory: folder or URI with `manifest.json`, as `output.uri` of the spec.
        sequence_length: None gives one document per item, of its own length; a number packs documents into sequences
            of exactly that many tokens (see `CuratedDataset`).
        seed: of the shuffle.
        rank: this process among `world_size`. By default both come from torch.distributed if it is initialised, else
            from RANK and WORLD_SIZE, else 0 of 1. Under accelerate and the HF Trainer, which split iterable datasets
            themselves, pass 0 and 1.
        world_size: number of processes that share the dataset.

    Raises:
        OutputError: there is no finished dataset in `directory`.
        TrainingError: an argument is out of range.
    """
    if sequence_length is not None and sequence_length < 2:
        raise TrainingError(f"sequence_length={sequence_length}; a sequence needs at least 2 tokens to learn one")
    if seed < 0:
        raise TrainingError(f"seed={seed}; use 0 or more")
    rank, world_size = _find_rank(rank, world_size)
    root = storage.absolute(os.fspath(directory))
    manifest = read_manifest(root)
    if manifest.content != "dataset":
        raise OutputError(f"{root!r} holds {manifest.content} without tokens; load the dataset it was selected from")
    return CuratedDataset(root, manifest, sequence_length, seed, rank, world_size)


def _find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise TrainingError(f"rank={rank} with world_size={world_size}; give both or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise TrainingError(f"rank={rank} is not one of 0..{world_size - 1}; check RANK and WORLD_SIZE")
    return rank, world_size


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
    `logprobs_<model>` for every model that was published. Rows without a kept token are skipped and counted.

    One document per item: also `doc_id`; batch with `curator.training.Collator`. Packed: also `position_ids`, which
    restart at 0 with every document, and `document_ids`. A document that does not fit goes on in the next sequence,
    which begins by repeating its last token, so that each kept token is learned exactly once; the first token of every
    piece has weight 0 and label -100. Only the last sequence of a reader is padded, at its end (label -100, weight 0).

    `num_rows` is exact and differs by at most 1 between ranks, but skipped rows and packing make the number of items
    differ: ranks do NOT get equally many, and there is no `len`. Stop together (for example after a fixed number of
    steps) when training needs all ranks in every step.
    """

    def __init__(
        self, root: str, manifest: Manifest, sequence_length: int | None, seed: int, rank: int, world_size: int
    ) -> None:
        """Use `load`."""
        super().__init__()
        self._root = root
        self._shards = sorted(manifest.shards, key=lambda shard: shard.number)
        self._layout = {
            "dataset": hashlib.sha256("".join(shard.sha256 for shard in self._shards).encode()).hexdigest(),
            "sequence_length": sequence_length,
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
        }
        self._sequence_length, self._seed = sequence_length, seed
        total = sum(shard.rows for shard in self._shards)
        self._part = (total * rank // world_size, total * (rank + 1) // world_size)
        # Shared memory: persistent workers see a new epoch, and the main process sees what they skipped.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._skipped = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._position = _Position()
        self._resuming = False

    @property
    def num_rows(self) -> int:
        """Rows of this rank in every epoch, counting those without a kept token."""
        return self._part[1] - self._part[0]

    @property
    def skipped_rows(self) -> int:
        """Rows without a kept token met so far in this epoch, over all workers of this rank."""
        return int(self._skipped.sum())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; call it before each epoch, as with a DistributedSampler."""
        if epoch < 0:
            raise TrainingError(f"epoch={epoch}; use 0 or more")
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The place after the last item given out; call it where the dataset is iterated.

        That is this process without DataLoader workers, else the worker: torchdata's StatefulDataLoader does so.
        """
        epoch = int(self._epoch)
        position = self._position if self._position.epoch == epoch else _Position(epoch=epoch)
        return {**self._layout, **asdict(position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, with the next iteration, from a place that `state_dict` told.

        Raises:
            TrainingError: the state is of another dataset, seed, sequence length, rank or world size.
        """
        changed = {name: (state.get(name), value) for name, value in self._layout.items() if state.get(name) != value}
        if changed:
            told = (
                "another dataset"
                if "shards" in changed
                else ", ".join(f"{n} {a} (now {b})" for n, (a, b) in changed.items())
            )
            raise TrainingError(f"the state to resume was saved with {told}; load the dataset as it was then")
        self._position = _Position(**{name: state[name] for name in asdict(_Position())})
        self._resuming = True
        self.set_epoch(self._position.epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        if workers > _MAX_WORKERS:
            raise TrainingError(f"{workers} DataLoader workers; at most {_MAX_WORKERS} are supported")
        position = _Position(epoch=int(self._epoch), worker=worker, workers=workers)
        if self._resuming and self._position.epoch == position.epoch:
            if (self._position.worker, self._position.workers) != (worker, workers):
                raise TrainingError(
                    f"the state to resume is of worker {self._position.worker} of {self._position.workers}, this is "
                    f"{worker} of {workers}; use as many workers, and a loader that gives each its own state"
                )
            position = self._position
        self._position, self._resuming = position, False
        self._skipped[workers:] = 0  # slots of workers that an earlier loader had
        return self._items(position)

    def _items(self, position: _Position) -> Iterator[dict[str, Any]]:
        """Give out items; before each, `_position` moves behind it."""
        rows = self._kept_rows(position)
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

    def _kept_rows(self, position: _Position) -> Iterator[tuple[int, str, Row]]:
        """This reader's rows that have a kept token, numbered within its part, from `position` on."""
        start, stop = self._part
        size = stop - start
        first = start + size * position.worker // position.workers
        stop = start + size * (position.worker + 1) // position.workers
        skipped = position.skipped
        self._skipped[position.worker] = skipped
        rows = read_epoch(self._root, self._shards, self._seed, position.epoch, first + position.row, stop)
        for number, (doc_id, row) in enumerate(rows, start=position.row):
            if row["token_weights"][1:].any():
                yield number, doc_id, row
            else:
                skipped += 1
                self._skipped[position.worker] = skipped


def _tensors(row: Mapping[str, npt.NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in row.items()}
