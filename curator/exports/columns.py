"""Writing rows of token columns into the containers that several trainers read: parquet, datasets on disk, JSON lines.

Invariant: memory holds one row group, whatever the size of the export.
"""

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curator.tables import ROW_GROUP_TOKENS, list_array

FileRow = Mapping[str, npt.NDArray[Any]]
"""What one row of a file holds, by column; the columns of a row may have different lengths."""

_FILE_TOKENS = 1 << 27
"""Tokens after which a further parquet file is begun: about 1 GB, so that loaders can read files in parallel."""


def write_parquet(rows: Iterable[FileRow], folder: Path) -> None:
    """Write rows as list columns into `folder/train-00000.parquet` and so on."""
    folder.mkdir()
    groups = group_rows(rows)
    for number in itertools.count():
        group = next(groups, None)
        if group is None:
            return
        table, tokens = list_table(group), 0
        with pq.ParquetWriter(folder / f"train-{number:05d}.parquet", table.schema, compression="zstd") as writer:
            while True:
                writer.write_table(table)
                tokens += _count_tokens(group)
                if tokens >= _FILE_TOKENS or (group := next(groups, None)) is None:
                    break
                table = list_table(group)


def write_dataset(tables: Iterable[pa.Table], folder: Path) -> None:
    """Write tables of one schema as a folder that `datasets.load_from_disk` opens."""
    import datasets

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, _without_progress_bars():
        path = Path(scratch) / "data.arrow"
        first, rest = next(iter(tables := iter(tables))), tables
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            for table in itertools.chain([first], rest):
                writer.write_table(table)
        datasets.Dataset.from_file(str(path)).save_to_disk(str(folder))


def write_json_lines(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write one JSON object a line, in UTF-8."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")


def group_rows(rows: Iterable[FileRow]) -> Iterator[list[FileRow]]:
    """Rows in lists of about `ROW_GROUP_TOKENS` tokens; no list is empty."""
    group: list[FileRow] = []
    tokens = 0
    for row in rows:
        group.append(row)
        tokens += _count_tokens([row])
        if tokens >= ROW_GROUP_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def list_table(rows: Sequence[FileRow]) -> pa.Table:
    """A table of list columns, without a Python object for each value."""
    return pa.table({name: list_column([row[name] for row in rows]) for name in rows[0]})


def list_column(values: Sequence[npt.NDArray[Any]]) -> pa.ListArray:
    """Arrays of one type and any lengths as a list column."""
    return list_array(np.concatenate(values), np.cumsum([0, *(len(value) for value in values)]))


def _count_tokens(rows: Sequence[FileRow]) -> int:
    return sum(max(len(values) for values in row.values()) for row in rows)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
