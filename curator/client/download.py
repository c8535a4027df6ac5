"""Bring a job's dataset here: shards in parallel, each resumed where it was cut, the manifest last.

A shard that is here and has its digest is kept. Of a job that still runs, the shards published so far are fetched and
`manifest.partial.json` says which; the same call later brings the rest. When the job is over, the folder passes
`curator verify`.

Invariant: `manifest.json` is written after every shard that it lists has been verified and is on the disk.
"""

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator import storage
from curator.client.connection import Connection
from curator.client.fetch import OnProgress, ShardChanged, ShardFetch, Tally
from curator.client.part import is_sound, open_part, place
from curator.client.records import RemoteShard
from curator.errors import OutputError, ServerError, StorageError
from curator.manifest import MANIFEST, PARTIAL_MANIFEST, REPORT
from curator.places import explained

_ROUNDS = 3


@dataclass(frozen=True)
class Download:
    """What is here now.

    Attributes:
        directory: the dataset's folder.
        complete: whether it is the whole dataset of a finished job.
        shards: how many it holds.
        bytes: their size.
        fetched: how many were not here before.
    """

    directory: Path
    complete: bool
    shards: int
    bytes: int
    fetched: int


class Downloader:
    """One download of one job; `run` may be called once."""

    def __init__(
        self,
        connection: Connection,
        job_path: str,
        list_shards: Callable[[], Iterator[RemoteShard]],
        directory: Path,
        parallel: int,
        on_progress: OnProgress | None,
    ) -> None:
        self._connection, self._job_path, self._list_shards = connection, job_path, list_shards
        self._directory, self._parallel, self._on_progress = directory, max(parallel, 1), on_progress
        self._halt = threading.Event()

    def run(self) -> Download:
        """Fetch what is missing.

        Raises:
            OutputError: the folder holds another dataset, or another download is at work in it.
            StorageError: it cannot be written, or the disk is too small.
            ServerError: the service refused, was gone for too long, or sends what it does not list.
        """
        with explained("write", str(self._directory)):
            self._directory.mkdir(parents=True, exist_ok=True)
        with _alone(self._directory):
            for _ in range(_ROUNDS):
                manifest, complete, shards = self._read_listing()
                self._refuse_other_dataset(manifest, complete)
                try:
                    fetched = self._fetch_all(shards)
                except ShardChanged:
                    continue
                self._write_rest(manifest, complete)
                return Download(self._directory, complete, len(shards), sum(s.bytes for s in shards), fetched)
        raise ServerError(
            f"{self._connection.root}: shards of {self._job_path} were replaced while they were fetched, {_ROUNDS} "
            "times; try again when the job has finished"
        )

    def _read_listing(self) -> tuple[bytes, bool, list[RemoteShard]]:
        answer = self._connection.send("GET", f"{self._job_path}/manifest")
        try:
            content: dict[str, Any] = answer.json()
            complete = bool(content.get("complete", True))
            listed = [RemoteShard.model_validate(shard) for shard in content["shards"]] if complete else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerError(
                f"{self._connection.root}: the manifest of {self._job_path} is unsound: {error}"
            ) from None
        shards = list(self._list_shards()) if listed is None else listed
        files = [shard.file for shard in shards]
        if len(set(files)) != len(files):
            raise ServerError(f"{self._connection.root}: {self._job_path} lists a shard file twice; nothing is written")
        return answer.content, complete, shards

    def _refuse_other_dataset(self, manifest: bytes, complete: bool) -> None:
        here = self._directory / MANIFEST
        if not here.exists():
            return
        with suppress(ValueError):
            if complete and json.loads(here.read_bytes()) == json.loads(manifest):
                return
        raise OutputError(
            f"{str(self._directory)!r} holds another dataset ({MANIFEST} differs from this job's); name another folder"
        )

    # ------------------------------------------------------------------------------------------------ shards

    def _fetch_all(self, shards: list[RemoteShard]) -> int:
        targets = [place(self._directory, shard.file) for shard in shards]
        self._check_space(shards, targets)
        tally = Tally(sum(shard.bytes for shard in shards), self._on_progress)
        self._halt.clear()
        with ThreadPoolExecutor(self._parallel, thread_name_prefix="download") as pool:
            work = [pool.submit(self._fetch, shard, to, tally) for shard, to in zip(shards, targets, strict=True)]
            try:
                done, _ = wait(work, return_when=FIRST_EXCEPTION)
            finally:  # also on Ctrl-C: those that run stop at their next chunk, and keep their part
                self._halt.set()
                pool.shutdown(wait=False, cancel_futures=True)
        for future in done:
            if error := future.exception():
                raise error
        return sum(future.result() for future in work)

    def _check_space(self, shards: list[RemoteShard], targets: list[Path]) -> None:
        missing = 0
        for shard, target in zip(shards, targets, strict=True):
            if not target.exists():
                part = target.with_name(target.name + ".part")
                missing += max(shard.bytes - (part.stat().st_size if part.exists() else 0), 0)
        free = storage.free_bytes(str(self._directory))
        if free is not None and missing > free:
            raise StorageError(
                f"{str(self._directory)!r} has {free:,} bytes free, and {missing:,} are to come; free some space, or "
                "name a folder on another disk"
            )

    def _fetch(self, shard: RemoteShard, target: Path, tally: Tally) -> bool:
        """Make sure of one shard; returns whether it had to be fetched."""
        if is_sound(target, shard.bytes, shard.sha256):
            tally.add(shard.bytes)
            return False
        path = f"{self._job_path}/shards/{shard.number}"
        with open_part(target) as part:
            ShardFetch(self._connection, path, shard, part, tally, self._halt).run()
            part.name_it(target)
        return True

    # ------------------------------------------------------------------------------------------------ the rest

    def _write_rest(self, manifest: bytes, complete: bool) -> None:
        root = str(self._directory)
        if not complete:
            storage.replace(root, PARTIAL_MANIFEST, manifest)
            return
        try:
            storage.replace(root, REPORT, self._connection.send("GET", f"{self._job_path}/report").content)
        except ServerError as error:
            if error.status not in (404, 409):  # a dataset without a report is whole
                raise
        storage.replace(root, MANIFEST, manifest)
        (self._directory / PARTIAL_MANIFEST).unlink(missing_ok=True)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other downloads out of the folder meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(
            f"another download is at work in {str(directory)!r}; wait for it, or name another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)
