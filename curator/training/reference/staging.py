"""The folder in which a reference is made, beside where it will stand.

    .NAME-training/
        run.json        what is being trained: the spec and the digest of the data
        resume/         checkpoints to go on from (see milestones)
        best/           weights of the step with the lowest held-out loss so far
        checkpoints/    copies to keep
        model/          the whole output; renamed to its place at the very end

Invariant: one process (or one group of them) at a time works here, and never on what another spec or other data left:
that is an error until somebody removes it. A folder from which nothing could be resumed is removed without a word, and
nothing is ever removed that a training did not make: a link, or a folder with anything else in it, is refused.
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

from curator import storage
from curator.errors import OutputError
from curator.spec import differences
from curator.training.reference.milestones import find_progress
from curator.training.reference.spec import Say

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

    def publish(self, output: Path) -> None:
        """Give the finished model its place, which is absent or an empty folder."""
        try:
            if self.checkpoints.is_dir():
                self.checkpoints.rename(self.model / "checkpoints")
            self.model.rename(output)
        except OSError as error:
            raise OutputError(
                f"the reference cannot be put at {str(output)!r} ({error.strerror}); make that an absent or empty "
                "folder and run the same command again"
            ) from error

    def take_back(self) -> None:
        """Undo a `publish` that was cut off: the copies are kept again, and the model is to be written anew."""
        moved = self.model / "checkpoints"
        if moved.is_dir():
            self.checkpoints.mkdir(exist_ok=True)
            for folder in moved.iterdir():
                if not (self.checkpoints / folder.name).exists():
                    folder.rename(self.checkpoints / folder.name)
        if self.model.is_dir():
            shutil.rmtree(self.model)


def find_output(output: str) -> Path:
    """The folder that a spec's output names; raises OutputError for an object store."""
    path = storage.local_path(output)
    if path is None:
        raise OutputError(
            f"output {output!r} is not on a local disk, where a reference is made and renamed to its place; name a "
            "folder, and copy it there afterwards"
        )
    return path.expanduser().absolute()


def staging_of(output: Path) -> Staging:
    """Where the reference that will stand at `output` is made."""
    return Staging(output.parent / f".{output.name}-training")


def ray_folder_of(output: Path) -> Path:
    """Where Ray Train itself writes meanwhile; on storage that all machines see, as it insists."""
    return output.parent / f".{output.name}-ray"


def take_ray_folder(output: Path) -> Path:
    """Make Ray Train's folder, or take what an earlier training left; raises OutputError if it is anything else."""
    folder = ray_folder_of(output)
    _refuse_foreign(folder, frozenset({_IDENTITY, RAY_RUN, RAY_FAILED}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _IDENTITY).write_text(json.dumps({"output": output.name}), encoding="utf-8")
    (folder / RAY_FAILED).unlink(missing_ok=True)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a staging or Ray folder: what says whose it is goes last, so that a removal cut off can be repeated."""
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        if entry.name not in (_LOCK, _IDENTITY):
            _remove(entry)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_staging(output: Path, identity: dict[str, Any], say: Say) -> Iterator[Staging]:
    """Take the folder, keeping what an interrupted run of the same identity left; clear it at the end.

    Args:
        output: where the reference will stand.
        identity: what decides the weights; JSON values.
        say: takes progress lines.

    Raises:
        OutputError: another process works there, an unfinished run of another identity can still be resumed, or what
            is there is no staging folder.
    """
    staging = staging_of(output)
    _refuse_foreign(staging.root, _OWN)
    staging.root.mkdir(parents=True, exist_ok=True)
    with _locked(staging.root) as lock:
        _settle(staging, identity)
        try:
            yield staging
        except BaseException:
            progress = find_progress(staging.resume)
            if progress is None:
                remove_folder(staging.root)
            else:
                say(f"interrupted; the same command goes on from step {progress.step:,}")
            raise
        remove_folder(staging.root)
        lock.flush()


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


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


@contextmanager
def _locked(root: Path) -> Iterator[IO[bytes]]:
    with open(root / _LOCK, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.path.samestat(os.fstat(lock.fileno()), os.stat(root / _LOCK))
        except (BlockingIOError, FileNotFoundError):
            taken = False
        if not taken:
            raise OutputError(f"another process is training in {str(root)!r}; wait for it, or name another output")
        yield lock


def _settle(staging: Staging, identity: dict[str, Any]) -> None:
    """Keep what can be resumed, refuse what is another's, remove the rest."""
    file = staging.root / _IDENTITY
    if find_progress(staging.resume) is not None:
        changed = differences(_read(file), identity)
        if changed:
            raise OutputError(
                f"{str(staging.root)!r} holds an unfinished training of another spec or data ({'; '.join(changed)}); "
                "finish it with its own spec, remove the folder, or name another output"
            )
        staging.take_back()
        return
    file.write_text(json.dumps(identity), encoding="utf-8")  # first: it says from now on whose folder this is
    for entry in list(staging.root.iterdir()):
        if entry.name not in (_LOCK, _IDENTITY):
            _remove(entry)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
