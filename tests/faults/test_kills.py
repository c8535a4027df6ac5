"""Workers are killed at random moments inside running jobs: no row lost, none doubled, the same bytes.

The long form (CURATOR_SOAK) has 900 kills in 45 jobs and goes on where it was left, by build/chaos/workers.jsonl;
CURATOR_SITTING_S bounds one sitting.
"""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from curator import cluster, curate, parse_spec

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.filterwarnings("ignore::ResourceWarning")]
SOAK = bool(os.environ.get("CURATOR_SOAK"))
KILLS = 900 if SOAK else 12
KILLS_PER_JOB = 20 if SOAK else 12
SITTING_S = float(os.environ.get("CURATOR_SITTING_S", "inf"))
HISTORY = Path(__file__).parents[2] / "build" / "chaos" / "workers.jsonl"
BAD_ROWS = 3
CURATOR = Path(sys.executable).with_name("curator")


@pytest.fixture(scope="module")
def rows(mix_rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return mix_rows[:300]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> dict[str, Any]:
    """Some sixteen shards of three files, with rows that cannot become documents."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(3):
        lines = [json.dumps(row) for row in rows[100 * i : 100 * (i + 1)]]
        lines.insert(50, '{"id": "bad", "text": 5}')
        (folder / f"corpus-{i}.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "name": "killed",
        "corpus": {"kind": "jsonl", "uri": f"{folder}/corpus-*.jsonl", "source_field": "source", "id_field": "id"},
        "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
        "policy": {"kind": "excess_loss", "keep": 0.6},
        "shard_tokens": 50_000,
        "run": {"retries": KILLS_PER_JOB},
    }


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """A local Ray, whose workers get as much of the processor as the tests beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        with cluster.connect("local"):
            yield


@pytest.fixture(scope="module")
def undisturbed(own_ray: None, killing: ModuleType, spec: dict[str, Any], tmp_path_factory: Any) -> list[str]:
    """Digests of the shards of a job that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    curate(parse_spec(spec | {"output": {"uri": str(folder)}}))
    return list(killing.digests(folder))


def test_workers_killed_at_random_moments_change_nothing(
    undisturbed: list[str], killing: ModuleType, spec: dict[str, Any], rows: list[dict[str, str]], tmp_path: Path
) -> None:
    def job(seed: int) -> tuple[list[Any], dict[str, Any]]:
        folder = tmp_path / f"killed-{seed}"
        with killing.killer(KILLS_PER_JOB, seed, folder) as killer:
            curate(parse_spec(spec | {"output": {"uri": str(folder)}}))
        killing.check_dataset(folder, undisturbed, [row["id"] for row in rows], BAD_ROWS)
        return killer.history, {"shards": len(undisturbed), "rows": len(rows)}

    path = HISTORY if SOAK else tmp_path / "workers.jsonl"
    done = killing.within(path, KILLS, SITTING_S if SOAK else 90, job)
    kills = [kill for line in killing.History(path).lines() for kill in line["kills"]]
    assert sum(kill["doing"].startswith(killing.AT_WORK) for kill in kills) > len(kills) / 4
    assert done >= KILLS, f"{done} of {KILLS} kills so far, all survived; run it again, it goes on"


POISON = """
    import os, signal, sys

    def look(event, arguments):
        if event == "os.link" and "/tokens/" in str(arguments[1]) and str(arguments[1]).endswith("00001.parquet"):
            os.kill(os.getpid(), signal.SIGKILL)

    if any("default_worker" in argument for argument in getattr(sys, "orig_argv", [])):
        sys.addaudithook(look)
"""


def test_a_shard_that_kills_every_worker_fails_the_job_when_the_others_are_done(
    undisturbed: list[str], killing: ModuleType, spec: dict[str, Any], rows: list[dict[str, str]], tmp_path: Path
) -> None:
    """Whichever worker is about to publish the second shard dies; without that, the same command ends the job."""
    poison, path, folder = tmp_path / "sitecustomize.py", tmp_path / "spec.yaml", tmp_path / "poisoned"
    poison.write_text(textwrap.dedent(POISON))
    changes = {"output": {"uri": str(folder)}, "run": {"workers": 2, "retries": 1}}
    path.write_text(yaml.safe_dump(spec | changes, sort_keys=False))  # the order of models is that of their columns

    def run() -> tuple[int, str]:
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
        ran = subprocess.run([CURATOR, "run", path], capture_output=True, text=True, timeout=120, env=environment)
        return ran.returncode, " ".join(ran.stderr.split())

    code, said = run()
    assert code == 1, said
    assert "tokenize: 1 shards failed; run the same command to resume" in said
    assert "shard 00001 (2 attempts): the worker died while it held the shard" in said
    before = {receipt: receipt.stat().st_mtime_ns for receipt in killing.receipts(folder)}
    assert sorted(int(receipt.stem) for receipt in before) == [0, *range(2, len(undisturbed))]

    poison.unlink()
    code, said = run()
    assert code == 3, said  # finished, with quarantined rows
    assert {receipt: receipt.stat().st_mtime_ns for receipt in before} == before
    killing.check_dataset(folder, undisturbed, [row["id"] for row in rows], BAD_ROWS)
