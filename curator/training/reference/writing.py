"""Writing to a disk that may be full, or that may not be written: whole, or not at all and with one clear error."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curator.errors import CuratorError, OutputError


@contextmanager
def written(place: Path) -> Iterator[None]:
    """Write a file or folder inside this; what comes out only in part is removed.

    Raises:
        OutputError: it cannot be written, with why and what helps.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_disk(error):
            raise
        remove(place)
        raise cannot_write(place, error) from error


def flush(place: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk, as a crash of the machine may be next."""
    is_folder = place.is_dir()
    for entry in place.iterdir() if is_folder else ():
        flush(entry)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not is_folder:  # some network storage knows no such thing as a folder's own contents
            raise
    finally:
        os.close(descriptor)


def cannot_write(place: Path, error: Exception) -> OutputError:
    """What is said of a place that cannot be written."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
    return OutputError(
        f"{str(place)!r} cannot be written ({reason}); make room there, or name an output that you may write, and run "
        "the same command again"
    )


def _is_of_disk(error: Exception) -> bool:
    """Whether this is an operating system's error, or how safetensors and torch pass one on."""
    if isinstance(error, CuratorError):
        return False
    if isinstance(error, RuntimeError):
        return "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError"


def remove(place: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
