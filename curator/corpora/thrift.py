"""What a parquet footer says of its column chunks, and a page header of its page, read from their Thrift bytes.

pyarrow gives the former, too, but its accessor ends the process (`std::terminate`) on some damaged footers, and a
corpus must not be able to do that. Here damage is a ValueError. Formats: Thrift's compact protocol, `parquet.thrift`.
"""

from typing import Any, NamedTuple

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)
_DEEPEST = 32


class ColumnChunk(NamedTuple):
    """One column of a row group.

    Attributes:
        name: top-level column.
        size_bytes: uncompressed.
        start: first byte in the file.
        stop: byte after the last.
        values: in all its pages.
    """

    name: str
    size_bytes: int
    start: int
    stop: int
    values: int


class PageHeader(NamedTuple):
    """What stands before a page: its own length, the page's bytes as stored and as unpacked, and its values."""

    length: int
    packed_bytes: int
    unpacked_bytes: int
    values: int


def column_chunks(footer: bytes) -> list[list[ColumnChunk]]:
    """The column chunks of each row group.

    Args:
        footer: the bytes of the file's FileMetaData.

    Raises:
        ValueError: the footer is damaged.
    """
    try:
        groups = _Decoder(footer).struct(0)[4]
        return [[_chunk(column[3]) for column in group[1]] for group in groups]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the footer's Thrift bytes are damaged: {error!r}") from error


def _chunk(metadata: dict[int, Any]) -> ColumnChunk:
    start = max(min(metadata[9], metadata.get(11) or metadata[9]), 0)
    return ColumnChunk(metadata[3][0].decode(), max(metadata[6], 0), start, start + metadata[7], max(metadata[5], 0))


def page_header(data: bytes, start: int) -> PageHeader | None:
    """The page header that begins at `start`; None where the data end inside it.

    Raises:
        ValueError: it is damaged.
    """
    decoder = _Decoder(data, start)
    try:
        fields = decoder.struct(0)
    except IndexError:
        return None
    except TypeError as error:
        raise ValueError(f"its header is damaged: {error!r}") from error
    try:
        data_page = fields.get(5) or fields.get(8) or {}  # in version 1 or 2; a dictionary's values are not counted
        header = PageHeader(decoder.position - start, fields[3], fields[2], data_page.get(1, 0))
        if not all(isinstance(number, int) for number in header) or header.values < 0:
            raise ValueError(f"its header is damaged: it has {header.values!r} values")
    except (LookupError, AttributeError) as error:
        raise ValueError(f"its header is damaged: {error!r}") from error
    return header


class _Decoder:
    """Decodes structs to dicts by field number; bytes beyond the end are an IndexError."""

    def __init__(self, data: bytes, start: int = 0) -> None:
        self.data, self.position = data, start

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("structs, lists or maps are nested too deeply")
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind == _MAP:
            return self._map(depth)
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        raise ValueError(f"unknown Thrift type {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        size = head >> 4 if head >> 4 < 15 else self._varint()
        return [self._value(head & 15, depth + 1) for _ in range(size)]

    def _map(self, depth: int) -> list[tuple[Any, Any]]:
        size = self._varint()
        kinds = self._byte() if size else 0
        return [(self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(size)]

    def _byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def _take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise IndexError(f"{size} bytes at {start}, beyond the end")
        return self.data[start : self.position]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number has more than 64 bits")
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
