"""The scale benchmark runs, and what it stands on: a job that was never computed is a job to the driver's real code."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from curator import inspection, storage
from curator.manifest import read_manifest
from curator.publish import publish_dataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scale_job(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(BENCHMARKS / "scale_job.py")


@pytest.fixture(scope="module")
def template(scale_job: ModuleType, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale") / "template"
    scale_job.make_template(folder, shared_data, shard_tokens=30_000)
    return folder


def test_the_copies_are_what_one_shard_is_times_their_number(
    scale_job: ModuleType, template: Path, tmp_path: Path
) -> None:
    real, calibration = scale_job.open_template(template)
    job = scale_job.open_or_make_job(tmp_path / "job", real, 7)
    manifest = publish_dataset(job, calibration)
    (one,) = publish_dataset(real, calibration).shards
    assert [entry.number for entry in manifest.shards] == list(range(7))
    assert {entry.sha256 for entry in manifest.shards} == {one.sha256}
    assert manifest.totals.tokens == 7 * one.tokens and manifest.totals.rows == 7 * one.rows
    assert manifest.totals.duplicate_ids == 6 * one.rows
    assert storage.sha256(job.curated.uri(6))[0] == one.sha256
    assert read_manifest(job.root) == manifest
    assert inspection.open_job(job.root) is not None


def count_reads(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Counter[str]:
    """How often each file is opened, or read whole."""
    opened: Counter[str] = Counter()

    def counted(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def count(uri: str) -> Any:
            opened[uri] += 1
            return read(uri)

        return count

    with monkeypatch.context() as patch:
        for name in ("open_read", "read_bytes"):
            patch.setattr(storage, name, counted(getattr(storage, name)))
        call()
    return opened


def test_publishing_reads_as_often_for_each_shard_however_many_there_are(
    scale_job: ModuleType, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calibration = scale_job.open_template(template)
    totals = []
    for shards in (20, 60):
        job = scale_job.open_or_make_job(tmp_path / str(shards), real, shards)
        opened = count_reads(monkeypatch, lambda job=job: publish_dataset(job, calibration))  # type: ignore[misc]
        receipts = [job.curated.receipt_file(n) for n in range(shards)]
        assert [opened[storage.join(job.root, name)] for name in receipts] == [1] * shards
        totals.append(sum(opened.values()))
    assert totals[1] - totals[0] == 40 * 6  # 2 token receipts (bad rows, rates), 2 of scores, 1 curated, its ids


@pytest.mark.parametrize("section", ["plan", "merge", "publish", "events"])
def test_a_section_measures(
    load_script: Callable[[Path], ModuleType],
    template: Path,
    tmp_path: Path,
    section: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scale = load_script(BENCHMARKS / "scale.py")
    scale.measure_here(section, scale.Case(template, tmp_path, 30))
    found = json.loads(capsys.readouterr().out)
    assert found["peak_memory_bytes"] >= found["memory_before_bytes"] > 1e7
    assert all(value >= 0 for value in found.values()) and any(name.endswith("_s") for name in found)


@pytest.mark.slow
@pytest.mark.alone
def test_hundreds_of_workers_get_every_shard_once(template: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--measure", "hand_out", "--template", str(template)]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path), "--shards", "900", "--workers", "300"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # it counts its shards itself
    assert json.loads(done.stdout.splitlines()[-1])["driver_s"] < 900 * 0.02
