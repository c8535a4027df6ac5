"""The README's quick start, run as it is written."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"


def test_the_quick_start_of_the_readme_works_as_written(tmp_path: Path) -> None:
    found = re.search(r"<!-- quick start -->\n```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    with socket.socket() as free:  # the default port may be taken on this machine; nothing else is changed
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CURATOR_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CURATOR_PORT": port,
    }
    script = "set -e\ntrap 'kill $(jobs -p)' EXIT\n" + found[1].replace(":8000", f":{port}")
    ran = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    table = pq.read_table(tmp_path / "00000.parquet")
    assert table.column("text").to_pylist() == ["The cat sat on the mat.", "cat the mat on sat The"]
    assert "token_weights" in table.column_names
