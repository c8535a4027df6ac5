"""Downloads over real sockets that are cut anywhere, of files that change under way, and through a real nginx."""

import asyncio
import base64
import hashlib
import http.client
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from curator import storage
from curator.errors import StorageError
from service import problems
from service.downloads import Accelerator, Download, respond
from service.stored_files import OpenFile, StoredFile

MEDIA_TYPE = "application/vnd.apache.parquet"


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """A real server on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http="httptools", lifespan="off", log_level="critical", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class Shelf:
    """A file that the server gives out; `known` is what its receipt says."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.path, self.accelerator = folder / "00007.parquet", None
        self.write(os.urandom(size_bytes))

    accelerator: Accelerator | None

    def write(self, content: bytes) -> None:
        """Publish new content, as a new file."""
        self.content = content
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(content)
        self.known = StoredFile(str(self.path), hashlib.sha256(content).hexdigest(), len(content), time.time_ns())

    @property
    def etag(self) -> str:
        return f'"{self.known.sha256}"'

    def app(self) -> FastAPI:
        app = FastAPI()
        problems.install(app)

        @app.get("/f")
        @app.head("/f")
        def _file(request: Request) -> Response:
            return respond(
                request, self.known, filename=self.path.name, media_type=MEDIA_TYPE, accelerator=self.accelerator
            )

        return app


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path, 5_000_001)


@pytest.fixture
def port(shelf: Shelf) -> Iterator[int]:
    with serving(shelf.app()) as port:
        yield port


def fetch(port: int, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, "/f", headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def open_descriptors(path: Path) -> int:
    return sum(_target(name) == str(path) for name in os.listdir("/proc/self/fd"))


def _target(descriptor: str) -> str | None:
    """What it leads to; None if another thread has closed it since it was listed."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return None


def wait_until_closed(path: Path, timeout_s: float = 5) -> None:
    deadline_s = time.monotonic() + timeout_s
    while open_descriptors(path):
        assert time.monotonic() < deadline_s, "the descriptor is still open"
        time.sleep(0.005)


def test_whole_parts_conditions_and_refusals(shelf: Shelf, port: int) -> None:
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


def test_an_empty_file(shelf: Shelf, port: int) -> None:
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


def test_cut_anywhere_and_resumed_the_digest_is_right(shelf: Shelf, port: int) -> None:
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


def test_a_file_made_anew_is_sent_whole_never_as_a_mix(shelf: Shelf, port: int) -> None:
    _, first = read_some(port, None, 0, 1_000_000)
    old = shelf.etag
    shelf.write(os.urandom(len(shelf.content)))
    status, again = read_some(port, old, len(first), len(shelf.content))
    assert (status, again) == (200, shelf.content)


def test_a_damaged_file_is_refused_and_the_remedy_named(shelf: Shelf, port: int) -> None:
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


def test_bytes_changed_after_publishing_are_noticed_at_equal_size(shelf: Shelf, port: int) -> None:
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
def test_a_file_that_changes_while_it_is_sent_cuts_the_connection(shelf: Shelf, port: int, how: str) -> None:
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


def test_a_client_that_leaves_gives_the_descriptor_back(shelf: Shelf, port: int) -> None:
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


# ------------------------------------------------------------------------------------------------ stores and proxies


def test_an_object_is_sent_through_the_service_with_the_same_ranges(shelf: Shelf, port: int) -> None:
    content, uri = os.urandom(9_000_000), "memory://downloads/00007.parquet"
    storage.replace("memory://downloads", "00007.parquet", content)
    shelf.known = StoredFile(uri, hashlib.sha256(content).hexdigest(), len(content))
    assert fetch(port)[1] == content
    part, body = fetch(port, Range="bytes=8388600-8388699", If_Range=shelf.etag)
    assert (part.status, body) == (206, content[8388600:8388700])
    storage.replace("memory://downloads", "00007.parquet", content[:-1])
    assert fetch(port)[0].status == 409
    storage.remove(uri)
    assert fetch(port)[0].status == 404


def test_an_object_that_is_replaced_while_it_is_read_is_noticed() -> None:
    content, uri = os.urandom(1000), "memory://downloads/00008.parquet"
    storage.replace("memory://downloads", "00008.parquet", content)
    opened = StoredFile(uri, hashlib.sha256(content).hexdigest(), len(content)).open()
    assert opened.read(0, 400) == content[:400]
    storage.replace("memory://downloads", "00008.parquet", os.urandom(1000))
    with pytest.raises(StorageError, match="changed while it was sent"):
        opened.read(400, 600)
    opened.close()


def test_only_files_of_its_folder_are_left_to_a_proxy(shelf: Shelf, port: int, tmp_path: Path) -> None:
    shelf.accelerator = Accelerator("/internal/", tmp_path)
    answer, body = fetch(port)
    assert (answer.status, answer.headers["X-Accel-Redirect"], body) == (200, "/internal/00007.parquet", b"")
    assert fetch(port, Range="bytes=99999999-")[0].status == 416
    assert fetch(port, If_Match=shelf.etag)[1] == shelf.content
    shelf.accelerator = Accelerator("/internal", tmp_path / "elsewhere")
    assert fetch(port)[1] == shelf.content
    odd = tmp_path / "a b%2e?"
    odd.mkdir()
    assert Accelerator("/p", tmp_path).location(odd / "x.parquet") == "/p/a%20b%252e%3F/x.parquet"


NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
NGINX_CONFIG = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
    fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_set_header Host $host; }}
        location /internal/ {{
            internal;
            alias {data}/;
            etag off;
            if_modified_since off;
            add_header ETag $upstream_http_etag;
            add_header Repr-Digest $upstream_http_repr_digest;
        }}
    }}
}}
"""


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_real_nginx_sends_the_file_with_our_etag_and_resumes_by_it(shelf: Shelf, port: int, tmp_path: Path) -> None:
    shelf.accelerator = Accelerator("/internal", tmp_path)
    folder = tmp_path / "nginx"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        front = free.getsockname()[1]
    os.chmod(tmp_path, 0o755)
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(folder=folder, port=front, upstream=port, data=tmp_path))
    process = subprocess.Popen([str(NGINX), "-c", str(config), "-g", "user root;" if os.geteuid() == 0 else ""])
    try:
        wait_for_port(front)
        check_through_nginx(shelf, front)
    finally:
        process.terminate()
        process.wait()


def wait_for_port(port: int) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("nginx does not answer")


def check_through_nginx(shelf: Shelf, front: int) -> None:
    whole, body = fetch(front)
    assert (whole.status, body, whole.headers.get_all("ETag")) == (200, shelf.content, [shelf.etag])
    assert whole.headers["Content-Type"] == MEDIA_TYPE and "Repr-Digest" in whole.headers
    assert whole.headers["Content-Disposition"] == 'attachment; filename="00007.parquet"'
    part, body = fetch(front, Range="bytes=5-9", If_Range=shelf.etag)
    assert (part.status, body) == (206, shelf.content[5:10])
    other, body = fetch(front, Range="bytes=5-9", If_Range='"other"')
    assert (other.status, body) == (200, shelf.content)
    assert fetch(front, If_None_Match=shelf.etag)[0].status == 304
    assert fetch(front, If_Match='"other"')[0].status == 412
    assert fetch(front, If_Match=shelf.etag)[1] == shelf.content
    assert fetch(front, Range="bytes=99999999-")[0].headers["Content-Type"] == "application/problem+json"


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(shelf: Shelf, port: int) -> None:
    shelf.write(b"\0" * 300_000_000)
    shelf.content = b""
    buffer = bytearray(1 << 20)

    def drain() -> int:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            total = 0
            while count := connection.recv_into(buffer):
                total += count
                peaks.append(psutil.Process().memory_info().rss)
        return total

    peaks: list[int] = []
    assert drain() > 300_000_000
    first = max(peaks)
    peaks.clear()
    assert drain() > 300_000_000
    assert max(peaks) - first < 5_000_000 and first - min(peaks) < 50_000_000
