"""deploy/smoke.py: it passes against a real service, and each of its checks can fail."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SMOKE = Path(__file__).parents[2] / "deploy" / "smoke.py"
ROWS = {"a": "one two", "b": "three"}


@pytest.fixture(scope="module")
def smoke(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(SMOKE)


def table(**changes: Any) -> pa.Table:
    columns = {
        "doc_id": ["a", "b"],
        "text": ["one two", "three"],
        "input_ids": [[1, 2, 3], [4, 5]],
        "labels": [[-100, 2, -100], [-100, 5]],
        "token_weights": [[0.0, 1.0, 0.0], [0.0, 1.0]],
    }
    return pa.table(columns | changes)


def test_sound_rows_pass(smoke: ModuleType) -> None:
    assert smoke.check_rows([table()], ROWS) == (5, 2)
    assert smoke.check_rows([table().slice(1), table().slice(0, 1)], ROWS) == (5, 2)  # in any order


@pytest.mark.parametrize(
    "tables",
    [
        [],
        [table().slice(1)],
        [table(), table().slice(0, 1)],
        [table(text=["one two", "four"])],
        [table(doc_id=["a", "a"])],
        [table(labels=[[-100, 2, 3], [-100, 5]])],
        [table(token_weights=[[0.0, 1.0, 0.5], [0.0, 1.0]])],
    ],
    ids=["nothing", "a row lost", "a row twice", "another text", "another id", "a label too many", "a weight too many"],
)
def test_rows_that_are_wrong_fail(smoke: ModuleType, tables: list[pa.Table]) -> None:
    with pytest.raises(smoke.Failed):
        smoke.check_rows(tables, ROWS)


class Answers:
    """A service that sends one shard."""

    def __init__(self, content: bytes, **headers: str) -> None:
        self._content, self._headers = content, headers

    def ask(self, method: str, path: str) -> tuple[bytes, dict[str, str]]:
        return self._content, self._headers


def test_a_shard_with_another_digest_fails(smoke: ModuleType) -> None:
    written = io.BytesIO()
    pq.write_table(table(), written)
    content = written.getvalue()
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "rows": 2}
    assert smoke.check_shard(Answers(content), "job", 0, entry).num_rows == 2
    with pytest.raises(smoke.Failed, match="sha256"):
        smoke.check_shard(Answers(content[:-1] + b"?"), "job", 0, entry)
    with pytest.raises(smoke.Failed, match="3"):
        smoke.check_shard(Answers(content), "job", 0, entry | {"rows": 3})
    with pytest.raises(smoke.Failed, match="Repr-Digest"):
        smoke.check_shard(Answers(content, **{"Repr-Digest": "sha-256=:AAAA:"}), "job", 0, entry)


def run(url: str, key: str | None, *options: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "CURATOR_API_KEY"}
    return subprocess.run(
        [sys.executable, SMOKE, url, *options], capture_output=True, text=True, timeout=300,
        env=environment | ({} if key is None else {"CURATOR_API_KEY": key}),
    )  # fmt: skip


def test_a_service_that_is_not_there_fails_and_a_missing_key_is_named() -> None:
    refused = run("http://127.0.0.1:9", "key")
    assert refused.returncode == 1 and refused.stdout.startswith("FAIL  GET /livez")
    nothing = run("http://127.0.0.1:9", None)
    assert nothing.returncode == 2 and "CURATOR_API_KEY" in nothing.stderr


@pytest.mark.parametrize("url", ["localhost:8000", "http://[::1", "http://127.0.0.1:port"])
def test_what_is_no_address_fails_in_one_line(url: str) -> None:
    refused = run(url, "key")
    assert refused.returncode == 1 and not refused.stderr
    assert refused.stdout.startswith("FAIL  GET /livez") and refused.stdout.count("\n") == 1


@pytest.mark.parametrize("sent", [b"<html>another server</html>", None], ids=["a page", "an answer cut short"])
def test_what_is_no_answer_of_the_service_fails_in_one_line(sent: bytes | None) -> None:
    class Another(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(sent or b"1234")))
            self.end_headers()
            self.wfile.write(sent or b"123")

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Another) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        refused = run(f"http://127.0.0.1:{server.server_port}", "key")
        server.shutdown()
    assert refused.returncode == 1 and not refused.stderr, refused.stderr
    assert refused.stdout.splitlines()[-1].startswith("FAIL  GET /")


@pytest.mark.slow
@pytest.mark.alone
def test_a_real_service_passes(tmp_path: Path) -> None:
    """Without a container: `make test-images` asks the same of one."""
    curator = Path(sys.executable).with_name("curator")
    command = [curator, "serve", "--port", "0", "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
        assert service.stdout is not None
        try:
            key = service.stdout.readline().removeprefix("API key: ").strip()
            url = service.stdout.readline().removeprefix("Listening on ").strip()
            done = run(url, key, "--rows", "60")
            wrong = run(url, key[:-1] + ("a" if key[-1] != "a" else "b"))
        finally:
            service.terminate()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line[:4] for line in done.stdout.splitlines()] == ["ok  "] * 9
    assert wrong.returncode == 1 and "401" in wrong.stdout
    jobs = [json.loads(path.read_text()) for path in tmp_path.glob("jobs/*/job.json")]
    assert len(jobs) == 1
