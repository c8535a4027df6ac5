"""Anything that `datasets` can open: a hub name, a local folder, a builder with files, or a `save_to_disk` folder.

The data set is memory-mapped and read in small batches, never held whole. Only names of hub form touch the network, and
`datasets` runs no code of a repository. Row numbers are those of the opened split, so any part can be read directly.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field

from curator import storage
from curator.corpora.batches import iter_records
from curator.corpora.carried import missing_columns, plain_type
from curator.corpora.fields import RowFields
from curator.corpora.footer import check_columns
from curator.corpora.rows import Place, to_document
from curator.data import BadRow, Document, Extent, SourceFile, Split
from curator.errors import CorpusError, StorageError

_BATCH_BYTES = 1 << 24
_BATCH_ROWS = 4096
_LENGTHS_ROWS = 1 << 16
_CANNOT_OPEN = (  # datasets raises them all for bad data
    OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, pa.ArrowException,
)  # fmt: skip
_NOT_THERE = (None, errno.ENOENT)
_SAVED_MARKS = ("dataset_dict.json", "state.json")


class HubCorpus(RowFields):
    """One split of a data set."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )

    kind: Literal["hub"] = "hub"
    path: str = Field(min_length=1, description="hub name, local folder, builder such as `csv`, or save_to_disk folder")
    name: str | None = Field(default=None, description="configuration of the data set")
    split_name: str = Field(default="train", alias="split", description="split; a saved single split is taken as it is")
    revision: str | None = Field(default=None, description="hub revision; null = the default branch")
    data_files: tuple[str, ...] | None = Field(default=None, description="files or globs, for a builder or a folder")

    def list_sources(self) -> list[SourceFile]:
        """The split as one source; raises CorpusError when it cannot be opened."""
        rows = self._open()
        label = "/".join(part for part in (self._label(), self.name, self.split_name) if part)
        return [
            SourceFile(
                uri=self._local() or self.path,
                path=label,
                size_bytes=int(rows.data.nbytes),
                fingerprint=f"{rows._fingerprint}:{len(rows)}",
            )
        ]

    def split(self, source: SourceFile, target_bytes: int) -> Split:
        """Divide the rows into extents of about `target_bytes` of text."""
        rows = self._open()
        check_columns(_schema(rows), self.needed(), source.path)
        return Split(list(_cut_rows(_text_lengths(rows, self.text_field), target_bytes)))

    def read(self, source: SourceFile, extents: Sequence[Extent]) -> Iterator[tuple[int, Document | BadRow]]:
        """Yield (index into `extents`, row) in file order."""
        rows = self._open()
        schema, keys = _schema(rows), list(rows.column_names)
        names = check_columns(schema, self.needed(), source.path)
        row_bytes = max(rows.data.nbytes // max(len(rows.data), 1), 1)
        batch_rows = max(min(_BATCH_BYTES // row_bytes, _BATCH_ROWS), 1)
        rows = rows.select_columns(names).with_format("arrow") if names else None
        for index in sorted(range(len(extents)), key=lambda i: extents[i].start):
            stop = min(extents[index].stop, source_rows(source))
            for start in range(extents[index].start, stop, batch_rows):
                last = min(start + batch_rows, stop)
                records = _records(rows[start:last]) if rows is not None else ({} for _ in range(start, last))
                for row, record in enumerate(records, start):
                    place = Place(source.path, row)
                    if record is None:
                        yield index, place.bad("damaged_file", "its Arrow data point outside of the file")
                    else:
                        yield index, to_document(record, self, place, keys)

    def columns_schema(self, sources: Sequence[SourceFile]) -> pa.Schema:
        """Arrow types of the carried columns, as the data set declares them."""
        schema = _schema(self._open())
        found = check_columns(schema, self.columns, self.path)
        if len(found) < len(self.columns):
            raise missing_columns([name for name in self.columns if name not in found], schema.names)
        return pa.schema([pa.field(name, plain_type(name, schema.field(name).type)) for name in self.columns])

    def _local(self) -> str | None:
        """The absolute folder or file that `path` names, if there is one."""
        path = storage.absolute(self.path)
        return path if storage.local_path(self.path) is not None and os.path.exists(path) else None

    def _label(self) -> str:
        """A name for ids that does not depend on where a folder lies."""
        return self.path.rstrip("/").rpartition("/")[2] if self._local() or "://" in self.path else self.path

    def _open(self) -> Any:
        import datasets

        local = self._local()
        looks_local = self.path.startswith((".", "/", "~", "file:")) or self.path.count("/") > 1
        if local is None and looks_local and storage.local_path(self.path) is not None:
            raise CorpusError(f"corpus.path: there is no folder {self.path!r}; a hub name has the form org/name")
        place = local or self.path
        try:
            if (local or "://" in place) and any(storage.exists(storage.join(place, mark)) for mark in _SAVED_MARKS):
                saved = datasets.load_from_disk(place)
                return self._choose(saved) if isinstance(saved, datasets.DatasetDict) else saved
            return datasets.load_dataset(
                place,
                self.name,
                split=self.split_name,
                revision=self.revision,
                data_files=self._files(),
            )
        except (*_CANNOT_OPEN, datasets.exceptions.DatasetsError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, ConnectionError) or (isinstance(cause, OSError) and cause.errno not in _NOT_THERE):
                raise StorageError(f"cannot open the data set {self.path!r}: {cause}") from error
            which = f"{self.path!r} (name {self.name!r}, split {self.split_name!r})"
            raise CorpusError(f"cannot open the data set {which}: {_first_line(error)}") from error

    def _files(self) -> list[str] | None:
        """`data_files`; those of a builder absolute, since workers may run in another folder."""
        if self.data_files is None or self._local() or "/" in self.path:
            return None if self.data_files is None else list(self.data_files)
        return [storage.absolute(file) for file in self.data_files]

    def _choose(self, saved: Any) -> Any:
        if self.split_name not in saved:
            raise CorpusError(f"corpus.split: {self.path!r} has no split {self.split_name!r}; it has {list(saved)}")
        return saved[self.split_name]


def _first_line(error: BaseException) -> str:
    """What an error says, with what caused it: `datasets` puts the reason there."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{said}: {_first_line(error.__cause__)}" if error.__cause__ is not None else said


def source_rows(source: SourceFile) -> int:
    """Rows of the split, which its fingerprint ends with."""
    return int(source.fingerprint.rpartition(":")[2])


def _schema(rows: Any) -> pa.Schema:
    schema: pa.Schema = rows.data.schema
    return schema


def _records(rows: pa.Table) -> Iterator[Mapping[str, Any] | None]:
    """One record for each row, None for a damaged one.

    Arrow files carry no checksums, and Arrow trusts their offsets: where these point elsewhere, reading a value would
    read other memory or end the process. So they are held against their buffers first; of rows that fail together the
    sound ones are found by halving.
    """
    if all(_is_sound(column) for column in rows.columns):
        yield from iter_records(rows)
    elif rows.num_rows == 1:
        yield None
    else:
        half = rows.num_rows // 2
        yield from _records(rows.slice(0, half))
        yield from _records(rows.slice(half))


def _is_sound(column: pa.ChunkedArray) -> bool:
    """Whether offsets and sizes are; text that is not UTF-8 is a matter of its row, and checked after the offsets."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        return "UTF8" in str(error) and not pa.types.is_nested(column.type)
    return True


def _text_lengths(rows: Any, text_field: str) -> Iterator[npt.NDArray[np.int64]]:
    """Bytes of each text, in batches: only the offsets are read. Zeros where the column is missing or not text."""
    kind = _schema(rows).field(text_field).type if text_field in rows.column_names else pa.null()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        yield np.zeros(len(rows), np.int64)
        return
    rows = rows.select_columns([text_field]).with_format("arrow")
    for start in range(0, len(rows), _LENGTHS_ROWS):
        lengths = pc.binary_length(rows[start : start + _LENGTHS_ROWS].column(text_field))
        yield pc.fill_null(lengths, 0).to_numpy().astype(np.int64).clip(0, rows.data.nbytes)  # damaged offsets lie


def _cut_rows(batches: Iterator[npt.NDArray[np.int64]], target_bytes: int) -> Iterator[Extent]:
    """Extents that end with the first row at which `target_bytes` are reached."""
    start = row = held = 0
    for lengths in batches:
        done = 0
        while done < len(lengths):
            sums = held + np.cumsum(lengths[done:])
            cut = int(np.searchsorted(sums, target_bytes))
            if cut == len(sums):
                held = int(sums[-1])
                break
            done += cut + 1
            yield Extent(source=0, start=start, stop=row + done, first_row=start, size_bytes=int(sums[cut]))
            start, held = row + done, 0
        row += len(lengths)
    if row > start:
        yield Extent(source=0, start=start, stop=row, first_row=start, size_bytes=held)
