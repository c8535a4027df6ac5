"""Where a reference will stand: one rename must be able to put a finished folder there.

So whatever would make that rename fail is refused before anything is trained.
"""

import os
from pathlib import Path

from curator import storage
from curator.errors import OutputError
from curator.training.reference.record import RECORD


def find_output(output: str) -> Path:
    """The folder that a spec's output names; raises OutputError for an object store."""
    path = storage.local_path(output)
    if path is None:
        raise OutputError(
            f"output {output!r} is not on a local disk, where a reference is made and renamed to its place; name a "
            "folder, and copy it there afterwards"
        )
    return path.expanduser().absolute()


def find_free_output(output: str) -> Path:
    """The same, if a finished reference stands there or one can be put there; raises OutputError otherwise."""
    path = find_output(output)
    try:
        if (path / RECORD).is_file():
            return path
        if path.is_dir() and any(path.iterdir()):
            raise OutputError(f"{str(path)!r} already holds something else; name another output or remove it")
        problem = _why_not(path)
    except OSError as error:
        problem = f"cannot be looked at ({error.strerror})"
    if problem:
        raise OutputError(
            f"output {str(path)!r} {problem}, and a finished reference is renamed to its place, which must be absent "
            "or an empty folder; name another output, such as a folder in it or beside it"
        )
    return path


def _why_not(path: Path) -> str | None:
    if path.is_symlink():
        return "is a symbolic link"
    if path.exists() and not path.is_dir():
        return "is a file"
    return "is a mount point" if os.path.ismount(path) else None
