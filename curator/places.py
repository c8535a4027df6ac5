"""What a URI means: its file system, its local path, and what to say when that file system fails.

Below `curator.storage`, which everything else uses.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import fsspec
import fsspec.config
import fsspec.core

from curator.errors import StorageError

CONNECTIONS = 32
"""To an object store from one process; S3's client opens 10 unless told, which is too few where one waits for each."""
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs")
_PRIVATE_PROTOCOLS = {"memory"}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FATAL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "it is read-only"}
_HOPELESS = {*_FATAL, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG}  # trying again changes nothing


def filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it; raises StorageError for a scheme that is not known."""
    try:
        if "\0" in uri:
            raise ValueError("the name holds a NUL character")
        options: dict[str, Any] = {"use_listings_cache": False}
        if uri.startswith(("s3://", "s3a://")):
            _ask_again_after_conflicts()
            own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options["config_kwargs"] = {"max_pool_connections": CONNECTIONS} | own
        return cast(tuple[Any, str], fsspec.core.url_to_fs(uri, **options))
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"cannot open {uri!r}: {error}; use a local path, s3:// or gs:// (extra `clouds`)"
        ) from error


@cache
def _ask_again_after_conflicts() -> None:
    """Have s3fs try again when S3 answers 409: another conditional write of the same name is just under way."""
    from s3fs.core import set_custom_error_handler

    def is_conflict(error: Exception) -> bool:
        answer: dict[str, Any] = getattr(error, "response", None) or {}
        return bool(answer.get("Error", {}).get("Code") == "ConditionalRequestConflict")

    set_custom_error_handler(is_conflict)


@contextmanager
def explained(action: str, uri: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the file and the remedy; FileExistsError passes."""
    try:
        yield
    except (StorageError, FileExistsError):
        raise
    except NotImplementedError as error:
        raise StorageError(f"cannot {action} {uri!r}: {error}; use a local path, s3:// or gs://") from error
    except Exception as error:
        if not isinstance(error, OSError):
            if type(error).__module__.partition(".")[0] not in _CLIENTS:
                raise
            raise StorageError(f"cannot {action} {uri!r}: {error}; check that the store can be reached") from (
                ConnectionError(str(error))  # an object store's client raises errors that are no OSError
            )
        cause = _FATAL.get(error.errno or 0, str(error) or type(error).__name__)
        remedy = "; free some space and run the same command again" if error.errno in _FULL else ""
        explained = StorageError(f"cannot {action} {uri!r}: {cause}{remedy}")
        explained.retryable = error.errno not in _HOPELESS
        raise explained from error


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
