"""Parquet files: extents are runs of rows that end at row groups, and only the needed columns are read.

A row group much larger than the target is cut inside, at row numbers; such a file is `streamed`, so that one worker
decodes it once while its scoring still spreads over shards. Batches are small whatever the row groups are.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import pyarrow as pa
from pydantic import Field

from curator.corpora.batches import iter_records
from curator.corpora.blocks import Damage, plain_blocks
from curator.corpora.carried import missing_columns, plain_type
from curator.corpora.fields import RowFields
from curator.corpora.files import list_source_files
from curator.corpora.footer import ParquetSource, check_columns, open_parquet
from curator.corpora.rows import Place, to_document
from curator.data import BadRow, Document, Extent, SourceFile, Split
from curator.errors import CorpusError

_LARGEST_RATIO = 10_000  # beyond any codec on text
_BATCH_BYTES = 1 << 24
_BATCH_ROWS = 1024  # what damage inside a row group costs at most, besides the rest of the group

Wanted = list[tuple[int, int, int]]
"""Rows to read of one row group: (index of the extent, start, stop), in file order."""


class ParquetCorpus(RowFields):
    """Parquet files with named columns."""

    kind: Literal["parquet"] = "parquet"
    uri: str = Field(min_length=1, description="file or glob, on any fsspec storage")

    def list_sources(self) -> list[SourceFile]:
        """The files in the order of their paths; raises CorpusError when nothing matches."""
        return list_source_files(self.uri)

    def split(self, source: SourceFile, target_bytes: int) -> Split:
        """Divide one file into row ranges of about `target_bytes` of needed columns, from its footer alone."""
        if source.size_bytes == 0:
            return Split([])
        try:
            with open_parquet(source.uri) as parquet:
                check_columns(parquet.schema, self.needed(), source.path)
                parts = list(_cut_groups(parquet, _sizes_of_groups(parquet, self.needed(), source), target_bytes))
                return Split(_pack(parts, target_bytes), streamed=len(parts) > len(parquet.groups))
        except Damage as cause:
            return Split([], damage=[Place(source.path, None, 0).bad(cause.reason, cause.detail)])

    def read(self, source: SourceFile, extents: Sequence[Extent]) -> Iterator[tuple[int, Document | BadRow]]:
        """Yield (index into `extents`, row) in file order; the unreadable rest of a row group is one bad row."""
        if source.size_bytes == 0:
            return
        try:
            with open_parquet(source.uri) as parquet:
                for group, (start, stop) in enumerate(parquet.groups):
                    wanted = sorted(
                        ((i, max(e.start, start), min(e.stop, stop)) for i, e in enumerate(extents)),
                        key=lambda part: part[1],
                    )
                    wanted = [part for part in wanted if part[1] < part[2]]
                    if wanted:
                        yield from self._read_group(source, parquet, group, wanted)
        except Damage:
            return  # no footer: known since planning, which made no extents; only a sample comes here

    def columns_schema(self, sources: Sequence[SourceFile]) -> pa.Schema:
        """Arrow types of the carried columns: each as in the first file that has it."""
        found: dict[str, pa.Field] = {}
        available: dict[str, None] = {}
        damaged: list[str] = []
        for source in sources:
            if len(found) == len(self.columns):
                break
            schema = _schema_of(source, damaged)
            for name in check_columns(schema, self.columns, source.path):
                found.setdefault(name, pa.field(name, plain_type(name, schema.field(name).type)))
            available.update(dict.fromkeys(schema.names))
        missing = [name for name in self.columns if name not in found]
        if missing and damaged:
            raise CorpusError(
                f"corpus.columns: {missing} are in no file that can be read; damaged are {len(damaged)}, such as "
                f"{damaged[0]}; replace them, or leave these columns out"
            )
        if missing:
            raise missing_columns(missing, available)
        return pa.schema([found[name] for name in self.columns])

    def _read_group(
        self, source: SourceFile, parquet: ParquetSource, group: int, wanted: Wanted
    ) -> Iterator[tuple[int, Document | BadRow]]:
        names = check_columns(parquet.schema, self.needed(), source.path)
        keys = parquet.schema.names
        position = parquet.groups[group][0]
        try:
            for batch in _batches(source, parquet, group, names, max(stop for _, _, stop in wanted)):
                for index, start, stop in wanted:
                    first, last = max(start, position), min(stop, position + batch.num_rows)
                    here = batch.slice(first - position, last - first) if first < last else batch.slice(0, 0)
                    for row, record in enumerate(iter_records(here), first):
                        yield index, to_document(record, self, Place(source.path, row), keys)
                position += batch.num_rows
        except Damage as cause:
            offset = _range_of_group(parquet, group)[0]
            for index, start, stop in wanted:
                if stop > position:
                    detail = f"rows {max(start, position)} to {stop - 1} of row group {group}: {cause.detail}"
                    yield index, Place(source.path, None, offset).bad(cause.reason, detail)


def _schema_of(source: SourceFile, damaged: list[str]) -> pa.Schema:
    """Columns of one file; none when it is empty or damaged, which is noted."""
    if source.size_bytes == 0:
        return pa.schema([])
    try:
        with open_parquet(source.uri) as parquet:
            return parquet.schema
    except Damage as cause:
        damaged.append(f"{source.path!r} ({cause.detail})")
        return pa.schema([])


def _sizes_of_groups(parquet: ParquetSource, names: Sequence[str], source: SourceFile) -> list[int]:
    """Uncompressed bytes of the named columns in each row group; a damaged footer may claim any, so they are capped."""
    limit = source.size_bytes * _LARGEST_RATIO
    return [min(sum(c.size_bytes for c in chunks if c.name in names), limit) for chunks in parquet.chunks()]


def _cut_groups(parquet: ParquetSource, sizes: Sequence[int], target_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, bytes) of each row group, or of its pieces where it is at least twice the target."""
    for group, (start, stop) in enumerate(parquet.groups):
        rows, size_bytes = stop - start, sizes[group]
        pieces = max(min(size_bytes // target_bytes, rows), 1)
        for piece in range(pieces):
            first, last = start + rows * piece // pieces, start + rows * (piece + 1) // pieces
            if first < last:
                yield first, last, size_bytes * (last - first) // rows


def _pack(parts: Sequence[tuple[int, int, int]], target_bytes: int) -> list[Extent]:
    """Join neighbouring parts until they reach the target."""
    extents: list[Extent] = []
    for start, stop, size_bytes in parts:
        last = extents[-1] if extents else None
        if last is not None and last.size_bytes + size_bytes <= target_bytes:
            joined = {"stop": stop, "size_bytes": last.size_bytes + size_bytes}
            extents[-1] = last.model_copy(update=joined)
        else:
            extents.append(Extent(source=0, start=start, stop=stop, first_row=start, size_bytes=size_bytes))
    return extents


def _batches(
    source: SourceFile, parquet: ParquetSource, group: int, names: Sequence[str], stop: int
) -> Iterator[pa.RecordBatch]:
    """The named columns of one row group up to row `stop`, in batches of about 16 MB; the file alone sets their cuts.

    Raises:
        Damage: the rest of the row group cannot be decoded.
        StorageError: its bytes cannot be read.
    """
    first, end = parquet.groups[group]
    row_bytes = max(parquet.file.metadata.row_group(group).total_byte_size // (end - first), 1)
    batch_rows = max(min(_BATCH_BYTES // row_bytes, _BATCH_ROWS), 1)
    if not names:
        for start in range(first, stop, batch_rows):
            yield pa.RecordBatch.from_struct_array(pa.array([{}] * min(batch_rows, end - start), pa.struct([])))
        return
    position = first
    try:
        batches = parquet.batches(group, batch_rows, names)
        while position < stop:
            batch = next(batches, None)
            if batch is None:
                raise Damage("damaged_file", f"the row group ends {end - position} rows early")
            position += batch.num_rows
            yield batch
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        for _ in plain_blocks(source.uri, *_range_of_group(parquet, group)):
            pass  # raises StorageError if it was the storage that failed, which no one should call damage
        raise parquet.handle.damage or Damage("damaged_file", str(error)) from error


def _range_of_group(parquet: ParquetSource, group: int) -> tuple[int, int]:
    """First byte of a row group in the file, and the byte after its last."""
    chunks = parquet.chunks()[group]
    return min(chunk.start for chunk in chunks), max(chunk.stop for chunk in chunks)
