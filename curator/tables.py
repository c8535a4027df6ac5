"""The three kinds of parquet file that this project writes, their schemas and their encodings, in one place.

    tokens    doc_id, source, text, carried columns, input_ids, token_bytes     once per tokenizer
    scores    logprobs, entropy and rank on request                             once per model, row-aligned with tokens
    curated   tokens, labels, token_weights, logprobs_<model> per model         the published data set

Invariants: list columns of one row have one length and one alignment (see `curator.data`); a column is never null,
"no score" is NaN; the same table written twice gives the same bytes. Encodings were chosen by measurement on real
scores (`benchmarks/storage_size.py`).

Shapes: T tokens of many rows laid end to end, D rows.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from io import SEEK_END
from os import PathLike
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curator.errors import CorpusError, OutputError, StorageError

ROW_GROUP_TOKENS = 262_144
"""Tokens after which writers close a row group: what a reader holds at once (about 2 MB for each float column)."""

IGNORED_LABEL = -100
"""Label of a token that is not trained on; PyTorch's and transformers' `ignore_index`."""

LOGPROBS_PREFIX = "logprobs_"

REQUIRED_COLUMNS = ("doc_id", "input_ids", "token_weights")
"""Columns of curated/ that no choice of columns leaves out: without them nothing can be joined, trained or checked."""

TOKEN_IDS = pa.list_(pa.int32())
WEIGHTS = pa.list_(pa.float32())
SCORES = pa.list_(pa.float16())

_TOKEN_COLUMNS = ("doc_id", "source", "text", "input_ids", "token_bytes")
_CURATED_COLUMNS = (*_TOKEN_COLUMNS, "labels", "token_weights")
_FEATURE_TYPES = {"entropy": SCORES, "rank": TOKEN_IDS}

_ZSTD_LEVEL = 3
_DICTIONARY_COLUMNS = ("source", "token_bytes", "token_weights")  # few distinct values; hard weights take 1 bit
_SPLIT_COLUMNS = ("input_ids", "logprobs", "entropy", "rank")  # high bytes repeat, low ones are noise: kept apart
_STATISTICS_COLUMNS = ["doc_id", "source"]


# ---------------------------------------------------------------------------------------------- schemas


def token_schema(carried: pa.Schema) -> pa.Schema:
    """Columns of a tokens file: the document, the corpus columns that it carries, its ids and their bytes.

    Raises:
        CorpusError: a carried column has the name of one of ours.
    """
    _check_carried(carried)
    head = [_column("doc_id", pa.string()), _column("source", pa.string()), _column("text", pa.large_string())]
    return pa.schema([*head, *carried, _column("input_ids", TOKEN_IDS), _column("token_bytes", TOKEN_IDS)])


def score_schema(features: Sequence[str]) -> pa.Schema:
    """Columns of one model's score file: `logprobs` in nats, then the features in the order entropy, rank."""
    unknown = sorted(set(features) - set(_FEATURE_TYPES))
    if unknown:
        raise OutputError(f"unknown score features {unknown}; known are {sorted(_FEATURE_TYPES)}")
    chosen = [_column(name, kind) for name, kind in _FEATURE_TYPES.items() if name in features]
    return pa.schema([_column("logprobs", SCORES), *chosen])


def curated_schema(
    carried: pa.Schema, models: Sequence[str], columns: Literal["all"] | Sequence[str] = "all"
) -> pa.Schema:
    """Columns of the published data set.

    Args:
        carried: the corpus columns that the tokens files hold.
        models: names whose log-probs are published, in their order.
        columns: "all", or the names wanted; the order is always ours, and `REQUIRED_COLUMNS` are always there.

    Raises:
        OutputError: `columns` has a name that this data set cannot have.
    """
    lists = [_column("labels", TOKEN_IDS), _column("token_weights", WEIGHTS)]
    logprobs = [_column(LOGPROBS_PREFIX + name, SCORES) for name in models]
    everything = pa.schema([*token_schema(carried), *lists, *logprobs])
    if columns == "all":
        return everything
    unknown = [name for name in columns if name not in everything.names]
    if unknown:
        raise OutputError(f"output.columns names {unknown}; this data set can have {everything.names}")
    return pa.schema([field for field in everything if field.name in {*columns, *REQUIRED_COLUMNS}])


def _column(name: str, kind: pa.DataType) -> pa.Field:
    """A column without nulls. List elements stay nullable in type, so that types equal the plain `list<int32>`."""
    return pa.field(name, kind, nullable=False)


def _check_carried(carried: pa.Schema) -> None:
    taken = [name for name in carried.names if name in _CURATED_COLUMNS or name.startswith(LOGPROBS_PREFIX)]
    twice = sorted({name for name in carried.names if carried.names.count(name) > 1})
    if taken or twice:
        raise CorpusError(
            f"corpus.columns cannot carry {taken or twice}: the names are taken by curated columns or repeated; "
            "rename them in the corpus or leave them out"
        )


# ---------------------------------------------------------------------------------------------- list columns


def list_array(values_T: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    """Cut a flat array into one list per row, without copying the values.

    Args:
        values_T: shape (T,), of a type that Arrow knows.
        offsets: shape (D+1,), from 0 to T, never falling: row d holds values_T[offsets[d]:offsets[d + 1]].

    Raises:
        OutputError: the offsets do not fit the values, or exceed the 32 bits of a list column.
    """
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(values_T) or np.any(np.diff(offsets) < 0):
        raise OutputError(f"{len(offsets)} offsets do not divide {len(values_T)} values; they run from 0 to T and rise")
    if len(values_T) > np.iinfo(np.int32).max:
        raise OutputError(f"{len(values_T)} values exceed one list column's 2^31 - 1; write smaller row groups")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values_T))


def flat(column: pa.ChunkedArray | pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Lay the lists of a column end to end; the inverse of `list_array`.

    Returns:
        values_T, a read-only view of Arrow's memory where the column is in one chunk, and offsets of shape (D+1,)
        that start at 0.

    Raises:
        StorageError: the column is no list column of numbers, or holds nulls, which no file of ours does.
    """
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise StorageError(f"expected a column of lists, found {column.type}; the file was not written by curator")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_flat_chunk(chunk) for chunk in chunks if len(chunk)]
    if not parts:
        return np.empty(0, column.type.value_type.to_pandas_dtype()), np.zeros(1, np.int64)
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(values_T) for values_T, _ in parts)])
    rows = [offsets[1:] + start for (_, offsets), start in zip(parts, starts, strict=False)]
    return np.concatenate([values_T for values_T, _ in parts]), np.concatenate([np.zeros(1, np.int64), *rows])


def _flat_chunk(chunk: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    offsets = chunk.offsets.to_numpy().astype(np.int64)
    values = chunk.values.slice(offsets[0], offsets[-1] - offsets[0])
    if chunk.null_count or values.null_count:
        raise StorageError("a list column holds nulls; the file was not written by curator or is damaged")
    return values.to_numpy(zero_copy_only=True), offsets - offsets[0]


# ---------------------------------------------------------------------------------------------- files


def open_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a parquet file of one of the three kinds for writing; each `write_table` makes one row group.

    Args:
        sink: a path or a writable binary file.
        schema: from one of the functions above; carried columns may be of any type.
    """
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=[_leaf(schema, name) for name in _DICTIONARY_COLUMNS if name in schema.names] or False,
        column_encoding={_leaf(schema, name): "BYTE_STREAM_SPLIT" for name in schema.names if _is_split(schema, name)},
        write_statistics=[name for name in _STATISTICS_COLUMNS if name in schema.names] or False,
    )


def _is_split(schema: pa.Schema, name: str) -> bool:
    """By type too: a carried column may be called `rank` and hold anything."""
    ours = name in _SPLIT_COLUMNS or name.startswith(LOGPROBS_PREFIX)
    return ours and schema.field(name).type in (TOKEN_IDS, SCORES)


def _leaf(schema: pa.Schema, name: str) -> str:
    """The column's path inside the file."""
    return f"{name}.list.element" if pa.types.is_list(schema.field(name).type) else name


def open_parquet(source: Any) -> pq.ParquetFile:
    """Open a parquet file of ours for reading; refuses Arrow extension types, whose classes may run code.

    Args:
        source: a path or a seekable binary file.

    Raises:
        StorageError: the file is no parquet file, is damaged, or names an extension type.
    """
    name = source if isinstance(source, str | PathLike) else getattr(source, "path", source)
    try:
        if isinstance(source, str | PathLike):
            with open(source, "rb") as file:
                footer = _read_footer(file)
        else:
            footer = _read_footer(source)
        if _names_extension(footer):
            raise StorageError(f"{name} has a column of an Arrow extension type; it was not written by curator")
        return pq.ParquetFile(source, arrow_extensions_enabled=False)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | StorageError):
            raise
        raise StorageError(f"{name} is not a readable parquet file: {error}; write it again") from error


def _read_footer(file: Any) -> bytes:
    """The footer's bytes, its length and the magic; nothing where the file is too short to have one."""
    size = file.seek(0, SEEK_END)
    file.seek(max(size - 8, 0))
    length = int.from_bytes(file.read(8)[:4], "little") + 8
    file.seek(max(size - length, 0))
    footer: bytes = file.read(min(length, size))
    file.seek(0)
    return footer


def _names_extension(footer: bytes) -> bool:
    """Whether the Arrow schema inside a footer names an extension type.

    Arrow would hand such a column to the class that some library of this process has registered under the name,
    whatever the settings of the reader. The schema is base64; one that cannot be found or decoded counts as naming one.
    """
    encoded = re.findall(rb"ARROW:schema\x18[\x80-\xff]*[\x00-\x7f]([A-Za-z0-9+/=]*)", footer)
    if len(encoded) != footer.count(b"ARROW:schema"):
        return True
    for text in encoded:
        try:
            schema = base64.b64decode(text)
        except binascii.Error:
            return True
        if b"ARROW:extension:name" in schema:
            return True
    return False
