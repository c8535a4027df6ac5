"""What outlives a power loss: files and names that were synced, in folders whose own names were.

A folder's name is an entry of its parent, so a file synced in a new folder is lost with the folder unless that parent
is synced too. Whoever made a folder may have been killed before that, so every process does it once for each folder
that it writes to.
"""

import errno
import os
from pathlib import Path

_durable: set[Path] = set()
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EROFS)
"""Of a folder above that is somebody else's, read-only, or on a file system without fsync: it was there before us."""


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, such that a power loss takes none of them.

    Raises:
        NotADirectoryError: one of them is a file.
        OSError: one cannot be made.
    """
    for part in [*reversed(folder.parents), folder]:
        if part in _durable and part.is_dir():
            continue
        try:
            part.mkdir()
        except OSError as error:  # it is there, if perhaps below a read-only folder
            if not part.is_dir():
                if isinstance(error, FileExistsError):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(part)) from error
                raise
        try:
            sync(part.parent)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
        _durable.add(part)
