"""The order of an epoch, and reading any contiguous part of it.

An epoch is one sequence of all rows: the shards shuffled, in each shard its row groups shuffled, and rows shuffled in
windows of several row groups. It is a function of (seed, epoch) alone. Because it is one sequence, a part of it is two
numbers, and reading begins in its middle without reading what comes before.

Invariant: memory holds one window, whatever the size of a shard.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curator import storage, tables
from curator.errors import OutputError, StorageError
from curator.manifest import ShardEntry
from curator.places import explained

_WINDOW_TOKENS = 4_000_000
"""Tokens that a reader holds and shuffles at once, about 64 MB: a whole shard of the default size."""

_DTYPES = {"input_ids": np.int64, "labels": np.int64}

Row = dict[str, npt.NDArray[Any]]
"""Token columns of a document, each of shape (T,)."""


def read_epoch(
    root: str, shards: Sequence[ShardEntry], seed: int, epoch: int, start: int, stop: int
) -> Iterator[tuple[str, Row]]:
    """Read rows `start` to `stop` of an epoch's order.

    Args:
        root: the dataset's folder.
        shards: all shards of the dataset, in the order of their numbers.
        seed: of the shuffle.
        epoch: which epoch.
        start: first row of the part, from 0.
        stop: the row behind its last.

    Yields:
        doc_id, and `input_ids`, `labels` (int64), `token_weights` and each `logprobs_<model>` (float32).

    Raises:
        OutputError: a shard is not what the manifest says.
    """
    first = 0
    for index in np.random.default_rng([seed, epoch]).permutation(len(shards)):
        shard = shards[index]
        if first < stop and start < first + shard.rows:
            yield from _read_shard(root, shard, [seed, epoch, shard.number], max(0, start - first), stop - first)
        first += shard.rows


def _read_shard(root: str, shard: ShardEntry, seed: list[int], start: int, stop: int) -> Iterator[tuple[str, Row]]:
    """Rows `start` to `stop` of a shard's own order."""
    random = np.random.default_rng(seed)
    with open_shard(root, shard) as parquet:
        window_rows = max(1, shard.rows * _WINDOW_TOKENS // max(1, shard.tokens))
        first = 0
        for groups, rows in _windows(parquet.metadata, random, window_rows):
            order = random.permutation(rows)  # drawn for skipped windows too: the order must not depend on `start`
            chosen = order[max(0, start - first) : max(0, stop - first)]
            first += rows
            if len(chosen):
                yield from read_rows(parquet, groups, chosen, shard)


def _windows(metadata: Any, random: np.random.Generator, window_rows: int) -> Iterator[tuple[list[int], int]]:
    """Shuffled row groups, joined until they hold `window_rows`; each with its number of rows."""
    groups: list[int] = []
    rows = 0
    for group in random.permutation(metadata.num_row_groups).tolist():
        size = metadata.row_group(group).num_rows
        if groups and rows + size > window_rows:
            yield groups, rows
            groups, rows = [], 0
        groups.append(group)
        rows += size
    if groups:
        yield groups, rows


@contextmanager
def open_shard(root: str, shard: ShardEntry) -> Iterator[pq.ParquetFile]:
    """A shard of a dataset, open for reading.

    Raises:
        OutputError: it is missing, no parquet file, or has not the rows and columns that the manifest promises.
        StorageError: it cannot be read.
    """
    uri = storage.join(root, shard.file)
    with explained("read", uri), _open(uri, shard) as file:
        try:
            parquet = tables.open_parquet(file)
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, pa.ArrowInvalid):
                raise
            raise _damaged(shard, str(error.__cause__ or error)) from error
        if parquet.metadata.num_rows != shard.rows:
            raise _damaged(shard, f"{parquet.metadata.num_rows} rows, the manifest says {shard.rows}")
        missing = sorted(set(tables.REQUIRED_COLUMNS) - set(parquet.schema_arrow.names))
        if missing:
            raise _damaged(shard, f"no column {', '.join(missing)}")
        yield parquet


def _open(uri: str, shard: ShardEntry) -> BinaryIO:
    try:
        return storage.open_read(uri)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise _damaged(shard, f"there is no {uri!r}") from error
        raise


def read_rows(
    parquet: pq.ParquetFile, groups: list[int], chosen: npt.NDArray[np.int64], shard: ShardEntry
) -> Iterator[tuple[str, Row]]:
    """Id and token columns of the rows numbered `chosen` within these row groups, in that order.

    Raises:
        OutputError: the shard is damaged, or its columns have different lengths.
    """
    present = parquet.schema_arrow.names
    wanted = ["input_ids", "token_weights", "labels", *(n for n in present if n.startswith(tables.LOGPROBS_PREFIX))]
    names = [name for name in wanted if name in present]
    try:
        table = parquet.read_row_groups(groups, columns=["doc_id", *names])
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(shard, str(error)) from error
    doc_ids = table["doc_id"]
    columns = {name: tables.flat(table[name]) for name in names}
    offsets = columns["input_ids"][1]
    for name, (_, own) in columns.items():
        if not np.array_equal(own, offsets):
            raise _damaged(shard, f"{name} and input_ids have different lengths")
    for row in chosen:
        part = slice(offsets[row], offsets[row + 1])
        values = {name: flat_T[part].astype(_DTYPES.get(name, np.float32)) for name, (flat_T, _) in columns.items()}
        if "labels" not in values:  # published with a choice of columns
            values["labels"] = np.where(values["token_weights"] == 0, tables.IGNORED_LABEL, values["input_ids"])
        yield doc_ids[int(row)].as_py(), values


def _damaged(shard: ShardEntry, seen: str) -> OutputError:
    return OutputError(f"{shard.file} is damaged or was replaced: {seen}; find out with `curator verify`")
