"""Files anywhere: URIs through fsspec, digests, and the two writes on which every promise rests.

`publish` creates a *final name* only if it is absent, from a complete local file: on a local disk by fsync and
`link()`, on an object store by a conditional PUT. `write_once` does the same for small bytes. Whoever loses the race
is told so and never overwrites. `replace` is for the few files that may change (report, card).

Invariant: a reader never sees a half-written file under a final name, whatever was killed when.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import fsspec.utils

from curator import durability
from curator.errors import StorageError
from curator.places import absolute as absolute
from curator.places import explained, filesystem
from curator.places import join as join
from curator.places import local_path as local_path
from curator.places import shared_with_workers as shared_with_workers

STAGING = "_staging"
_BLOCK_BYTES = 1 << 20
_READ_AHEAD_BYTES = 4 << 20  # object stores' own default, 50 MB, over-fetches for a sniff or a footer
_GLOB_MARKS = "*?["


class FileInfo(NamedTuple):
    """One existing file: its URI, its path relative to the pattern's fixed folder, its size and its version."""

    uri: str
    path: str
    size_bytes: int
    fingerprint: str


# ------------------------------------------------------------------------------------------------ reading


def list_files(pattern: str) -> list[FileInfo]:
    """Files that a path or glob names, sorted by path; empty when nothing matches.

    A folder is an error that suggests a glob. A file whose very name looks like a glob (`[1].txt`) is that file.
    `fingerprint` is the ETag where the store has one, else the modification time: enough to notice that a file was
    replaced.
    """
    fs, path = filesystem(absolute(pattern))
    with explained("list", pattern):
        if ("[" in path and fs.isfile(path)) or not any(mark in path for mark in _GLOB_MARKS):
            if not fs.exists(path):
                return []
            entries, fixed = {path: fs.info(path)}, path
        else:
            entries = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
            fixed = path[: min(path.index(mark) for mark in _GLOB_MARKS if mark in path)]
    if any(info["type"] == "directory" for info in entries.values()):
        raise StorageError(f"{pattern!r} is a folder; name its files, for example {join(pattern, '*')!r}")
    folder = fixed.rpartition("/")[0]
    return [
        FileInfo(
            uri=str(fs.unstrip_protocol(name)) if "://" in pattern else name,
            path=name[len(folder) :].lstrip("/"),
            size_bytes=int(info["size"]),
            fingerprint=_fingerprint(info),
        )
        for name, info in sorted(entries.items())
    ]


def matches(pattern: str, uri: str) -> bool:
    """Whether a path or glob names, or would name, this file; nothing needs to exist."""
    (fs, path), (other, target) = filesystem(absolute(pattern)), filesystem(absolute(uri))
    if type(fs) is not type(other):
        return False
    return path == target or bool(re.match(fsspec.utils.glob_translate(path), target))


def fingerprint(uri: str) -> str:
    """What `list_files` says of one file's version; raises StorageError when it is gone."""
    fs, path = filesystem(uri)
    with explained("look at", uri):
        return _fingerprint(fs.info(path))


def _fingerprint(info: dict[str, Any]) -> str:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return "etag:" + str(etag).strip('"')
    moment = info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return f"mtime:{moment}"


def open_read(uri: str) -> BinaryIO:
    """Open a file for reading, seekable; the caller closes it."""
    fs, path = filesystem(uri)
    with explained("read", uri):
        return cast(BinaryIO, fs.open(path, "rb", block_size=_READ_AHEAD_BYTES))


def read_bytes(uri: str) -> bytes:
    """The whole of a small file."""
    fs, path = filesystem(uri)
    with explained("read", uri):
        return cast(bytes, fs.cat_file(path))  # one request of a store, where opening it asks for its size first


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    with explained("look for", uri):
        return bool(fs.exists(path))


def list_names(folder: str) -> list[str]:
    """Names of the entries of a folder, sorted; empty when the folder is absent."""
    fs, path = filesystem(folder)
    with explained("list", folder):
        try:
            return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))
        except FileNotFoundError:
            return []


def sha256(uri: str) -> tuple[str, int]:
    """Digest in lowercase hex and size in bytes of a file."""
    digest, size_bytes = hashlib.sha256(), 0
    with explained("read", uri), open_read(uri) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size_bytes += len(block)
    return digest.hexdigest(), size_bytes


# ------------------------------------------------------------------------------------------------ writing


@contextmanager
def staged_file(root: str) -> Iterator[Path]:
    """A new local file to write into, gone afterwards: in `root/_staging` on a local disk, else in the temp folder.

    It is locked until then, so that `clear_staging` can tell it from what a killed process left.
    """
    with explained("stage a file in", root):
        held = _create_locked(_staging_folder(root))
    path = Path(held.name)
    try:
        with held, explained("write", str(path)):
            yield path
    finally:
        with explained("remove", str(path)):
            path.unlink(missing_ok=True)


def _staging_folder(root: str) -> Path:
    folder = local_path(root)
    if folder is not None:
        return folder / STAGING
    folder = Path(tempfile.gettempdir()) / f"curator{STAGING}-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.lstat().st_uid != os.getuid():  # whoever owns it could put other bytes in place of a shard's
        raise StorageError(f"{str(folder)!r} belongs to another user; remove it, or set TMPDIR to a folder of your own")
    return folder


def _create_locked(folder: Path) -> BinaryIO:
    while True:
        durability.make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        try:
            held = (folder / f"{uuid.uuid4().hex}.tmp").open("wb")
        except FileNotFoundError:  # another run has just cleared the empty folder away
            continue
        with suppress(OSError):  # a file system without locks: there every staged file looks in use
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return held


def publish(staged: Path, uri: str) -> bool:
    """Give a complete staged file its final name, if that name is free.

    Returns:
        True if this call created the name, False if it was taken (nothing is changed then).
    """
    target = local_path(uri)
    with explained("publish", uri):
        try:
            if target is None:
                fs, path = filesystem(uri)
                fs.put_file(str(staged), path, mode="create")
            else:
                durability.sync(staged)
                durability.make_folder(target.parent)
                os.link(staged, target)
        except FileExistsError:
            settle(uri)
            return False
        settle(uri)
    return True


def settle(uri: str) -> None:
    """See to it that a local file's name outlives a power loss: whoever created it may have died before that."""
    target = local_path(uri)
    if target is not None:
        with explained("sync", uri):
            durability.sync(target.parent)


def write_once(root: str, name: str, content: bytes) -> bool:
    """Create the small file `root/name` if that name is free; returns whether this call created it."""
    with staged_file(root) as staged:
        staged.write_bytes(content)
        return publish(staged, join(root, name))


def replace(root: str, name: str, content: bytes) -> None:
    """Write the small file `root/name`, which may exist; readers see the old or the new one, never a mix."""
    target = local_path(join(root, name))
    if target is None:
        fs, path = filesystem(join(root, name))
        with explained("write", join(root, name)):
            fs.pipe_file(path, content)
        return
    with staged_file(root) as staged:
        with explained("write", str(target)):
            staged.write_bytes(content)
        replace_by(staged, str(target))


def replace_by(staged: Path, uri: str) -> None:
    """Like `replace`, by a complete staged file, which may be of any size."""
    target = local_path(uri)
    with explained("write", uri):
        if target is None:
            fs, path = filesystem(uri)
            fs.put_file(str(staged), path)
            return
        durability.sync(staged)
        durability.make_folder(target.parent)
        os.replace(staged, target)
        durability.sync(target.parent)


def remove(uri: str) -> None:
    """Remove a file if it is there."""
    fs, path = filesystem(uri)
    with explained("remove", uri):
        if fs.exists(path):
            fs.rm_file(path)


def remove_folder(uri: str) -> None:
    """Remove a folder and all it holds, if it is there."""
    fs, path = filesystem(uri)
    with explained("remove", uri):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def clear_staging(root: str) -> None:
    """Remove what killed runs of this machine left of staged files; those that a living process holds stay."""
    with explained("clear the staging of", root):
        folder = _staging_folder(root)
    with explained("list", str(folder)):
        left = list(folder.glob("*.tmp"))
    for path in left:
        with suppress(OSError), path.open("rb") as file:  # locked, or gone by now: then it is in good hands
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def free_bytes(root: str) -> int | None:
    """Free space where `root` is, or None where the question makes no sense (object stores)."""
    path = local_path(root)
    if path is None:
        return None
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
