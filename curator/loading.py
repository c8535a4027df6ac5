"""Opening a curated dataset for training: `curator.load`.

It is read through its manifest alone, so a dataset that is still being written cannot be loaded. This file finds out
what is asked for and by which rank; `training/curated_dataset.py` reads.
"""

import os
from typing import get_args

import torch

from curator import storage
from curator.errors import OutputError, TrainingError
from curator.manifest import read_manifest
from curator.training.curated_dataset import CuratedDataset, RowChoice, check_whole


def load(
    directory: str | os.PathLike[str],
    sequence_length: int | None = None,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    rows: RowChoice = "kept",
) -> CuratedDataset:
    """Open a published dataset for training.

    Args:
        directory: folder or URI with `manifest.json`, as `output.uri` of the spec.
        sequence_length: None gives one document per item, of its own length; a number packs documents into sequences
            of exactly that many tokens (see `CuratedDataset`).
        seed: of the shuffle.
        rank: this process among `world_size`. By default both come from torch.distributed if it is initialised, else
            from RANK and WORLD_SIZE together, else 0 of 1. What splits iterable datasets by itself (a loader that went
            through `accelerate.prepare`) needs 0 and 1; `WeightedTrainer` splits this one anew, whatever is given here.
        world_size: number of processes that share the dataset.
        rows: "kept" leaves out rows without a kept token, "scored" only those without a scored one, whatever their
            weights: online selection (`Objective(keep=...)`) ranks all scored tokens.

    Raises:
        OutputError: there is no finished dataset in `directory`.
        TrainingError: an argument is out of range, or no token is kept.
    """
    if sequence_length is not None:
        sequence_length = check_whole("sequence_length", sequence_length, 2, ": two tokens are needed to learn one")
    seed = check_whole("seed", seed, 0)
    if rows not in get_args(RowChoice):
        raise TrainingError(f"rows={rows!r}; use one of {', '.join(get_args(RowChoice))}")
    rank, world_size = _find_rank(rank, world_size)
    root = storage.absolute(os.fspath(directory))
    manifest = read_manifest(root)
    if manifest.content != "dataset":
        raise OutputError(f"{root!r} holds {manifest.content} without tokens; load the dataset it was selected from")
    if rows == "kept" and not any(shard.kept_tokens for shard in manifest.shards):
        raise TrainingError(
            f"{root!r} has no row with a kept token, so nothing to train on; choose another policy (`curator select`), "
            "or load rows='scored' for online selection"
        )
    return CuratedDataset(root, manifest, sequence_length, seed, rank, world_size, rows)


def _find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise TrainingError(f"rank={rank} with world_size={world_size}; give both or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = _read_environment("RANK", 0), _read_environment("WORLD_SIZE", 1)
            if world_size != 1 and "RANK" not in os.environ:
                raise TrainingError(
                    f"the environment has WORLD_SIZE={world_size} and no RANK, so every process would read the rows of "
                    "rank 0; pass rank and world_size (in Lightning use curator.training.CuratedDataModule)"
                )
    rank, world_size = check_whole("rank", rank, 0), check_whole("world_size", world_size, 1)
    if rank >= world_size:
        raise TrainingError(f"rank={rank} is not one of 0..{world_size - 1}; check RANK and WORLD_SIZE")
    return rank, world_size


def _read_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError:
        raise TrainingError(
            f"the environment has {name}={value!r}, which is no whole number; unset it, or pass rank and world_size"
        ) from None
