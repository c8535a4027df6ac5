"""The demo's text: there on every machine, of many sources, and the same again."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from curator.spec import load_spec
from curator.training import TrainSpec

DEMO = Path(__file__).parents[2] / "examples" / "demo"


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.mark.slow
def test_collecting_twice_gives_the_same_files_and_leaves_them_alone(tmp_path: Path) -> None:
    def collect() -> dict[str, int]:
        command = [sys.executable, str(DEMO / "collect.py"), str(tmp_path), "--tokens", "60000"]
        subprocess.run(command, check=True, capture_output=True)
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl.gz")}

    assert collect() == collect()
    rows = [row for path in (tmp_path / "noisy").iterdir() for row in read_rows(path)]
    assert len({row["source"] for row in rows}) >= 5
    assert len({row["id"] for row in rows}) == len(rows)
    assert 60_000 * 2.5 < sum(len(row["text"]) for row in rows) < 60_000 * 4.5
    good = [row["text"] for row in read_rows(tmp_path / "good.jsonl.gz")]
    held_back = [row["text"] for row in rows if row["source"] == "topics_held_back"]
    assert len(good) > 40 and not any(text in whole for text in held_back for whole in good)


def test_the_demos_specs_are_valid() -> None:
    from pydantic import TypeAdapter

    from curator.spec import read_mapping, validate

    spec = load_spec(str(DEMO / "curation.yaml"))
    assert spec.policy.keep == 0.6 and set(spec.models) == {"reference", "base"}
    reference = validate(TypeAdapter(TrainSpec), read_mapping(str(DEMO / "reference.yaml")), "reference.yaml")
    assert reference.output == spec.models["reference"].model and reference.base == spec.models["base"].model
