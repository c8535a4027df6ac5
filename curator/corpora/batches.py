"""Rows of Arrow batches, for the columnar readers: plain Python values, unreadable ones marked, none lost."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from curator.corpora.rows import Unreadable

_PYTHON_REFUSES = (ValueError, OverflowError, TypeError, NotImplementedError)


def iter_records(batch: pa.RecordBatch | pa.Table) -> Iterator[Mapping[str, Any]]:
    """One dict for each row of a batch; a batch without columns gives empty dicts."""
    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
    for i in range(batch.num_rows):
        yield {name: values[i] for name, values in columns.items()}


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except _PYTHON_REFUSES:  # one value spoils the whole call: find out which
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return Unreadable(bytes(error.object), f"not UTF-8 at byte {error.start}")
    except _PYTHON_REFUSES as error:  # such as a date after the year 9999
        return Unreadable(None, f"a {scalar.type} that Python cannot hold: {error}")
