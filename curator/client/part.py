"""A file that arrives in parts: `<name>.part` grows over connections and runs, and gets its name when it is whole.

Invariant: the final name holds either what it held before or a file whose bytes have the expected sha256 and are on
the disk, whatever is killed when.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from curator import storage
from curator.errors import ServerError
from curator.places import explained

_BLOCK_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*")


def place(directory: Path, name: str) -> Path:
    """Where in the directory a file of this name goes.

    Raises:
        ServerError: the name, which a server chose, would lead out of the directory, or is no plain path.
    """
    parts = name.split("/")
    target = directory.joinpath(*parts)
    plain = all(_NAME.fullmatch(part) for part in parts)
    if not plain or not target.parent.resolve().is_relative_to(directory.resolve()):
        raise ServerError(f"the service names a shard {name!r}, which may lie outside {str(directory)!r}; not written")
    return target


def is_sound(path: Path, size_bytes: int, sha256: str) -> bool:
    """Whether the file is there with these bytes."""
    if not path.is_file() or path.stat().st_size != size_bytes:
        return False
    return storage.sha256(str(path))[0] == sha256


class PartFile:
    """The part of a file that is here; it is appended to or started afresh, and knows its digest so far."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path, self._file = path, file
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        file.seek(0)
        while block := file.read(_BLOCK_BYTES):
            self._digest.update(block)
            self.size_bytes += len(block)

    @property
    def sha256(self) -> str:
        """Digest of what is here, in lowercase hex."""
        return self._digest.hexdigest()

    def append(self, chunk: bytes) -> None:
        """Add what comes next; raises StorageError when the disk is full."""
        with explained("write", str(self._path)):
            rest = memoryview(chunk)
            while rest:  # a full disk takes a part, and refuses the rest
                rest = rest[self._file.write(rest) :]
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def clear(self) -> None:
        """Throw away what is here."""
        with explained("write", str(self._path)):
            self._file.seek(0)
            self._file.truncate()
        self._digest, self.size_bytes = hashlib.sha256(), 0

    def name_it(self, target: Path) -> None:
        """Bring the whole file to the disk and give it its name."""
        with explained("write", str(target)):
            os.fsync(self._file.fileno())
            os.replace(self._path, target)
            sync_folder(target.parent)


@contextmanager
def open_part(target: Path) -> Iterator[PartFile]:
    """The part of `target` that an earlier attempt left, or an empty one; it stays until it gets its name."""
    path = target.with_name(target.name + ".part")
    with explained("write", str(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with explained("write", str(path)), os.fdopen(descriptor, "r+b", buffering=0) as file:
        yield PartFile(path, file)


def sync_folder(folder: Path) -> None:
    """Bring the folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
