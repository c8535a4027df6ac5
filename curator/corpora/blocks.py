"""A file as a stream of decompressed blocks: plain, gzip or zstd, told by its first bytes.

Memory stays bounded by a block whatever the file holds, a decompression bomb included. A file that ends early or turns
to noise gives all bytes before that point and then raises `Damage`; what may be lost is never an ordinary end of file.
Trouble of the storage is no damage: it raises StorageError, and the shard can be tried again.
"""

import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import zstandard

from curator import storage
from curator.corpora.rows import Reason
from curator.errors import CorpusError, StorageError

Compression = Literal["plain", "gzip", "zstd"]
Result = TypeVar("Result")

BLOCK_BYTES = 1 << 20
_GZIP_INPUT_BYTES = 1 << 18
_ZSTD_INPUT_BYTES = 512  # one block of 128 KiB can come from 4 bytes, and zstandard offers no bound on a call's output
LARGEST_WINDOW_BYTES = 1 << 31
"""What unpacking a file of `zstd --long=31` may take; much of the published web text is packed so."""
_USUAL_WINDOW_BYTES = 1 << 25  # no level up to 20 takes more; 32 files at a time are then 1 GB at most
_wide = threading.Lock()

_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_REFUSED = {
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zip": re.compile(rb"PK\x03\x04"),
    "parquet": re.compile(rb"PAR1"),
}


class Damage(Exception):
    """The rest of a file cannot be read: a fact that its reader records, not an error of ours."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class _WideWindow(Exception):
    """A zstd frame needs more memory than was allowed."""


def detect_compression(uri: str) -> Compression:
    """How a file is compressed: its first bytes decide; its name decides where they are cut short or unreadable.

    Raises:
        CorpusError: the file is of a kind that cannot be read as lines; the message says what to do.
    """
    with storage.open_read(uri) as file, reading(uri):
        head = file.read(512)
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    if head.startswith(_ZSTD_MAGIC) or _ZSTD_SKIPPABLE.match(head):
        return "zstd"
    for kind, magic in _REFUSED.items():
        if magic.match(head):
            remedy = "use kind: parquet" if kind == "parquet" else "recompress it as gzip or zstd"
            raise CorpusError(f"{uri!r} is a {kind} file, which this reader cannot read; {remedy}")
    return _hint_of_name(uri, head)


def _hint_of_name(uri: str, head: bytes) -> Compression:
    """A cut or zeroed beginning is damage to a compressed file, while text under such a name is just text."""
    hint: Compression = "gzip" if uri.endswith(".gz") else "zstd" if uri.endswith((".zst", ".zstd")) else "plain"
    if hint == "plain" or not head:
        return "plain"
    magic = _GZIP_MAGIC if hint == "gzip" else _ZSTD_MAGIC
    return hint if magic.startswith(head) or _CONTROL.search(head) else "plain"


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Name the file in an OSError of its storage."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {uri!r}: {error or type(error).__name__}") from error


def plain_blocks(uri: str, start: int = 0, stop: int | None = None, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The bytes [start, stop) of a file as they are, in blocks of at most `size`.

    Args:
        uri: the file.
        start: first byte.
        stop: byte after the last; None or beyond the end = to the end.
        size: bytes of a block.

    Yields:
        Blocks that are not empty.

    Raises:
        StorageError: the file cannot be read.
    """
    with storage.open_read(uri) as file:
        with reading(uri):
            file.seek(start)
        while stop is None or start < stop:
            with reading(uri):
                block = file.read(size if stop is None else min(size, stop - start))
            if not block:
                return
            start += len(block)
            yield block


def read_unpacked(uri: str, compression: Compression, read: Callable[[Iterator[bytes]], Result]) -> Result:
    """What `read` makes of a whole file's blocks; planning asks for dozens of files at a time.

    Only one of them may take the gigabytes that a wide window needs: where a frame asks for one, `read` is called anew.
    """
    try:
        return read(unpacked_blocks(uri, compression, _USUAL_WINDOW_BYTES))
    except _WideWindow:
        with _wide:
            return read(unpacked_blocks(uri, compression))


def unpacked_blocks(uri: str, compression: Compression, window_bytes: int = LARGEST_WINDOW_BYTES) -> Iterator[bytes]:
    """The decompressed bytes of a whole file, in blocks of about a megabyte or less.

    Args:
        uri: the file.
        compression: how it is packed.
        window_bytes: most memory for what a zstd frame refers back to.

    Raises:
        Damage: after the last readable byte, when the rest cannot be read.
        StorageError: the file cannot be read.
    """
    if compression == "gzip":
        return _gunzip(plain_blocks(uri, size=_GZIP_INPUT_BYTES))
    if compression == "zstd":
        return _unzstd(plain_blocks(uri), window_bytes)
    return plain_blocks(uri)


def _gunzip(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip members laid end to end, with padding of zeros between them."""
    member = zlib.decompressobj(wbits=31)
    for chunk in packed:
        while chunk:
            if member.eof:
                chunk = chunk.lstrip(b"\0")
                if not chunk:
                    break
                member = zlib.decompressobj(wbits=31)
            before = member.copy()
            try:
                block = member.decompress(chunk, BLOCK_BYTES)
            except zlib.error as error:
                yield _salvage(before, chunk)
                raise Damage("damaged_file", f"gzip: {error}") from error
            chunk = member.unconsumed_tail or member.unused_data
            if block:
                yield block
    if not member.eof:
        if rest := member.flush():
            yield rest
        raise Damage("truncated_file", "the gzip stream ends before its end mark")


def _salvage(member: "zlib._Decompress", chunk: bytes) -> bytes:
    """What a chunk still gives before the byte at which it fails: zlib withholds the output of a failing call."""
    saved = bytearray()
    try:
        for i in range(len(chunk)):
            saved += member.decompress(chunk[i : i + 1])
    except zlib.error:
        pass  # the failure is reported by the caller; here it only marks where to stop
    return bytes(saved)


def _unzstd(packed: Iterator[bytes], window_bytes: int) -> Iterator[bytes]:
    """Decompress zstd frames laid end to end, skippable frames included."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=window_bytes)
    frame = unpacker.decompressobj()
    started = False
    for block in packed:
        for start in range(0, len(block), _ZSTD_INPUT_BYTES):
            chunk = block[start : start + _ZSTD_INPUT_BYTES]
            while chunk:
                if frame.eof:
                    frame, started = unpacker.decompressobj(), False
                try:
                    output = frame.decompress(chunk)
                except zstandard.ZstdError as error:
                    if "too much memory" in str(error) and window_bytes < LARGEST_WINDOW_BYTES:
                        raise _WideWindow from error
                    raise Damage("damaged_file", str(error)) from error
                started = True
                chunk = frame.unused_data if frame.eof else b""
                if output:
                    yield output
    if started and not frame.eof:
        raise Damage("truncated_file", "the zstd stream ends inside a frame")
