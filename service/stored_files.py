"""Files whose size and digest are known beforehand, opened so that nothing else can be read under their name.

A receipt says what a shard's bytes are; its file may have been damaged, replaced or removed since. Opening compares
the two, and every block that is read belongs to the version that was opened, or reading fails.

Invariant: the bytes given out are those of the digest's file, or the reader is told that they are not.
"""

import hashlib
import logging
import os
import stat
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from curator import storage
from curator.errors import StorageError
from curator.places import explained, filesystem
from service.problems import Problem

LINK_SECONDS = 300
_LOCAL_BLOCK_BYTES = 1 << 20  # 4 MiB is no faster and takes more memory, 256 KiB is slower
_OBJECT_BLOCK_BYTES = 4 << 20  # each block is one request, and three of them are held for each client
_SIGNED_NAMES = {  # what each store's library calls the headers that the store shall answer with
    "s3": ("ResponseContentDisposition", "ResponseContentType"),
    "gs": ("response_disposition", "response_type"),
}
_log = logging.getLogger("curator.service")
_hashing = threading.Lock()


class OpenFile(Protocol):
    """One version of a file; `read` may be called from any thread, by one at a time."""

    block_bytes: int

    def read(self, start: int, length: int) -> bytes:
        """At least one and at most `length` bytes; raises StorageError when the version that was opened is gone."""
        ...

    def close(self) -> None:
        """Give the descriptor back."""
        ...


@dataclass(frozen=True)
class StoredFile:
    """A file and what its receipt says of it.

    Attributes:
        uri: where it is.
        sha256: its digest, lowercase hex.
        size_bytes: its size.
        recorded_ns: when the digest was written down (local files); one changed later is read through once before any
            of it is given out.
    """

    uri: str
    sha256: str
    size_bytes: int
    recorded_ns: int | None = None

    @property
    def path(self) -> Path | None:
        """The local path, or None on an object store."""
        return storage.local_path(self.uri)

    def open(self) -> OpenFile:
        """Open it, having compared it with what is known of it.

        Raises:
            Problem: 404 it is gone, 409 it is another file, 503 its store does not answer.
        """
        try:
            return _ObjectFile(self) if self.path is None else _LocalFile(self, self.path)
        except FileNotFoundError as error:
            raise Problem(404, "file_gone", f"{self.uri!r} is gone; resume the job to have it made again") from error
        except OSError as error:
            detail = f"{self.uri!r} cannot be read now: {error}; try again later"
            raise Problem(503, "storage_unavailable", detail, headers={"Retry-After": "10"}) from error

    def refuse(self, found: str) -> Problem:
        """What to answer when the file is not the one of its receipt."""
        known = f"{self.size_bytes} bytes with sha256 {self.sha256}"
        detail = f"{self.uri!r} was changed after it was published: {found}, its receipt says {known}"
        return Problem(409, "file_changed", f"{detail}; remove it and resume the job: that makes it again")


class _State(NamedTuple):
    """What tells one version of a local file from another."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


def _state(descriptor: int) -> _State:
    found = os.fstat(descriptor)
    return _State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class _LocalFile:
    """A file on a local disk, through one descriptor."""

    block_bytes = _LOCAL_BLOCK_BYTES

    def __init__(self, known: StoredFile, path: Path) -> None:
        # A link could lead out of the folder, and a pipe would keep the thread until somebody writes into it.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise known.refuse("it is not a plain file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # as it may be replaced just now
        self._known, self._file = known, os.fdopen(descriptor, "rb", buffering=0)
        try:
            self._opened = _state(descriptor)
            self._compare(str(path))
        except BaseException:
            self._file.close()
            raise

    def _compare(self, path: str) -> None:
        known, found = self._known, self._opened
        if found.size_bytes != known.size_bytes:
            raise known.refuse(f"it has {found.size_bytes} bytes")
        if known.recorded_ns is not None and found.modified_ns > known.recorded_ns:
            with _hashing:  # several connections ask for parts of one file at once
                sha256 = _digest(path, found)
            if sha256 != known.sha256:
                raise known.refuse(f"its sha256 is {sha256}")

    def read(self, start: int, length: int) -> bytes:
        descriptor = self._file.fileno()
        block = os.pread(descriptor, length, start)
        if not block or _state(descriptor) != self._opened:
            raise StorageError(f"{self._known.uri!r} changed while it was sent; ask again for the rest")
        return block

    def close(self) -> None:
        self._file.close()


@lru_cache(maxsize=4096)
def _digest(path: str, state: _State) -> str:
    """The digest of one version of a file; of no use (and no digest at all) when that version is not there any more."""
    with open(path, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest() if _state(file.fileno()) == state else "changing"


class _ObjectFile:
    """An object of a store, block by block; s3fs ties every read to the ETag, other stores are asked at the end."""

    block_bytes = _OBJECT_BLOCK_BYTES

    def __init__(self, known: StoredFile) -> None:
        found = storage.list_files(known.uri)
        if not found:
            raise FileNotFoundError(known.uri)
        if found[0].size_bytes != known.size_bytes:
            raise known.refuse(f"it has {found[0].size_bytes} bytes")
        self._known, self._fingerprint = known, found[0].fingerprint
        fs, path = filesystem(known.uri)
        with explained("read", known.uri):
            self._file: Any = fs.open(path, "rb", cache_type="none")

    def read(self, start: int, length: int) -> bytes:
        with explained("read", self._known.uri):
            self._file.seek(start)
            block: bytes = self._file.read(length)
        last = start + len(block) >= self._known.size_bytes
        if not block or (last and storage.fingerprint(self._known.uri) != self._fingerprint):
            raise StorageError(f"{self._known.uri!r} changed while it was sent; ask again for the rest")
        return block

    def close(self) -> None:
        self._file.close()


def sign_link(file: StoredFile, content_disposition: str, media_type: str) -> str | None:
    """An address at the object store from which anyone can read this file for five minutes; None if there is none."""
    fs, path = filesystem(file.uri)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    names = next((names for protocol, names in _SIGNED_NAMES.items() if protocol in protocols), None)
    if names is None:
        return None
    options = dict(zip(names, (content_disposition, media_type), strict=True))
    try:
        return str(fs.sign(path, expiration=LINK_SECONDS, **options))
    except Exception as error:  # no key to sign with: each store's library says so in its own way
        _log.info("no signed address for %s: %s; it is sent through the service", file.uri, error)
        return None
