"""The folder that an export is written to: local, free, and there complete or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curator import storage
from curator.errors import OutputError
from curator.places import explained


def check_target(output: str | os.PathLike[str], dataset: str) -> Path:
    """The folder that an export is to be, once it is seen to be free.

    Raises:
        OutputError: it is not local, is taken, cannot be replaced, or lies in the folder of `dataset`.
    """
    target = storage.local_path(storage.absolute(os.fspath(output)))
    if target is None:
        raise OutputError(f"{os.fspath(output)!r} is not local; export to a local folder and copy that")
    target = target.resolve()  # a link keeps standing, and what it leads to is replaced
    source = storage.local_path(dataset)
    if source is not None and target.is_relative_to(source.resolve()):
        raise OutputError(
            f"{str(target)!r} lies in the dataset {str(source)!r}, which is complete; name a folder beside it"
        )
    if target.is_mount():
        raise OutputError(f"{str(target)!r} is a mount point, which no folder can replace; name a folder in it")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{str(target)!r} exists and is not an empty folder; name another or remove it")
    return target


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, which gets its name at the end and is gone after an error."""
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    with explained("write", str(target)):
        staging.mkdir(parents=True)
    try:
        yield staging
        try:
            staging.rename(target)  # replaces an empty folder, never a full one
        except OSError as error:
            raise OutputError(
                f"{str(target)!r} was taken while it was being written ({error}); name another"
            ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
