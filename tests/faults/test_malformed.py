"""Thousands of malformed inputs: none ends the process, none is lost without a word, and intact rows are kept.

Short form about 1,000, long form 10,000 and more, in processes of their own under a limit of memory. The long form
has several, one after the other, as every tokenizer that is loaded leaves some 50 KB behind in the process that did it.
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
LINES, FILES = (1_000, 380) if SOAK else (900, 84)
PARTS = [*((seed, "none") for seed in range(7, 14)), (14, "whole")] if SOAK else [(7, "short")]
PEAK_BYTES = 1 << 30
LONGEST_S = 3_600 if SOAK else 600


def outcome_of(folder: Path, seed: int, bombs: str) -> dict[str, Any]:
    script = Path(__file__).with_name("malformed.py")
    command = [sys.executable, str(script), str(folder), str(seed), str(LINES), str(FILES), bombs]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, env=environment)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it hangs, or is very slow, at input {(folder / 'last').read_text()}")
    last = (folder / "last").read_text()
    assert done.returncode == 0, f"it died at input {last}: {done.returncode} {done.stderr[-2000:]}"
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("seed", "bombs"), PARTS)
def test_malformed_inputs_are_quarantined_or_refused_and_end_nothing(
    seed: int, bombs: str, mix_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps([row["text"].strip()[:300] for row in mix_rows[:200]]))
    outcome = outcome_of(tmp_path, seed, bombs)
    assert not outcome["complaints"], "\n".join(outcome["complaints"])
    assert outcome["inputs"] >= LINES + FILES
    reasons = {"invalid_utf8", "lone_surrogate", "not_json", "row_too_long", "truncated_file", "damaged_file"}
    assert reasons - set(outcome["reasons"]) <= ({"row_too_long"} if bombs == "none" else set())
    assert outcome["peak_bytes"] < PEAK_BYTES
    print({name: value for name, value in outcome.items() if name != "complaints"})
