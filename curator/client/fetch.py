"""One shard over HTTP: from where it was cut, for as many connections as it takes, verified at the end.

`If-Range` names the version that is wanted, so that the service sends the rest of the same bytes or the whole of the
new ones; the sha256 of the result decides. Behind a proxy that sends the files itself the version goes by that proxy's
ETag, and at an object store, to which a request may be referred, by none: there the digest alone tells.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from curator.client.connection import Connection, Patience, Transient
from curator.client.part import PartFile
from curator.client.records import RemoteShard
from curator.errors import ServerError

OnProgress = Callable[[int, int], None]
"""Told bytes that are here, and bytes in all; called by several threads, one at a time."""

_DIGEST = re.compile(r'"[0-9a-f]{64}"')


class ShardChanged(Exception):
    """The service has another file under this number than it listed."""


class Tally:
    """Bytes that are here, of all; safe for many threads."""

    def __init__(self, total: int, tell: OnProgress | None) -> None:
        self._total, self._tell, self._lock, self._done = total, tell, threading.Lock(), 0

    def add(self, amount: int) -> None:
        """So many more are here, or fewer."""
        with self._lock:
            self._done += amount
            if self._tell is not None:
                self._tell(self._done, self._total)


@dataclass
class ShardFetch:
    """The work on one shard.

    Attributes:
        connection: to the service.
        path: of the shard there.
        shard: what is listed of it.
        part: what is here of it.
        tally: told what arrives.
        halt: when set, no further byte is read.
    """

    connection: Connection
    path: str
    shard: RemoteShard
    part: PartFile
    tally: Tally
    halt: threading.Event

    def __post_init__(self) -> None:
        self._version = f'"{self.shard.sha256}"'
        self._patience: Patience = self.connection.patience(self.halt)
        self.tally.add(self.part.size_bytes)

    def run(self) -> None:
        """Complete the part.

        Raises:
            ShardChanged: another file is there by now.
            ServerError: the service refused, was gone for too long, or sends bytes of another digest.
            StorageError: the part cannot be written.
        """
        if self.part.size_bytes > self.shard.bytes:
            self._clear()
        resumed = self.part.size_bytes > 0
        self._patience.attempts()(self._receive)
        if resumed and self.part.sha256 != self.shard.sha256:  # what an earlier run left was damaged
            self._clear()
            self._patience.attempts()(self._receive)
        if self.part.sha256 != self.shard.sha256:
            found, listed = self.part.sha256, self.shard.sha256
            self._clear()
            raise ServerError(
                f"{self.connection.root}: shard {self.shard.number} arrived with sha256 {found}, and {listed} is "
                "listed; its file on the service is damaged: verify the job's output there"
            )

    def _receive(self) -> None:
        """One connection's worth, from where the last one was cut."""
        if self.part.size_bytes == self.shard.bytes:
            return
        headers = {"Accept-Encoding": "identity"}
        if self.part.size_bytes:
            headers |= {"Range": f"bytes={self.part.size_bytes}-", "If-Range": self._version}
        try:
            with self.connection.stream("GET", self.path, headers=headers, redirects=True) as response:
                self._begin(response)
                self._append(response)
        except ServerError as error:
            if error.status != 416:
                raise
            self._clear()  # an object store that has fewer bytes than are here has another file
            raise ShardChanged from None
        if self.part.size_bytes < self.shard.bytes:
            raise Transient(f"{self.connection.root}: {self.path} ended after {self.part.size_bytes:,} bytes")

    def _begin(self, response: httpx.Response) -> None:
        """Look at which bytes of which version come."""
        etag = response.headers.get("etag", "")
        if self.connection.same_origin(response.url) and etag and not etag.startswith("W/"):
            if _DIGEST.fullmatch(etag) and etag != f'"{self.shard.sha256}"':
                raise ShardChanged
            self._version = etag
        if response.status_code != 206:
            self._clear()
        elif not response.headers.get("content-range", "").startswith(f"bytes {self.part.size_bytes}-"):
            self._clear()
            raise Transient(f"{self.connection.root}: {self.path} sent another range than was asked for")

    def _append(self, response: httpx.Response) -> None:
        for chunk in response.iter_raw():
            if self.halt.is_set():
                raise ServerError(f"the download of shard {self.shard.number} was stopped; run it again to go on")
            if self.part.size_bytes + len(chunk) > self.shard.bytes:
                self._clear()
                raise ShardChanged
            self.part.append(chunk)
            self.tally.add(len(chunk))
            self._patience.advance()

    def _clear(self) -> None:
        self.tally.add(-self.part.size_bytes)
        self.part.clear()
