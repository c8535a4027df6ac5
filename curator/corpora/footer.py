"""Opening a parquet file without running code for it, and telling a file that was cut short from a sound one.

A parquet footer may carry an Arrow schema with extension types. Arrow hands those to whatever class some library of
this process has registered under their name, and such classes have run pickles (ray#62056). So the names are blanked
out in the footer's bytes before Arrow sees them: the columns then come as their plain storage, marked, and
`check_columns` refuses those that are needed.
"""

import base64
import binascii
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from curator import storage
from curator.corpora.blocks import Damage, reading
from curator.corpora.pages import CheckedFile
from curator.corpora.thrift import ColumnChunk, column_chunks
from curator.errors import CorpusError

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_READ_BYTES = 1 << 23
_SCHEMA_KEY, _SCHEMA_KEY_BLANKED = b"ARROW:schema", b"BLANK:schema"
_EXTENSION_KEY, _EXTENSION_KEY_BLANKED = b"ARROW:extension:name", b"BLANK:extension:name"


@dataclass(frozen=True)
class ParquetSource:
    """An open parquet file.

    Attributes:
        file: the reader; extension types appear as their storage.
        schema: columns of the file; a field that had an extension type is marked in its metadata.
        groups: row numbers [start, stop) of the row groups.
        places: what the footer's bytes say of the column chunks, for `chunks`; or why they cannot be decoded.
        handle: what Arrow reads from.
    """

    file: pq.ParquetFile
    schema: pa.Schema
    groups: list[tuple[int, int]]
    places: list[list[ColumnChunk]] | ValueError
    handle: CheckedFile

    def batches(self, group: int, rows: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns of one row group; Arrow fails at a page that claims to be larger than it can be."""
        self.handle.expect(self.chunks()[group])
        batches: Iterator[pa.RecordBatch] = self.file.iter_batches(
            rows, row_groups=[group], columns=list(names), use_threads=False
        )
        return batches

    def chunks(self) -> list[list[ColumnChunk]]:
        """The column chunks of each row group; raises Damage."""
        if isinstance(self.places, ValueError):
            raise Damage("damaged_file", str(self.places)) from self.places
        return self.places


@contextmanager
def open_parquet(uri: str) -> Iterator[ParquetSource]:
    """Open a parquet file of at least one byte.

    Raises:
        Damage: it has no footer that can be read.
        StorageError: the file cannot be read.
    """
    with storage.open_read(uri) as handle:
        with reading(uri):
            footer = _read_footer(handle)
        places = _places_of_chunks(footer)
        try:
            metadata = _parse_footer(_without_extensions(footer))
            checked = CheckedFile(handle)
            file = pq.ParquetFile(
                checked,
                metadata=metadata,
                buffer_size=_buffer_bytes(places),
                pre_buffer=False,
                page_checksum_verification=True,
                arrow_extensions_enabled=False,
            )
            schema = file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Damage("damaged_file", f"its footer cannot be read: {error}") from error
        stop, groups = 0, []
        for index in range(metadata.num_row_groups):
            start, stop = stop, stop + metadata.row_group(index).num_rows
            groups.append((start, stop))
        yield ParquetSource(file, schema, groups, places, checked)


def _read_footer(handle: BinaryIO) -> bytes:
    size_bytes = handle.seek(0, 2)
    handle.seek(0)
    head = handle.read(len(_MAGIC))
    handle.seek(max(size_bytes - _TAIL_BYTES, 0))
    tail = handle.read(_TAIL_BYTES)
    if head != _MAGIC[: len(head)]:
        raise Damage("damaged_file", "it does not begin like a parquet file; is kind right?")
    if len(tail) < _TAIL_BYTES or tail[4:] != _MAGIC:
        raise Damage("truncated_file", f"it ends after {size_bytes} bytes without a footer, so no row can be found")
    (length,) = struct.unpack("<I", tail[:4])
    if length > size_bytes - _TAIL_BYTES - len(_MAGIC):
        raise Damage("damaged_file", f"its footer claims {length} bytes, more than the file has")
    handle.seek(size_bytes - _TAIL_BYTES - length)
    return handle.read(length)


def _places_of_chunks(footer: bytes) -> list[list[ColumnChunk]] | ValueError:
    try:
        return column_chunks(footer)
    except ValueError as error:
        return error


def _buffer_bytes(places: list[list[ColumnChunk]] | ValueError) -> int:
    """Column chunks of a usual size are read whole (0), which copies nothing; larger ones through a buffer."""
    if isinstance(places, ValueError):
        return _READ_BYTES
    largest = max((chunk.stop - chunk.start for group in places for chunk in group), default=0)
    return 0 if largest <= _READ_BYTES else _READ_BYTES


def _parse_footer(footer: bytes) -> Any:
    alone = b"".join([_MAGIC, footer, struct.pack("<I", len(footer)), _MAGIC])
    return pq.read_metadata(pa.BufferReader(alone), arrow_extensions_enabled=False)


def _without_extensions(footer: bytes) -> bytes:
    """The footer with the names of extension types blanked; without its Arrow schema where that is not sure to work."""
    blanked = footer.replace(_SCHEMA_KEY, _SCHEMA_KEY_BLANKED)
    if blanked == footer:
        return footer
    encoded = (_parse_footer(blanked).metadata or {}).get(_SCHEMA_KEY_BLANKED, b"")
    try:
        schema = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return blanked
    plain = base64.b64encode(schema.replace(_EXTENSION_KEY, _EXTENSION_KEY_BLANKED))
    sure = footer.count(_SCHEMA_KEY) == 1 and footer.count(encoded) == 1 and len(plain) == len(encoded)
    return footer.replace(encoded, plain) if sure else blanked


def check_columns(schema: pa.Schema, names: Sequence[str], place: str) -> list[str]:
    """Which of the named columns are in the schema.

    Raises:
        CorpusError: one of them has an Arrow extension type, or there are two of its name.
    """
    for name in names:
        fields = [schema.field(i) for i in schema.get_all_field_indices(name)]
        if len(fields) > 1:
            raise CorpusError(f"{place!r} has {len(fields)} columns named {name!r}; rename all but one")
        if fields and _has_extension(fields[0]):
            raise CorpusError(
                f"{place!r}: column {name!r} has an Arrow extension type, which is never loaded from a corpus; "
                "store it as a plain type"
            )
    return [name for name in names if name in schema.names]


def _has_extension(field: pa.Field) -> bool:
    marks = {_EXTENSION_KEY, _EXTENSION_KEY_BLANKED}
    if isinstance(field.type, pa.BaseExtensionType) or marks & set(field.metadata or {}):
        return True
    return any(_has_extension(field.type.field(i)) for i in range(field.type.num_fields))
