r"""Lines of text files: cutting a file into extents of whole lines, and reading them back.

A line ends with `\n` and nowhere else: U+2028, `\r` or a form feed are text. Row numbers count every line of the file,
blank ones too; what follows the last `\n` is a row if it is not empty. Lines longer than a limit are passed over
without being held in memory. Extents of a plain file are byte ranges, those of a compressed file row ranges
(`streamed`).

Invariant: the extents of `split_lines`, read by `read_lines` in any grouping, give every complete line exactly once.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from curator import interrupts
from curator.corpora.blocks import Damage, detect_compression, plain_blocks, read_unpacked, unpacked_blocks
from curator.corpora.rows import Place
from curator.data import Extent, SourceFile, Split

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PLANNING_BLOCK_BYTES = 1 << 23


class Line(NamedTuple):
    """One line, without its line end.

    Attributes:
        row: number of the line in its file, from 0.
        offset: its first byte in the decompressed file.
        data: its bytes, or None when it is longer than the limit.
        size_bytes: its length.
    """

    row: int
    offset: int
    data: bytes | None
    size_bytes: int


class Part(NamedTuple):
    """A run of whole lines: byte and row ranges in the decompressed file."""

    start: int
    stop: int
    first_row: int
    stop_row: int


def split_lines(source: SourceFile, target_bytes: int) -> Split:
    """Divide a file into extents of whole lines, of about `target_bytes` (decompressed) each.

    Reads the file once. A compressed file is `streamed`, and damage in it is found here.
    """
    compression = detect_compression(source.uri)
    size = source.size_bytes if compression == "plain" else None
    if compression == "plain":
        parts, damage = _cut(plain_blocks(source.uri, size=_PLANNING_BLOCK_BYTES), target_bytes)
    else:
        parts, damage = read_unpacked(source.uri, compression, lambda blocks: _cut(blocks, target_bytes))
    extents = [
        Extent(
            source=0,
            start=part.start if size is not None else part.first_row,
            stop=part.stop if size is not None else part.stop_row,
            first_row=part.first_row,
            size_bytes=part.stop - part.start,
        )
        for part in parts
    ]
    lost = [Place(source.path, None, offset).bad(cause.reason, cause.detail) for cause, offset in damage]
    return Split(extents, streamed=size is None, damage=lost)


def _cut(blocks: Iterable[bytes], target_bytes: int) -> tuple[list[Part], list[tuple[Damage, int]]]:
    """Cut after the first line end at or past every `target_bytes`; counts lines at the speed of memory."""
    parts: list[Part] = []
    damage: list[tuple[Damage, int]] = []
    start = first_row = row = position = complete = 0  # `complete`: the byte after the last line end seen
    try:
        for block in blocks:
            interrupts.check()  # this may be a thread, which a Ctrl-C does not reach
            counted = 0
            while (end := block.find(b"\n", max(start + target_bytes - 1 - position, counted))) >= 0:
                row += block.count(b"\n", counted, end + 1)
                counted = end + 1
                parts.append(Part(start, position + counted, first_row, row))
                start, first_row = position + counted, row
            row += block.count(b"\n", counted)
            complete = max(complete, start, position + block.rfind(b"\n") + 1 if b"\n" in block else 0)
            position += len(block)
        if position > complete:
            row, complete = row + 1, position  # a last line without a line end
    except Damage as cause:
        damage.append((cause, complete))
    if complete > start:
        parts.append(Part(start, complete, first_row, row))
    return parts, damage


def read_lines(source: SourceFile, extents: Sequence[Extent], max_row_bytes: int) -> Iterator[tuple[int, Line]]:
    """Read the lines of some extents, in file order, in one pass.

    Args:
        source: the file.
        extents: extents of `split_lines`; the last may reach beyond the end, for a sample.
        max_row_bytes: longer lines come with `data` None.

    Yields:
        (index into `extents`, line); `data` without the byte order mark that may begin a file.

    Raises:
        StorageError: the file cannot be read.
    """
    order = sorted(range(len(extents)), key=lambda i: extents[i].start)
    compression = detect_compression(source.uri)
    if compression == "plain":
        for i in order:
            extent = extents[i]
            blocks = plain_blocks(source.uri, extent.start, extent.stop)
            for line in iter_lines(blocks, max_row_bytes, extent.first_row, extent.start):
                yield i, line
        return
    lines = iter_lines(unpacked_blocks(source.uri, compression), max_row_bytes)
    try:
        for i in order:
            if extents[i].stop > extents[i].start:
                yield from ((i, line) for line in _rows_between(lines, extents[i]))
    except Damage:
        return  # only a sample without a stop comes here: the damage is known since planning, the extents end before it


def _rows_between(lines: Iterator[Line], extent: Extent) -> Iterator[Line]:
    """Lines of one extent; takes no line beyond it, so that the next extent finds its own."""
    for line in lines:
        if line.row >= extent.start:
            yield line
        if line.row + 1 >= extent.stop:
            return


def iter_lines(blocks: Iterable[bytes], max_row_bytes: int, first_row: int = 0, offset: int = 0) -> Iterator[Line]:
    """Lines of a stream of blocks.

    Args:
        blocks: the bytes, in blocks of any size.
        max_row_bytes: a longer line is counted, not kept.
        first_row: number of the first line.
        offset: place of the first byte in the file; at 0 a byte order mark is dropped.

    Yields:
        The lines; an exception of `blocks` comes after all lines that were complete, and drops the incomplete one.
    """
    row, pending, size = first_row, list[bytes](), 0
    for block in blocks:
        pieces = block.split(b"\n")
        for piece in pieces[:-1]:
            size += len(piece)
            yield _line(row, offset, pending, piece, size, max_row_bytes)
            row, offset, size = row + 1, offset + size + 1, 0
            pending.clear()
        size += len(pieces[-1])
        if size > max_row_bytes + len(_BYTE_ORDER_MARK):
            pending.clear()
        elif pieces[-1]:
            pending.append(pieces[-1])
    if size:
        yield _line(row, offset, pending, b"", size, max_row_bytes)


def _line(row: int, offset: int, pending: list[bytes], last: bytes, size: int, max_row_bytes: int) -> Line:
    data = None
    if size <= max_row_bytes + len(_BYTE_ORDER_MARK):
        data = b"".join([*pending, last]) if pending else last
        if offset == 0:
            data = data.removeprefix(_BYTE_ORDER_MARK)
        data = data if len(data) <= max_row_bytes else None
    return Line(row, offset, data, size)
