"""Thousands of malformed inputs: none ends the process, none is lost without a word, and intact rows are kept.

Short form about 1,000, long form 10,000 and more, each in a process of its own under a limit of memory.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SOAK = bool(os.environ.get("CURATOR_SOAK"))
LINES, FILES = (8_000, 3_000) if SOAK else (900, 84)
PEAK_BYTES = 1 << 30
LONGEST_S = 7_200 if SOAK else 600


def test_malformed_inputs_are_quarantined_or_refused_and_end_nothing(
    mix_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps([row["text"].strip()[:300] for row in mix_rows[:200]]))
    script = Path(__file__).with_name("malformed.py")
    command = [sys.executable, str(script), str(tmp_path), "7", str(LINES), str(FILES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, env=environment)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it hangs, or is very slow, at input {(tmp_path / 'last').read_text()}")
    last = (tmp_path / "last").read_text()
    assert done.returncode == 0, f"it died at input {last}: {done.returncode} {done.stderr[-2000:]}"
    outcome: dict[str, Any] = json.loads(done.stdout)
    assert not outcome["complaints"], "\n".join(outcome["complaints"])
    assert outcome["inputs"] >= LINES + FILES
    assert {"invalid_utf8", "lone_surrogate", "not_json", "row_too_long", "truncated_file", "damaged_file"} <= set(
        outcome["reasons"]
    )
    assert outcome["peak_bytes"] < PEAK_BYTES
    print({name: value for name, value in outcome.items() if name != "complaints"})
