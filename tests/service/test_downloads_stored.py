"""Downloads of objects in stores, through a real nginx, and what they cost in memory."""

import hashlib
import os
import runpy
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from curator import storage
from curator.errors import StorageError
from service.downloads import Accelerator
from service.stored_files import StoredFile

_SHELF = runpy.run_path(str(Path(__file__).with_name("shelf.py")))
MEDIA_TYPE, fetch = _SHELF["MEDIA_TYPE"], _SHELF["fetch"]


def test_an_object_is_sent_through_the_service_with_the_same_ranges(shelf: Any, port: int) -> None:
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


def test_only_files_of_its_folder_are_left_to_a_proxy(shelf: Any, port: int, tmp_path: Path) -> None:
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
def test_a_real_nginx_sends_the_file_with_our_etag_and_resumes_by_it(shelf: Any, port: int, tmp_path: Path) -> None:
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


def check_through_nginx(shelf: Any, front: int) -> None:
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
def test_memory_does_not_grow_with_the_file(shelf: Any, port: int) -> None:
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
