"""The folder in which a reference is made, beside where it will stand.

    .NAME-training/
        run.json        what is being trained: the spec and the digest of the data
        resume/         checkpoints to go on from (see milestones)
        best/           weights of the step with the lowest held-out loss so far
        checkpoints/    copies to keep
        model/          the whole output, finished once its record is in it; renamed to its place at the very end

Invariant: one process (or one group of them) at a time works here, and never on what another spec, base or data left:
that is an error until somebody removes it. A resume point, a kept copy or a finished model outlives every error but
divergence; only a folder without any is removed. Nothing is ever removed that a training did not make: a link, or a
folder with anything else in it, is refused.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from curator.errors import CuratorError, OutputError
from curator.spec import differences
from curator.training.reference.milestones import find_progress, has_resume_point
from curator.training.reference.record import RECORD
from curator.training.reference.spec import Say
from curator.training.reference.writing import cannot_write, remove, written

_IDENTITY, _LOCK = "run.json", "lock"
_OWN = frozenset({_IDENTITY, _LOCK, "resume", "best", "checkpoints", "model"})
RAY_RUN, RAY_FAILED = "training", "failed"


@dataclass(frozen=True)
class Staging:
    """Its places."""

    root: Path

    @property
    def resume(self) -> Path:
        """Checkpoints to go on from."""
        return self.root / "resume"

    @property
    def best(self) -> Path:
        """Weights of the best step."""
        return self.root / "best"

    @property
    def checkpoints(self) -> Path:
        """Copies to keep."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The output in the making."""
        return self.root / "model"

    @property
    def is_finished(self) -> bool:
        """Whether the model is whole, and only its place is missing."""
        return (self.model / RECORD).is_file()

    @property
    def mark(self) -> str:
        """What the process that holds the lock has written there; empty where it cannot be read."""
        try:
            return (self.root / _LOCK).read_text()
        except OSError:
            return ""

    @property
    def copies(self) -> list[Path]:
        """The folders of kept copies."""
        return sorted(self.checkpoints.glob("[!.]*"))

    @property
    def has_results(self) -> bool:
        """Whether anything is in it that took training to make."""
        return self.is_finished or bool(self.copies) or has_resume_point(self.resume)

    def forget(self) -> None:
        """Remove what was reached, for weights that diverged lead nowhere."""
        for folder in (self.resume, self.best, self.checkpoints, self.model):
            remove(folder)

    def publish(self, output: Path) -> None:
        """Give the finished model its place, which is absent or an empty folder; can be repeated when it failed."""
        try:
            if self.checkpoints.is_dir():
                self.checkpoints.rename(self.model / "checkpoints")
            self.model.rename(output)
        except OSError as error:
            raise OutputError(
                f"the reference cannot be put at {str(output)!r} ({error.strerror}); make that an absent or empty "
                f"folder and run the same command again, which trains nothing anew: it is finished, in "
                f"{str(self.model)!r}"
            ) from error


def staging_of(output: Path) -> Staging:
    """Where the reference that will stand at `output` is made."""
    return Staging(output.parent / f".{output.name}-training")


def ray_folder_of(output: Path) -> Path:
    """Where Ray Train itself writes meanwhile; on storage that all machines see, as it insists."""
    return output.parent / f".{output.name}-ray"


@contextmanager
def open_ray_folder(output: Path) -> Iterator[Path]:
    """Take Ray Train's folder, with what an earlier training left, and remove it at the end.

    Raises:
        OutputError: it cannot be made, another process trains by it, or no training made what is there.
    """
    folder = ray_folder_of(output)
    try:
        _refuse_foreign(folder, frozenset({_LOCK, _IDENTITY, RAY_RUN, RAY_FAILED}))
        folder.mkdir(parents=True, exist_ok=True)
        locked = _lock(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    with locked:
        try:
            with written(folder / _IDENTITY):
                (folder / _IDENTITY).write_text(json.dumps({"output": output.name}), encoding="utf-8")
            remove(folder / RAY_FAILED)
            yield folder
        finally:
            remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a staging or Ray folder: what says whose it is goes last, so that a removal cut off can be repeated."""
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        if entry.name not in (_LOCK, _IDENTITY):
            remove(entry)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_staging(output: Path, identity: dict[str, Any], say: Say) -> Iterator[Staging]:
    """Take the folder, with what an interrupted run of the same identity left; clear it when all went well.

    Args:
        output: where the reference will stand.
        identity: what decides the weights; JSON values.
        say: takes progress lines.

    Raises:
        OutputError: another process works there, an unfinished run of another identity left results there, a resume
            point is damaged, what is there is no staging folder, or none can be made.
    """
    staging = staging_of(output)
    try:
        _refuse_foreign(staging.root, _OWN)
        staging.root.mkdir(parents=True, exist_ok=True)
        locked = _lock(staging.root)
    except OSError as error:
        raise cannot_write(staging.root, error) from error
    with locked:
        _settle(staging, identity, say)
        try:
            yield staging
        except BaseException as error:
            if not staging.has_results:
                remove_folder(staging.root)
            elif not isinstance(error, CuratorError):  # which says itself what helps
                say(_what_comes_next(staging))
            raise
        remove_folder(staging.root)


def clear_leftover(output: Path, identity: dict[str, Any]) -> None:
    """Remove the folder of a training that was cut off when its output already stood; not while anyone works there."""
    root = staging_of(output).root
    try:
        _refuse_foreign(root, _OWN)
        if json.loads((root / _IDENTITY).read_bytes()) != identity:
            return
        locked = _lock(root)
    except (OSError, ValueError, OutputError):
        return
    with locked:
        remove_folder(root)


def _what_comes_next(staging: Staging) -> str:
    if staging.is_finished:
        return "interrupted; the reference is finished, and the same command puts it in its place"
    progress = find_progress(staging.resume)
    if progress is not None:
        return f"interrupted; the same command goes on from step {progress.step:,}"
    return f"interrupted before a resume point; the copies that were kept so far are in {staging.checkpoints}"


def _refuse_foreign(folder: Path, known: Set[str]) -> None:
    """Refuse what a training did not make: it would be overwritten and removed."""
    problem = None
    if folder.is_symlink():
        problem = "is a symbolic link"
    elif folder.is_dir():
        entries = {entry.name: entry.is_symlink() for entry in folder.iterdir()}
        strange = sorted(name for name, linked in entries.items() if linked or name not in known)
        if strange:
            problem = f"holds {strange[0]!r}, which no training made"
        elif not entries.keys() <= {_LOCK} and _IDENTITY not in entries:
            problem = f"has no {_IDENTITY}, so no training made it"
    elif folder.exists():
        problem = "is no folder"
    if problem is not None:
        raise OutputError(
            f"{str(folder)!r} {problem}, and it is where the reference would be made; move it away, or name another "
            "output"
        )


def _lock(root: Path) -> IO[bytes]:
    """The locked file; closing it gives the folder free."""
    lock = open(root / _LOCK, "ab")  # noqa: SIM115  the caller closes it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = os.path.samestat(os.fstat(lock.fileno()), os.stat(root / _LOCK))
    except (BlockingIOError, FileNotFoundError):
        taken = False
    if not taken:
        lock.close()
        raise OutputError(f"another process is training in {str(root)!r}; wait for it, or name another output")
    lock.truncate(0)
    lock.write(uuid4().hex.encode())
    lock.flush()
    os.fsync(lock.fileno())
    return lock


def _settle(staging: Staging, identity: dict[str, Any], say: Say) -> None:
    """Keep what can be gone on from, refuse what is another's, remove the rest."""
    file = staging.root / _IDENTITY
    if staging.has_results:
        changed = differences(_read(file), identity)
        if changed:
            raise OutputError(
                f"{str(staging.root)!r} holds an unfinished training of another spec, base or data "
                f"({'; '.join(changed)}); finish it as it was, remove the folder, or name another output"
            )
    if staging.is_finished:
        return
    if find_progress(staging.resume) is not None:
        remove(staging.model)
        return
    if staging.copies:
        say(f"{len(staging.copies)} kept copies, and no resume point: the training begins anew, and makes them again")
    with written(file):
        file.write_text(json.dumps(identity), encoding="utf-8")  # first: it says from now on whose folder this is
    for entry in list(staging.root.iterdir()):
        if entry.name not in (_LOCK, _IDENTITY):
            remove(entry)


def _read(file: Path) -> Any:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise OutputError(
            f"{str(file)!r} is damaged, so nobody knows what was being trained in its folder; remove "
            f"{str(file.parent)!r}, or name another output"
        )
    return content
