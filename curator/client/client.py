"""`Client`: what the service can do, one method each.

A request is tried again, for as long as the client's patience lasts, where that is safe. Submitting always carries an
Idempotency-Key, so that a cut answer never makes a second job.
"""

import base64
import hashlib
import math
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from curator.client.answers import Record, ask, ask_mapping, parse, read_pages
from curator.client.connection import Connection
from curator.client.download import Download, Downloader
from curator.client.fetch import OnProgress
from curator.client.follow import Numbered, follow
from curator.client.names import plain_name
from curator.client.records import Estimate, Identity, JobEvent, LogLine, RemoteJob, RemoteShard, RemoteUpload
from curator.client.specs import Spec, encode_spec
from curator.errors import ServerError
from curator.places import explained

KEY_VARIABLE = "CURATOR_API_KEY"
_POLL_S = 30


class Client:
    """A curation service, as one key may use it. Safe for many threads; close it, or use it in a `with`.

    Every method raises ServerError when the service refuses, or cannot be reached for longer than `patience_s`.
    """

    def __init__(self, server: str, api_key: str | None = None, *, patience_s: float = 60.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            server: address of the service, such as `http://127.0.0.1:8000`.
            api_key: of the service; None = the environment variable CURATOR_API_KEY.
            patience_s: how long to try again while the service cannot be reached.

        Raises:
            ServerError: there is no key, or the address is none.
        """
        key = (api_key if api_key is not None else os.environ.get(KEY_VARIABLE, "")).strip()
        if not key:
            raise ServerError(f"there is no API key for {server!r}; export {KEY_VARIABLE}")
        self._connection = Connection(server, key, patience_s)

    def __repr__(self) -> str:
        return f"Client({str(self._connection.root)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._connection.close()

    def me(self) -> Identity:
        """Whose key this is and what it allows."""
        return self._ask(Identity, "GET", "/me")

    # ------------------------------------------------------------------------------------------------ one job

    def submit(self, spec: Spec, idempotency_key: str | None = None, kind: str = "curate") -> RemoteJob:
        """Hand in a job.

        Args:
            spec: mapping, `CurationSpec`, or path of a YAML or JSON file; `output` may be left out.
            idempotency_key: names this submission: a second one with the same key and spec gives the same job. None =
                a random one, which makes the retries of this call safe.
            kind: `curate`, or `train_reference` with a `TrainSpec`.

        Raises:
            SpecError: the service found faults in the spec.
        """
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._ask(RemoteJob, "POST", "/jobs", params=_kind(kind), headers=headers, content=encode_spec(spec))

    def validate(self, spec: Spec, kind: str = "curate", *, plan: bool = True) -> Estimate:
        """Check a spec and, with `plan`, say what the job will take; starts nothing. Arguments as in `submit`."""
        params = {**_kind(kind), "plan": None if plan else "false"}
        headers = {"Content-Type": "application/json"}
        return self._ask(
            Estimate, "POST", "/jobs:validate", params=params, headers=headers, content=encode_spec(spec), silence_s=600
        )  # planning reads the corpus

    def job(self, job_id: str) -> RemoteJob:
        """A job as it stands."""
        return self._ask(RemoteJob, "GET", _path(job_id))

    def watch(self, job_id: str, timeout_s: float | None = None) -> Iterator[RemoteJob]:
        """The job now and after each change, until it is over or `timeout_s` has passed."""
        end_s = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        etag: str | None = None
        while True:
            left_s = max(math.ceil(min(end_s - time.monotonic(), _POLL_S)), 0)
            answer = self._connection.send(
                "GET",
                _path(job_id),
                params={"wait": left_s if etag else None},
                headers={"If-None-Match": etag} if etag else None,
                silence_s=left_s + 30,
            )
            if answer.status_code != 304:
                etag = answer.headers.get("etag")
                job = parse(RemoteJob, answer.content, f"the answer of {self._connection.root} on {job_id}")
                yield job
                if job.finished:
                    return
            if time.monotonic() >= end_s:
                return
            if etag is None:  # something in between takes ETags away; do not ask without a pause
                time.sleep(1)

    def wait(self, job_id: str, timeout_s: float | None = None) -> RemoteJob:
        """Wait until a job is over, well or not; a ServerError when it is not after `timeout_s`."""
        for job in self.watch(job_id, timeout_s):  # noqa: B007 - the last one counts; the others are not kept
            pass
        if not job.finished:
            raise ServerError(f"job {job_id} is still {job.status} after {timeout_s} s; it goes on, wait longer")
        return job

    def cancel(self, job_id: str) -> RemoteJob:
        """Stop a job; what it has published stays."""
        return self._ask(RemoteJob, "POST", f"{_path(job_id)}/cancel")

    def resume(self, job_id: str) -> RemoteJob:
        """Let a failed or cancelled job go on from what it has published."""
        before = self.job(job_id)
        try:
            return self._ask(RemoteJob, "POST", f"{_path(job_id)}/resume")
        except ServerError as error:
            now = self.job(job_id)
            if error.status == 409 and now.attempt > before.attempt:  # an earlier try got through, its answer did not
                return now
            raise

    def delete(self, job_id: str) -> None:
        """Remove a job that is over, and what lies in its own directory."""
        self.job(job_id)
        try:
            self._connection.send("DELETE", _path(job_id))
        except ServerError as error:
            if error.status != 404:  # it was there a moment ago: an earlier try got through, its answer did not
                raise

    # ------------------------------------------------------------------------------------------------ of one job

    def events(self, job_id: str, *, follow: bool = True, after: int = 0) -> Iterator[JobEvent]:
        """What happened to a job, from the event after number `after` on.

        Args:
            job_id: the job.
            follow: go on until the job is over; none is lost or doubled when the connection is cut.
            after: id of the last event that is known already.
        """
        return self._records(JobEvent, f"{_path(job_id)}/events", follow, after)

    def logs(self, job_id: str, *, follow: bool = True, after: int = 0) -> Iterator[LogLine]:
        """What the job's process printed, line by line; arguments as in `events`."""
        return self._records(LogLine, f"{_path(job_id)}/logs", follow, after)

    def manifest(self, job_id: str) -> dict[str, Any]:
        """The dataset's manifest; of a job that is not completed, what is published so far and `complete: false`."""
        return ask_mapping(self._connection, f"{_path(job_id)}/manifest")

    def shards(self, job_id: str) -> Iterator[RemoteShard]:
        """The shards published so far."""
        return read_pages(self._connection, RemoteShard, f"{_path(job_id)}/shards", {})

    def preview(
        self, job_id: str, select: str = "kept", limit: int | None = None, shard: int | None = None
    ) -> dict[str, Any]:
        """Sample rows with their tokens, scores and weights; `select` is kept, dropped, near or all."""
        params = {"select": select, "limit": limit, "shard": shard}
        return ask_mapping(self._connection, f"{_path(job_id)}/preview", params)

    def download(
        self, job_id: str, directory: str | Path, parallel: int = 4, on_progress: OnProgress | None = None
    ) -> Download:
        """Bring the dataset, or what is published of it, into a folder; run again to go on.

        Args:
            job_id: the job.
            directory: the folder; sound shards in it are kept.
            parallel: shards fetched at a time.
            on_progress: told bytes that are here and bytes in all.

        Raises:
            OutputError: the folder holds another dataset.
            StorageError: it cannot be written, or the disk is full.
        """
        return Downloader(
            self._connection, _path(job_id), lambda: self.shards(job_id), Path(directory), parallel, on_progress
        ).run()

    # ------------------------------------------------------------------------------------------------ lists, files

    def jobs(
        self, *, status: str | None = None, name: str | None = None, kind: str | None = None
    ) -> Iterator[RemoteJob]:
        """All jobs, newest first; pages are read as the iterator gets there."""
        filters = {"status": status, "name": name, "kind": kind}
        return read_pages(self._connection, RemoteJob, "/jobs", filters)

    def uploads(self) -> Iterator[RemoteUpload]:
        """Files that were uploaded."""
        return read_pages(self._connection, RemoteUpload, "/uploads", {})

    def upload(self, path: str | Path) -> RemoteUpload:
        """Send a file, for a spec to name as its corpus; one with its name and bytes is used again.

        The service's name of it is the file's own, in plain letters: `données (2).jsonl` becomes `donnees_2_.jsonl`.
        """
        file = Path(path)
        filename = plain_name(file.name)
        with explained("read", str(file)), file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256")
        for upload in self.uploads():
            if (upload.filename, upload.sha256) == (filename, digest.hexdigest()):
                return upload
        headers = {
            "Content-Type": "application/octet-stream",
            "Repr-Digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:",
        }
        return self._ask(RemoteUpload, "POST", "/uploads", params={"filename": filename}, headers=headers, content=file)

    def _ask(self, kind: type[Record], method: str, path: str, **request: Any) -> Record:
        return ask(self._connection, kind, method, path, **request)

    def _records(self, kind: type[Numbered], path: str, go_on: bool, after: int) -> Iterator[Numbered]:
        if go_on:
            return follow(self._connection, path, kind, after)
        return read_pages(self._connection, kind, path, {"after": after}, lambda _, last: {"after": last.id})


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _kind(kind: str) -> dict[str, str | None]:
    return {"kind": None if kind == "curate" else kind}
