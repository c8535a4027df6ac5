"""Coverage-guided fuzzing of every parser that reads what others wrote (fuzz/targets.py): a few seconds in all here.

The long form gives each target its own process and 300 seconds, or what CURATOR_FUZZ_S says.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SECONDS = int(os.environ.get("CURATOR_FUZZ_S", "300")) if os.environ.get("CURATOR_SOAK") else 12
TARGETS = (
    ("spec", "body", "uri", "range", "cursor", "jsonl", "parquet", "footer", "stream", "names", "bigram")
    if os.environ.get("CURATOR_SOAK")
    else ("all",)
)
LARGE_PARENT = "import subprocess, sys; held = b'x' * 10**9; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
RUN = Path(__file__).parent / "fuzz" / "run.py"


def fuzz(target: str, seconds: int, folder: Path, parent: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run it from a shell, as a program begins with the peak of memory of the process that started it.

    That would be pytest, which may have held gigabytes: libFuzzer would take them for what an input takes.
    """
    command = [*parent, "sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(RUN), target, str(seconds), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds + 120)


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_what_a_parser_promises(target: str, tmp_path: Path) -> None:
    done = fuzz(target, SECONDS, tmp_path)
    units = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    assert done.returncode == 0, f"{[path.name for path in tmp_path.glob('*-*')]} {done.stdout}{done.stderr[-2000:]}"
    assert units is not None and int(units[1]) > 100 * len(TARGETS)
    print(f"{target}: {units[1]} inputs in {SECONDS} s")


def test_a_broken_promise_is_found(tmp_path: Path) -> None:
    """The fuzzer itself: a parser that fails on four bytes is caught within seconds, whoever has started it."""
    done = fuzz("broken", 30, tmp_path, [sys.executable, "-c", LARGE_PARENT])
    assert done.returncode != 0 and "four bytes" in done.stdout + done.stderr
    assert len(list(tmp_path.glob("crash-*"))) == 1
    peak_mb = re.search(r"peak_rss_mb:\s*(\d+)", done.stderr)
    assert peak_mb is not None and 20 < int(peak_mb[1]) < 800
