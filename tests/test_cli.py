"""The command as a user runs it: exit codes, messages, resuming."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

MakeSpec = Callable[..., dict[str, Any]]
CURATOR = Path(sys.executable).with_name("curator")


def curator(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [str(CURATOR), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_schema_prints_json_schema() -> None:
    schema = json.loads(curator("schema").stdout)
    assert schema["title"] == "CurationSpec" and "policy" in schema["properties"]


def test_help_lists_every_command() -> None:
    text = curator("--help").stdout
    local = ("run", "plan", "preview", "select", "verify", "report", "schema", "train-reference", "serve")
    for name in (*local, "submit", "status", "logs", "events", "cancel", "resume", "download"):
        assert f" {name} " in text


@pytest.mark.parametrize("arguments", [("nonsense",), ("run",), ("run", "nowhere.yaml"), ("select", "x")])
def test_wrong_usage_exits_2(arguments: tuple[str, ...]) -> None:
    done = curator(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_path_is_shown_as_it_is() -> None:
    assert ":bug:" in curator("run", ":bug:.yaml").stderr


def test_a_bad_spec_exits_2_with_path_value_and_remedy(make_spec: MakeSpec, tmp_path: Path) -> None:
    done = curator("run", write(tmp_path / "s.yaml", make_spec(rows=3, polcy=1)))
    assert done.returncode == 2 and "polcy: unknown key" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_job_from_plan_to_report(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = write(tmp_path / "spec.yaml", make_spec(rows=60))
    planned = curator("plan", spec)
    assert planned.returncode == 0 and "shards" in planned.stdout and "ETA" in planned.stdout
    assert not (tmp_path / "out").exists()
    ran = curator("run", spec)
    assert ran.returncode == 0, ran.stderr
    assert f"report     {tmp_path}/out/report.html" in ran.stdout and "tokens/s" in ran.stderr
    again = curator("run", spec)
    assert again.returncode == 0 and again.stdout == ran.stdout

    policy = write(tmp_path / "policy.yaml", {"kind": "loss", "keep": 0.5})
    selected = curator("select", tmp_path / "out", "--policy", policy, "--output", tmp_path / "out2")
    assert selected.returncode == 0, selected.stderr
    assert "(50.0" in selected.stdout

    (tmp_path / "out2" / "report.html").unlink()
    assert curator("report", tmp_path / "out2").returncode == 0
    assert (tmp_path / "out2" / "report.html").stat().st_size > 10_000

    assert curator("verify", tmp_path / "out2").returncode == 0
    shard = next((tmp_path / "out2" / "curated").glob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    broken = curator("verify", tmp_path / "out2")
    assert broken.returncode == 1 and shard.name in broken.stdout


@pytest.mark.slow
def test_quarantined_rows_exit_3_and_are_named(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = write(tmp_path / "spec.yaml", make_spec(rows=10))
    with (tmp_path / "corpus.jsonl").open("ab") as file:
        file.write(b"not json\n")
    ran = curator("run", spec)
    assert ran.returncode == 3, ran.stderr
    assert "quarantine 1 rows (not_json 1)" in ran.stdout
    assert curator("run", spec).returncode == 3


@pytest.mark.slow
def test_preview_writes_a_page_without_touching_the_output(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = write(tmp_path / "spec.yaml", make_spec(rows=30))
    done = curator("preview", spec, "--rows", 5, "--output", tmp_path / "page.html", "--no-open")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert not (tmp_path / "out").exists()
