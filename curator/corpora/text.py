"""Plain text: one document a file, or a line each; plain, gzip or zstd.

A document of a whole file is read whole (up to `max_row_bytes`); lines are split like those of JSON lines.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import pyarrow as pa
from pydantic import Field

from curator.corpora.blocks import Damage, detect_compression, read_unpacked, unpacked_blocks
from curator.corpora.fields import RowFields
from curator.corpora.files import list_source_files
from curator.corpora.lines import Line, read_lines, split_lines
from curator.corpora.rows import Place, decode_utf8, to_document
from curator.data import BadRow, Document, Extent, SourceFile, Split, StrictModel

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TextCorpus(StrictModel):
    """Text files; the id is the relative path, or `<relative path>:<row>` with a document a line."""

    kind: Literal["text"] = "text"
    uri: str = Field(min_length=1, description="file or glob, on any fsspec storage")
    unit: Literal["file", "line"] = Field(default="file", description="what is one document")
    source: str = Field(default="", description="source of every document")
    source_from_folder: bool = Field(default=False, description="take the name of the file's folder as its source")
    columns: tuple[str, ...] = Field(default=(), max_length=0, description="always empty: text has no other fields")
    max_row_bytes: int = Field(default=256_000_000, ge=1, description="longer documents are quarantined")

    def list_sources(self) -> list[SourceFile]:
        """The files in the order of their paths; raises CorpusError when nothing matches."""
        return list_source_files(self.uri)

    def split(self, source: SourceFile, target_bytes: int) -> Split:
        """One row a file, or extents of whole lines; a damaged compressed file gives no document of a whole file."""
        if self.unit == "line":
            return split_lines(source, target_bytes)
        compression = detect_compression(source.uri)
        size_bytes = 0 if compression != "plain" else source.size_bytes
        try:
            if compression != "plain":
                size_bytes = read_unpacked(source.uri, compression, lambda blocks: sum(map(len, blocks)))
        except Damage as cause:
            return Split([], damage=[Place(source.path, None, 0).bad(cause.reason, cause.detail)])
        extent = Extent(source=0, start=0, stop=1, first_row=0, size_bytes=size_bytes)
        return Split([extent] if size_bytes else [])

    def read(self, source: SourceFile, extents: Sequence[Extent]) -> Iterator[tuple[int, Document | BadRow]]:
        """Yield (index into `extents`, row) in file order."""
        fields = RowFields(id_field="id", max_row_bytes=self.max_row_bytes)
        if self.unit == "line":
            for index, line in read_lines(source, extents, self.max_row_bytes):
                yield index, self._judge(source, line, fields)
            return
        whole = self._read_whole(source) if extents else None
        if whole is not None:
            yield 0, self._judge(source, whole, fields)

    def columns_schema(self, sources: Sequence[SourceFile]) -> pa.Schema:
        """No columns are carried."""
        return pa.schema([])

    def _read_whole(self, source: SourceFile) -> Line | None:
        """The file as one row; None where there is none (empty or damaged, which planning recorded)."""
        kept, size_bytes = list[bytes](), 0
        try:
            for block in unpacked_blocks(source.uri, detect_compression(source.uri)):
                size_bytes += len(block)
                if size_bytes <= self.max_row_bytes + len(_BYTE_ORDER_MARK):
                    kept.append(block)
                else:
                    kept.clear()
        except Damage:
            return None
        if size_bytes == 0:
            return None
        data = b"".join(kept).removeprefix(_BYTE_ORDER_MARK)
        too_long = not kept or len(data) > self.max_row_bytes
        return Line(0, 0, None if too_long else data, size_bytes)

    def _judge(self, source: SourceFile, line: Line, fields: RowFields) -> Document | BadRow:
        place = Place(source.path, line.row, line.offset)
        if line.data is None:
            return place.bad("row_too_long", f"{line.size_bytes} bytes; max_row_bytes is {self.max_row_bytes}")
        data = line.data.removesuffix(b"\r") if self.unit == "line" else line.data
        text = decode_utf8(data, place)
        if isinstance(text, BadRow):
            return text
        if self.unit == "line" and (not text or text.isspace()):
            return place.bad("blank_line")
        folder = source.uri.rpartition("/")[0].rpartition("/")[2]
        name = folder if self.source_from_folder else self.source
        return to_document({"text": text, "source": name, "id": self._id(source)}, fields, place)

    def _id(self, source: SourceFile) -> str | None:
        return source.path if self.unit == "file" else None
