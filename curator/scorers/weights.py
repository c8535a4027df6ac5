"""Which weights these are: one digest over a model's weight files.

A score is only as good as the knowledge of which weights gave it, so the digest is part of every model's stage key.
It depends on the files' contents and names, never on where they lie: a hub model has one digest, cached or not.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
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
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
