"""A parquet file whose page headers are checked on their way to Arrow.

Arrow takes, and fills, as much memory as a page's header claims, up to 2 GB: a few damaged bytes of a file. So every
header is read here first, from the very bytes that Arrow asks for. Pages lie end to end in a column chunk and Arrow
reads a chunk from its beginning, so this costs no reading of its own, but for a header that ends in the next read.
A header that lies is blanked: Arrow gives what lies before it and then fails.

Invariant: Arrow sees no header that claims more packed bytes than its chunk has left, or more than 1 GiB unpacked.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from curator.corpora.blocks import Damage
from curator.corpora.thrift import ColumnChunk, PageHeader, page_header

LARGEST_PAGE_BYTES = 1 << 30
_HEADER_BYTES = (1 << 14, 1 << 24)  # to read where a header is cut off; the second is the largest that Arrow takes
_SLACK_BYTES = 100  # some writers of before 2014 left a header out of a chunk's size


@dataclass
class _Walk:
    """How far the pages of one column chunk are checked: the next header's place, and the values that are to come."""

    position: int
    stop: int
    values: int


class CheckedFile:
    """An open file, with what Arrow asks of one.

    Attributes:
        damage: what is wrong with the header that was blanked, if one was.
        closed: never, as far as Arrow is concerned.
    """

    closed = False

    def __init__(self, handle: BinaryIO) -> None:
        """Wrap a file that whoever opened it will close."""
        self._handle = handle
        self._walks: list[_Walk] = []
        self.damage: Damage | None = None

    def expect(self, chunks: Iterable[ColumnChunk]) -> None:
        """These column chunks are read next; Arrow may read any of them, whatever the footer calls them."""
        self._walks = [_Walk(chunk.start, chunk.stop, chunk.values) for chunk in chunks]
        self.damage = None

    def read(self, size: int = -1) -> bytes:
        """Read on from the current position."""
        start = self._handle.tell()
        block = self._handle.read(size)
        stop = start + len(block)
        for walk in self._walks:
            try:
                while walk.values > 0 and start <= walk.position < stop:
                    _follow(walk, self._header(walk.position, block, start))
            except Damage as damage:
                self.damage, walk.values = damage, 0
                lies = walk.position - start
                block = block[:lies] + b"\0" + block[lies + 1 :]  # a header without the fields that it must have
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file."""
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        """As of any file."""
        return self._handle.tell()

    def close(self) -> None:
        """Not this one's to close."""

    def _header(self, position: int, block: bytes, start: int) -> PageHeader:
        """The header there; where the block cuts it off, the file is read a little further."""
        try:
            found = page_header(block, position - start)
            for size in _HEADER_BYTES:
                if found is None:
                    found = page_header(self._peek(position, size), 0)
        except ValueError as error:
            raise Damage("damaged_file", f"the page at byte {position}: {error}") from error
        if found is None:
            raise Damage("truncated_file", f"the page at byte {position} has no whole header")
        return found

    def _peek(self, position: int, size: int) -> bytes:
        here = self._handle.tell()
        try:
            self._handle.seek(position)
            return self._handle.read(size)
        finally:
            self._handle.seek(here)


def _follow(walk: _Walk, header: PageHeader) -> None:
    """Go on to the next page; raises Damage where this one cannot be what its header claims."""
    begin = walk.position + header.length
    left = max(walk.stop + _SLACK_BYTES - begin, 0)
    if not 0 <= header.packed_bytes <= left:
        raise Damage(
            "damaged_file",
            f"the page at byte {walk.position} claims {header.packed_bytes} bytes, and its column has {left} left",
        )
    if not 0 <= header.unpacked_bytes <= LARGEST_PAGE_BYTES:
        raise Damage(
            "damaged_file",
            f"the page at byte {walk.position} claims {header.unpacked_bytes} bytes unpacked, and the limit is "
            f"{LARGEST_PAGE_BYTES}; if that is true, write the file with smaller pages",
        )
    walk.position, walk.values = begin + header.packed_bytes, walk.values - header.values
