"""A file on a real server, for the tests of downloads; run by their files."""

import hashlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response

from service import problems
from service.downloads import Accelerator, respond
from service.stored_files import StoredFile

MEDIA_TYPE = "application/vnd.apache.parquet"


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """A real server on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http="httptools", lifespan="off", log_config=None, timeout_graceful_shutdown=2)
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
