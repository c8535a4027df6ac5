"""Downloads over real sockets that are cut anywhere, and of files that change under way."""

import asyncio
import base64
import hashlib
import http.client
import os
import random
import runpy
import socket
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from service.downloads import Download
from service.stored_files import OpenFile, StoredFile

_SHELF = runpy.run_path(str(Path(__file__).with_name("shelf.py")))
MEDIA_TYPE, fetch = _SHELF["MEDIA_TYPE"], _SHELF["fetch"]
open_descriptors, wait_until_closed = _SHELF["open_descriptors"], _SHELF["wait_until_closed"]


def test_whole_parts_conditions_and_refusals(shelf: Any, port: int) -> None:
    size, etag = len(shelf.content), shelf.etag
    whole, body = fetch(port)
    digest = base64.b64encode(hashlib.sha256(shelf.content).digest()).decode()
    assert (whole.status, body) == (200, shelf.content)
    said = {name.lower(): value for name, value in whole.getheaders() if name.lower() not in ("date", "server")}
    assert said == {
        "content-type": MEDIA_TYPE,
        "content-length": str(size),
        "content-disposition": 'attachment; filename="00007.parquet"',
        "etag": etag,
        "repr-digest": f"sha-256=:{digest}:",
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
    }
    head, nothing = fetch(port, "HEAD", Range="bytes=0-1")  # a range means something to GET alone
    assert (head.status, nothing, head.headers["Content-Length"], head.headers["ETag"]) == (200, b"", str(size), etag)

    part, body = fetch(port, Range="bytes=1048570-1048580", If_Range=etag)
    assert (part.status, body) == (206, shelf.content[1048570:1048581])
    assert part.headers["Content-Range"] == f"bytes 1048570-1048580/{size}"
    assert part.headers["Content-Length"] == "11" and part.headers["Repr-Digest"] == said["repr-digest"]
    assert fetch(port, Range="bytes=-1")[1] == shelf.content[-1:]
    assert fetch(port, Range=f"bytes={size - 1}-{size * 9}")[1] == shelf.content[-1:]

    unchanged, body = fetch(port, If_None_Match=f'"x", W/{etag}', Range="bytes=0-1")
    assert (unchanged.status, body, unchanged.headers["ETag"]) == (304, b"", etag)
    beyond, body = fetch(port, Range=f"bytes={size}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    assert beyond.headers["Content-Type"] == "application/problem+json" and b"range_not_satisfiable" in body
    assert fetch(port, If_Match='"other"')[0].status == 412
    assert fetch(port, "HEAD", If_Match='"other"')[0].status == 412
    wait_until_closed(shelf.path)


def test_an_empty_file(shelf: Any, port: int) -> None:
    shelf.write(b"")
    assert [fetch(port)[0].status, fetch(port)[1], fetch(port, Range="bytes=-1")[0].status] == [200, b"", 200]
    assert fetch(port, Range="bytes=0-")[0].status == 416


def read_some(port: int, etag: str | None, start: int, wanted: int) -> tuple[int, bytes]:
    """Ask for the rest from `start`, cut the connection after about `wanted` bytes; gives status and bytes."""
    lines = ["GET /f HTTP/1.1", "Host: x"] + ([f"Range: bytes={start}-", f"If-Range: {etag}"] if start else [])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read(wanted)


def test_cut_anywhere_and_resumed_the_digest_is_right(shelf: Any, port: int) -> None:
    generator = random.Random(7)
    for _ in range(20):
        got = bytearray()
        while len(got) < len(shelf.content):
            wanted = generator.choice([1, 1 << 10, 1 << 16, 1 << 20, 3 << 20])
            status, block = read_some(port, shelf.etag, len(got), generator.randint(1, wanted))
            assert status == (206 if got else 200)
            got += block
        assert bytes(got) == shelf.content
    wait_until_closed(shelf.path)


def test_a_file_made_anew_is_sent_whole_never_as_a_mix(shelf: Any, port: int) -> None:
    _, first = read_some(port, None, 0, 1_000_000)
    old = shelf.etag
    shelf.write(os.urandom(len(shelf.content)))
    status, again = read_some(port, old, len(first), len(shelf.content))
    assert (status, again) == (200, shelf.content)


def test_a_damaged_file_is_refused_and_the_remedy_named(shelf: Any, port: int) -> None:
    with shelf.path.open("ab") as file:
        file.write(b"more")
    for headers in ({}, {"Range": "bytes=0-9"}):
        refused, body = fetch(port, **headers)
        assert refused.status == 409 and b"remove it and resume the job" in body, body
    assert fetch(port, "HEAD")[0].status == 409
    shelf.path.unlink()
    gone, body = fetch(port)
    assert gone.status == 404 and b"resume the job to have it made again" in body
    shelf.path.symlink_to("/etc/passwd")
    assert b"it is not a plain file" in fetch(port)[1]
    shelf.path.unlink()
    os.mkfifo(shelf.path)
    assert b"it is not a plain file" in fetch(port)[1]


def test_bytes_changed_after_publishing_are_noticed_at_equal_size(shelf: Any, port: int) -> None:
    later_ns = shelf.known.recorded_ns
    assert later_ns is not None
    os.utime(shelf.path, ns=(later_ns + 10**9, later_ns + 10**9))  # a copy: younger than its receipt, but the same
    assert fetch(port, Range="bytes=0-4")[1] == shelf.content[:5]
    with shelf.path.open("r+b") as file:
        file.seek(4_000_000)
        file.write(b"damage")
    os.utime(shelf.path, ns=(later_ns + 10**9 + 1, later_ns + 10**9 + 1))
    refused, body = fetch(port, Range="bytes=0-4")
    assert refused.status == 409 and b"its sha256 is" in body


@pytest.mark.parametrize("how", ["truncated", "rewritten"])
def test_a_file_that_changes_while_it_is_sent_cuts_the_connection(shelf: Any, port: int, how: str) -> None:
    shelf.write(os.urandom(40_000_000))  # more than sockets hold
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/f")
    response = connection.getresponse()
    got = response.read(100_000)
    if how == "truncated":
        os.truncate(shelf.path, 20_000_000)
    else:
        with shelf.path.open("r+b") as file:
            file.write(os.urandom(40_000_000))
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)) as raised:
        got += response.read()
    if isinstance(raised.value, http.client.IncompleteRead):
        got += raised.value.partial
    assert shelf.content.startswith(got) and len(got) < len(shelf.content)
    connection.close()
    wait_until_closed(shelf.path)


def test_a_client_that_leaves_gives_the_descriptor_back(shelf: Any, port: int) -> None:
    shelf.write(os.urandom(40_000_000))
    clients = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(8)]
    for client in clients:
        client.request("GET", "/f")
    answers = [client.getresponse() for client in clients]
    assert open_descriptors(shelf.path) == 8  # stalled: nobody reads
    for answer, client in zip(answers, clients, strict=True):
        answer.close()
        client.close()
    wait_until_closed(shelf.path)


class SlowFile:
    """A disk that takes its time over the first block."""

    block_bytes = 10

    def __init__(self) -> None:
        self.asked, self.answers, self.closed = threading.Event(), threading.Event(), threading.Event()

    def read(self, start: int, length: int) -> bytes:
        self.asked.set()
        assert self.answers.wait(5) and not self.closed.is_set()
        return b"x" * length

    def close(self) -> None:
        self.closed.set()


def test_a_descriptor_is_not_closed_under_a_read_that_is_still_at_work() -> None:
    """Otherwise the read could go on in another file that got the same number."""
    slow = SlowFile()

    class OnSlowDisk(StoredFile):
        def open(self) -> OpenFile:
            return slow

    async def never(*_: object) -> NoReturn:
        raise AssertionError(await asyncio.Event().wait())

    async def forget(message: object) -> None:
        pass

    async def cancel_while_reading() -> None:
        response = Download(OnSlowDisk("x", "00", 100), None, {"Content-Type": MEDIA_TYPE})
        sending = asyncio.create_task(response({"type": "http", "method": "GET"}, never, forget))
        await asyncio.to_thread(slow.asked.wait, 5)
        sending.cancel()
        await asyncio.wait([sending])
        assert not slow.closed.is_set()
        slow.answers.set()
        assert await asyncio.to_thread(slow.closed.wait, 5)

    asyncio.run(cancel_while_reading())
