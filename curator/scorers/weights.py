"""Which weights these are: one digest over a model's weight files.

A score is only as good as the knowledge of which weights gave it, so the digest is part of every model's stage key.
It depends on the files' contents and names, never on where they lie: a hub model has one digest, cached or not.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path


def digest_weights(files: Iterable[Path]) -> str:
    """The digest of weight files on a disk."""
    return digest_names({file.name: _digest_file(file) for file in files})


def digest_names(sha256_of: Mapping[str, str]) -> str:
    """sha256 over the sorted lines `<sha256 of the file>  <file name>`, in lowercase hex."""
    lines = sorted(f"{sha256}  {name}\n" for name, sha256 in sha256_of.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest_file(file: Path) -> str:
    """sha256 of one file; the hub's cache names a large file by its sha256, which saves reading it again."""
    real = file.resolve()
    if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
        return real.name
    found = real.stat()
    return _read_digest(real, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=1024)
def _read_digest(file: Path, version: tuple[int, ...]) -> str:
    """Read once by a process: a run asks when it plans, and again before it scores."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
