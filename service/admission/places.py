"""Where a tenant may read and write: under an allowed root, in an upload or a job of its own, nowhere else.

Three looks at every place. Its spelling: what two readers could take for different places (`..`, percent escapes,
chained file systems, other schemes) is refused whatever it resolves to. Its real path: symbolic links are followed, and
the end must lie inside. For a glob, every file that it matches now.

Invariant: nothing in the service's own data directory is allowed but the tenant's uploads and jobs, for reading. A root
that lies inside the data directory opens what is under it, but never the folders of jobs and uploads.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from fsspec.implementations.local import LocalFileSystem

from curator import storage
from curator.errors import StorageError
from curator.job_directory import JOB_ID_PATTERN
from curator.places import filesystem
from service.admission.refusals import Refused, TooWide, quote
from service.admission.spelling import REMOTE, check_glob, check_spelling, fixed_folder, has_marks
from service.settings import Settings

Access = Literal["files", "folder", "write"]
"""`files` may be a glob and may be uploads; `folder` is to read, too: a model, a data set."""

_MOST_ENTRIES = 20_000
_MOST_VISITED = 100_000
_LONGEST_WALK_S = 5.0


@dataclass(frozen=True)
class Places:
    """What is allowed to one tenant.

    Attributes:
        roots: real paths of the allowed folders.
        remote_roots: allowed prefixes on object stores, without a slash at the end.
        data_dir: real path of the service's own directory.
        jobs_dir: real path of the jobs' directory in it.
        uploads_dir: real path of the uploads' directory in it.
        own_uploads: real path of the tenant's uploads.
        owns_job: whether a job is the tenant's.
    """

    roots: tuple[str, ...]
    remote_roots: tuple[str, ...]
    data_dir: str
    jobs_dir: str
    uploads_dir: str
    own_uploads: str
    owns_job: Callable[[str], bool]

    @classmethod
    def of(cls, settings: Settings, own_uploads: Path, owns_job: Callable[[str], bool]) -> Self:
        """The places that the settings allow."""
        remote = tuple(root.rstrip("/") for root in settings.allow_root if REMOTE.match(root))
        local = (root for root in settings.allow_root if not REMOTE.match(root))
        return cls(
            roots=tuple(os.path.realpath(os.path.expanduser(root)) for root in local),
            remote_roots=remote,
            data_dir=os.path.realpath(settings.data_dir),
            jobs_dir=os.path.realpath(settings.jobs_dir),
            uploads_dir=os.path.realpath(settings.uploads_dir),
            own_uploads=os.path.realpath(own_uploads),
            owns_job=owns_job,
        )

    def check(self, place: str, access: Access) -> None:
        """Refuse a place that is not allowed, or that cannot be told apart from one."""
        check_spelling(place)
        if access == "files":
            check_glob(place)
        elif has_marks(place):
            raise Refused(f"{quote(place)} has one of * ? [, which is for files to read; name one folder or file")
        if REMOTE.match(place):
            self._check_remote(place)
        else:
            self._check_local(place, access)

    def check_tree(self, folder: str) -> None:
        """Refuse a folder from which a symbolic link leads to a place that is not allowed."""
        entries = 0
        for parent, folders, files in os.walk(folder):
            entries += len(folders) + len(files)
            if entries > _MOST_ENTRIES:
                raise Refused(f"the folder {quote(folder)} has more than {_MOST_ENTRIES:,} entries; name a smaller one")
            for name in (*folders, *files):
                path = os.path.join(parent, name)
                if os.path.islink(path):
                    self._check_real(path, "folder", folder)

    def _check_remote(self, place: str) -> None:
        fixed = fixed_folder(place) if has_marks(place) else place.rstrip("/")
        if not any(_inside(fixed, root) for root in self.remote_roots):
            raise self._outside(place)

    def _check_local(self, place: str, access: Access) -> None:
        if not has_marks(place):
            self._check_real(place, access, place)
            _check_ordinary(place)
            return
        self._check_real(fixed_folder(place), access, place)
        matched = _match(place)
        for folder in {name.rpartition("/")[0] or "/" for name in matched}:
            self._check_real(folder, access, place)
        for name in matched:  # what is no link lies where its folder does
            if os.path.islink(name) and not os.path.isdir(name):
                self._check_real(name, access, place)

    def _check_real(self, path: str, access: Access, place: str) -> None:
        """Where a path leads in the end; `place` is what was asked for, and alone is named in the message."""
        try:
            real = os.path.realpath(path)
        except OSError as error:
            raise Refused(f"{quote(place)} cannot be followed; correct the path") from error
        if not self._allows(real, access):
            raise self._outside(place)

    def _allows(self, real: str, access: Access) -> bool:
        if _inside(real, self.jobs_dir):
            job_id = real[len(self.jobs_dir) :].lstrip("/").partition("/")[0]
            return access != "write" and bool(re.match(JOB_ID_PATTERN, job_id)) and self.owns_job(job_id)
        if _inside(real, self.uploads_dir):
            return access == "files" and _inside(real, self.own_uploads)
        if access == "write" and any(_inside(own, real) for own in (self.data_dir, self.jobs_dir, self.uploads_dir)):
            return False  # it holds what is the service's own
        in_data_dir = _inside(real, self.data_dir)
        return any(
            _inside(real, root)
            for root in self.roots
            if not in_data_dir or (_inside(root, self.data_dir) and root != self.data_dir)
        )

    def _outside(self, place: str) -> Refused:
        roots = sorted((*self.roots, *self.remote_roots))
        return Refused(
            f"{quote(place)} lies outside of what is allowed here; use a place under {' or '.join(roots)}"
            if roots
            else f"{quote(place)} lies outside of what is allowed here, and no root is; upload the corpus, or ask the "
            "operator for an allowed root"
        )


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _check_ordinary(path: str) -> None:
    """Refuse devices, pipes and sockets: opening one can block a worker for ever."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # not there (yet), or not readable: whoever opens it will say so
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise Refused(f"{quote(path)} is neither a file nor a folder; name one")


def overlaps(output: str, others: Iterable[str]) -> str | None:
    """The first of other jobs' outputs that is this one, lies in it or holds it; None if all are apart from it.

    By whole path segments; on this machine, by where symbolic links lead.
    """
    place = _real_place(output)
    for other in others:
        there = _real_place(other)
        if _inside(place, there) or _inside(there, place):
            return other
    return None


def _real_place(uri: str) -> str:
    path = storage.local_path(uri)
    return uri.rstrip("/") if path is None else os.path.realpath(path.expanduser())


# ------------------------------------------------------------------------------------------------ globs


class _BoundedFiles(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Local files that can be looked at so often and for so long, then raise TooWide."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self._visited, self._until = 0, time.monotonic() + _LONGEST_WALK_S

    def info(self, path: Any, **options: Any) -> Any:
        self._visited += 1
        if self._visited > _MOST_VISITED or time.monotonic() > self._until:
            raise TooWide
        return super().info(path, **options)


def _match(glob: str) -> list[str]:
    """What a glob matches now, symbolic links too: readers differ in whether they follow those."""
    try:
        _, path = filesystem(glob)
        return list(_BoundedFiles().glob(path))
    except TooWide:
        raise TooWide(
            f"{quote(glob)} has more than {_MOST_VISITED:,} files and folders to look through, or they are slow to "
            "list; narrow it: begin further down, or without **"
        ) from None
    except (StorageError, OSError, ValueError, re.error) as error:
        raise Refused(f"the files of {quote(glob)} cannot be listed; correct the pattern") from error
