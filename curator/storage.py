"""Files anywhere: URIs through fsspec, digests, and the two writes on which every promise rests.

`publish` creates a *final name* only if it is absent, from a complete local file: on a local disk by fsync and
`link()`, on an object store by a conditional PUT. `write_once` does the same for small bytes. Whoever loses the race
is told so and never overwrites. `replace` is for the few files that may change (report, card).

Invariant: a reader never sees a half-written file under a final name, whatever was killed when.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import fsspec
import fsspec.core

from curator.errors import StorageError

STAGING = "_staging"
_BLOCK_BYTES = 1 << 20
_READ_AHEAD_BYTES = 4 << 20  # object stores' own default, 50 MB, over-fetches for a sniff or a footer
_PRIVATE_PROTOCOLS = {"memory"}
_FATAL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "it is read-only"}


class FileInfo(NamedTuple):
    """One existing file: its URI, its path relative to the pattern's fixed folder, its size and its version."""

    uri: str
    path: str
    size_bytes: int
    fingerprint: str


def _filesystem(uri: str) -> tuple[Any, str]:
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(uri, use_listings_cache=False))
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"cannot open {uri!r}: {error}; use a local path, s3:// or gs:// (extra `clouds`)"
        ) from error


@contextmanager
def _explained(action: str, uri: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the file and the remedy; FileExistsError passes."""
    try:
        yield
    except (StorageError, FileExistsError):
        raise
    except OSError as error:
        cause = _FATAL.get(error.errno or 0, str(error) or type(error).__name__)
        remedy = (
            "; free some space and run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        )
        raise StorageError(f"cannot {action} {uri!r}: {cause}{remedy}") from error


def local_path(uri: str) -> Path | None:
    """The path of a local URI (`file://` or no scheme), else None."""
    if uri.startswith("file://"):
        return Path(fsspec.core.strip_protocol(uri))
    return None if "://" in uri else Path(uri)


def absolute(uri: str) -> str:
    """The same URI, with a relative local path made absolute: workers may run in another folder."""
    path = local_path(uri)
    return uri if path is None else os.path.abspath(path.expanduser())


def shared_with_workers(uri: str) -> bool:
    """Whether another process could open this URI at all (`memory://` lives in one process only)."""
    return uri.split("://", 1)[0] not in _PRIVATE_PROTOCOLS if "://" in uri else True


def join(root: str, *parts: str) -> str:
    """Join path parts to a root URI."""
    return "/".join([root.rstrip("/") or "/", *parts])


# ------------------------------------------------------------------------------------------------ reading


def list_files(pattern: str) -> list[FileInfo]:
    """Files that a path or glob names, sorted by path; empty when nothing matches.

    A folder is an error that suggests a glob. `fingerprint` is the ETag where the store has one, else the modification
    time: enough to notice that a file was replaced.
    """
    fs, path = _filesystem(absolute(pattern))
    with _explained("list", pattern):
        if any(mark in path for mark in "*?["):
            entries = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
            fixed = path[: min(path.index(mark) for mark in "*?[" if mark in path)]
        elif not fs.exists(path):
            return []
        else:
            entries, fixed = {path: fs.info(path)}, path
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


def _fingerprint(info: dict[str, Any]) -> str:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return "etag:" + str(etag).strip('"')
    moment = info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return f"mtime:{moment}"


def open_read(uri: str) -> BinaryIO:
    """Open a file for reading, seekable; the caller closes it."""
    fs, path = _filesystem(uri)
    with _explained("read", uri):
        return cast(BinaryIO, fs.open(path, "rb", block_size=_READ_AHEAD_BYTES))


def read_bytes(uri: str) -> bytes:
    """The whole of a small file."""
    with _explained("read", uri), open_read(uri) as file:
        return file.read()


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = _filesystem(uri)
    with _explained("look for", uri):
        return bool(fs.exists(path))


def list_names(folder: str) -> list[str]:
    """Names of the entries of a folder, sorted; empty when the folder is absent."""
    fs, path = _filesystem(folder)
    with _explained("list", folder):
        try:
            return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))
        except FileNotFoundError:
            return []


def sha256(uri: str) -> tuple[str, int]:
    """Digest in lowercase hex and size in bytes of a file."""
    digest, size_bytes = hashlib.sha256(), 0
    with _explained("read", uri), open_read(uri) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size_bytes += len(block)
    return digest.hexdigest(), size_bytes


# ------------------------------------------------------------------------------------------------ writing


@contextmanager
def staged_file(root: str) -> Iterator[Path]:
    """A new local file to write into, gone afterwards: in `root/_staging` on a local disk, else in the temp folder."""
    folder = local_path(root)
    with _explained("stage a file in", root):
        staging = folder / STAGING if folder is not None else Path(tempfile.gettempdir()) / f"curator{STAGING}"
        staging.mkdir(parents=True, exist_ok=True)
    path = staging / f"{uuid.uuid4().hex}.tmp"
    try:
        with _explained("write", str(path)):
            yield path
    finally:
        path.unlink(missing_ok=True)


def publish(staged: Path, uri: str) -> bool:
    """Give a complete staged file its final name, if that name is free.

    Returns:
        True if this call created the name, False if it was taken (nothing is changed then).
    """
    target = local_path(uri)
    with _explained("publish", uri):
        try:
            if target is None:
                fs, path = _filesystem(uri)
                fs.put_file(str(staged), path, mode="create")
            else:
                _fsync(staged)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(staged, target)
                _fsync(target.parent)
        except FileExistsError:
            return False
    return True


def write_once(root: str, name: str, content: bytes) -> bool:
    """Create the small file `root/name` if that name is free; returns whether this call created it."""
    with staged_file(root) as staged:
        staged.write_bytes(content)
        return publish(staged, join(root, name))


def replace(root: str, name: str, content: bytes) -> None:
    """Write the small file `root/name`, which may exist; readers see the old or the new one, never a mix."""
    target = local_path(join(root, name))
    if target is None:
        fs, path = _filesystem(join(root, name))
        with _explained("write", join(root, name)):
            fs.pipe_file(path, content)
        return
    with staged_file(root) as staged, _explained("write", str(target)):
        staged.write_bytes(content)
        _fsync(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, target)
        _fsync(target.parent)


def remove(uri: str) -> None:
    """Remove a file if it is there."""
    fs, path = _filesystem(uri)
    with _explained("remove", uri):
        if fs.exists(path):
            fs.rm_file(path)


def clear_staging(root: str) -> None:
    """Remove what killed runs left in `root/_staging`."""
    folder = local_path(root)
    if folder is not None:
        shutil.rmtree(folder / STAGING, ignore_errors=True)


def free_bytes(root: str) -> int | None:
    """Free space where `root` is, or None where the question makes no sense (object stores)."""
    path = local_path(root)
    if path is None:
        return None
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
