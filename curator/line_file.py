"""A file of lines that several processes append to, one at a time.

It exists apart from the event log because its two dangers are those of any such file: a writer that was killed
leaves half a line, and one that was stopped (SIGSTOP) while it held the lock would hold up everybody for good.

Invariant: whoever holds the lock finds only whole lines.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from curator.errors import StorageError
from curator.places import explained

LOCK_S = 10.0
_RETRY_S = 0.005
_STEP_BYTES = 4096


@contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """The open file, at its end and alone with it; what a killed writer left of a line is gone.

    Raises:
        StorageError: another process has held the lock for too long, or the file cannot be written.
    """
    with explained("write", str(path)), path.open("a+b") as file:
        _lock(file, path)
        _drop_torn_line(file)
        yield file


def last_line(file: IO[bytes]) -> bytes:
    """The last whole line, with the file at its end again; empty when there is none."""
    end = _whole_bytes(file)
    if not end:
        return b""
    file.seek(line_start(file, end - 1, 0))
    line = file.readline()
    file.seek(0, os.SEEK_END)
    return line


def line_start(file: IO[bytes], position: int, floor: int) -> int:
    """Where the line begins that holds the byte at `position`; not before `floor`, where a line begins."""
    start = position
    while start > floor:
        low = max(start - _STEP_BYTES, floor)
        file.seek(low)
        cut = file.read(start - low).rfind(b"\n")
        if cut >= 0:
            return low + cut + 1
        start = low
    return floor


def _lock(file: IO[bytes], path: Path) -> None:
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{str(path)!r} has been locked by another process for {LOCK_S:g} s; it may be stopped or its disk "
                    "may hang: end it (fuser tells which) and try again"
                ) from None
            time.sleep(_RETRY_S)


def _drop_torn_line(file: IO[bytes]) -> None:
    file.truncate(_whole_bytes(file))
    file.seek(0, os.SEEK_END)


def _whole_bytes(file: IO[bytes]) -> int:
    """Where the last whole line ends."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return 0
    file.seek(size - 1)
    return size if file.read(1) == b"\n" else line_start(file, size, 0)
