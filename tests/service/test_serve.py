"""`curator serve` that cannot start: one line that says why, the right exit status, and no password."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Serve = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Runs it to its end; extra keyword arguments are environment variables."""

    def run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(Path(sys.executable).with_name("curator")),
            "serve",
            "--data-dir",
            str(tmp_path / "data"),
            *options,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=variables)

    return run


@pytest.mark.slow
def test_a_port_in_use_is_told_before_anything_begins(serve: Serve, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve("--port", str(port), "--allow-root", "relative")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot listen") and str(port) in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == "" and not (tmp_path / "data" / "service.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "address",
    [
        "postgres://user:hunter%402@localhost/name",
        "postgresql://user:hunter%402@127.0.0.1:1/name",
        "postgresql://user:hunter%402@127.0.0.1:port/name",
        "oracle://user:hunter%402@127.0.0.1/name",
        "user:hunter%402@localhost",
    ],
)
def test_a_database_that_cannot_be_opened_is_told_without_its_password(serve: Serve, address: str) -> None:
    done = serve("--port", "0", CURATOR_DATABASE_URL=address)
    assert done.returncode == 1, done.stderr
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(told) == 1 and told[0].startswith("error: cannot start") and "database_url" in told[0]
    assert "hunter" not in done.stderr + done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
def test_wrong_settings_are_wrong_usage(serve: Serve) -> None:
    absent = serve("--settings", "missing.toml")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1) and "missing.toml" in absent.stderr
    stalled = serve(CURATOR_STALLED_S="15", CURATOR_DATABASE_URL="postgresql://user:hunter2@host/name")
    assert stalled.returncode == 2 and "heartbeat_s" in stalled.stderr and "hunter2" not in stalled.stderr
