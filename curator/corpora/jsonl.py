"""JSON lines: one object a line, plain, gzip or zstd.

Plain files are split inside the file, at line ends; planning reads them once, counting lines. Compressed files are
streamed once to freeze row ranges.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from curator.corpora.carried import SAMPLE_ROWS, infer_schema
from curator.corpora.fields import RowFields
from curator.corpora.files import list_source_files
from curator.corpora.lines import Line, read_lines, split_lines
from curator.corpora.rows import Place, parse_object, to_document
from curator.data import UNTIL_END, BadRow, Document, Extent, SourceFile, Split


class JsonlCorpus(RowFields):
    """JSON lines, plain or compressed with gzip or zstd (told by the first bytes, not by the name)."""

    kind: Literal["jsonl"] = "jsonl"
    uri: str = Field(min_length=1, description="file or glob, on any fsspec storage")

    def list_sources(self) -> list[SourceFile]:
        """The files in the order of their paths; raises CorpusError when nothing matches."""
        return list_source_files(self.uri)

    def split(self, source: SourceFile, target_bytes: int) -> Split:
        """Divide one file into extents of whole lines: byte ranges, or row ranges of a compressed file."""
        return split_lines(source, target_bytes)

    def read(self, source: SourceFile, extents: Sequence[Extent]) -> Iterator[tuple[int, Document | BadRow]]:
        """Yield (index into `extents`, row) in file order, one for each line."""
        for index, line in read_lines(source, extents, self.max_row_bytes):
            record = self._parse(source, line)
            place = Place(source.path, line.row, line.offset)
            yield index, record if isinstance(record, BadRow) else to_document(record, self, place)

    def columns_schema(self, sources: Sequence[SourceFile]) -> pa.Schema:
        """Arrow types of the carried columns, from the first rows of the first files."""
        if not self.columns:
            return pa.schema([])
        return infer_schema(self.columns, islice(self._records(sources), SAMPLE_ROWS))

    def _records(self, sources: Sequence[SourceFile]) -> Iterator[dict[str, Any]]:
        whole = Extent(source=0, start=0, stop=UNTIL_END, first_row=0, size_bytes=0)
        for source in sources:
            for _, line in read_lines(source, [whole], self.max_row_bytes):
                record = self._parse(source, line)
                if not isinstance(record, BadRow):
                    yield record

    def _parse(self, source: SourceFile, line: Line) -> dict[str, Any] | BadRow:
        place = Place(source.path, line.row, line.offset)
        if line.data is None:
            return place.bad("row_too_long", f"{line.size_bytes} bytes; max_row_bytes is {self.max_row_bytes}")
        return parse_object(line.data, place)
