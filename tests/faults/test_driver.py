"""Kill the driver at random moments, run the same command again: no row lost, none doubled, the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from curator import read_manifest, verify

pytestmark = [pytest.mark.slow, pytest.mark.alone]
CURATOR = Path(sys.executable).with_name("curator")
KILLS = 20 if os.environ.get("CURATOR_SOAK") else 6
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"RAY_DEDUP_LOGS": "0"}


def start(spec: Path) -> subprocess.Popen[bytes]:
    with spec.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([CURATOR, "run", str(spec)], stdout=log, stderr=log, env=ENVIRONMENT)


def finish(spec: Path) -> None:
    code = start(spec).wait(timeout=300)
    assert code == 0, spec.with_suffix(".log").read_text()[-3000:]


def write_spec(folder: Path, name: str, spec: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec | {"output": {"uri": str(folder / name)}}))
    return path


def test_a_driver_killed_at_random_times_ends_with_the_same_shards(
    make_spec: Callable[..., dict[str, Any]], tmp_path: Path, mix_rows: list[dict[str, str]]
) -> None:
    """The moments are spread over the time that an undisturbed run takes, so that every stage is hit."""
    spec = make_spec(rows=300, shard_tokens=30_000)
    undisturbed = write_spec(tmp_path, "undisturbed", spec)
    started_s = time.monotonic()
    finish(undisturbed)
    whole_s = time.monotonic() - started_s
    expected = read_manifest(str(tmp_path / "undisturbed"))

    generator = random.Random(7)
    killed = write_spec(tmp_path, "killed", spec)
    kills = 0
    for i in range(KILLS):
        process = start(killed)
        time.sleep(whole_s * (i + generator.random()) / KILLS)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if (tmp_path / "killed" / "manifest.json").exists() and i < KILLS - 1:
            killed = write_spec(tmp_path, f"killed{i}", spec)  # finished before its kill: the next one starts afresh
    finish(killed)
    assert kills >= KILLS // 2
    for path in sorted(tmp_path.glob("killed*/manifest.json")):
        found = read_manifest(str(path.parent))
        assert [shard.sha256 for shard in found.shards] == [shard.sha256 for shard in expected.shards]
        assert verify(str(path.parent)) == []
        ids = [i for shard in found.shards for i in pq.read_table(path.parent / shard.file)["doc_id"].to_pylist()]
        assert ids == [row["id"] for row in mix_rows[:300]]
        assert list(path.parent.glob("_staging/*")) == []


@pytest.mark.parametrize("step", range(4))
def test_a_crash_between_any_two_steps_of_a_commit_is_mended(tmp_path: Path, step: int) -> None:
    """A commit is: stage, link the final name, write the receipt, remove the staged file; stop after each."""
    import pyarrow as pa

    from curator import storage, tables
    from curator.manifest import Receipt, ShardFolder, publish_shard, start_receipt

    folder = ShardFolder(root=str(tmp_path), name="scores")
    receipt = Receipt(number=7, rows=1, tokens=2, **start_receipt()())

    def stage(path: Path) -> None:
        schema = tables.score_schema(())
        with tables.open_writer(path, schema) as writer:
            writer.write_table(pa.table([pa.array([[None, 0.5]], schema.field(0).type)], schema=schema))

    orphan = tmp_path / "_staging" / "orphan.tmp"
    orphan.parent.mkdir()
    stage(orphan)
    if step >= 1:
        storage.publish(orphan, folder.uri(7))
    if step >= 2:
        publish_shard(folder, orphan, receipt)
    if step == 3:
        orphan.unlink()
    with storage.staged_file(str(tmp_path)) as staged:
        stage(staged)
        published = publish_shard(folder, staged, receipt)
    assert published == folder.receipt(7, Receipt)
    assert storage.sha256(folder.uri(7)) == (published.sha256, published.bytes)
    assert folder.published() == {7}


def test_a_damaged_file_under_a_final_name_without_receipt_is_replaced(tmp_path: Path) -> None:
    import pyarrow as pa

    from curator import storage, tables
    from curator.manifest import Receipt, ShardFolder, publish_shard, start_receipt

    folder = ShardFolder(root=str(tmp_path), name="scores")
    (tmp_path / "scores").mkdir()
    Path(folder.uri(0)).write_bytes(b"PAR1 half a file")
    schema = tables.score_schema(())
    receipt = Receipt(number=0, rows=0, tokens=0, **start_receipt()())
    with storage.staged_file(str(tmp_path)) as staged:
        with tables.open_writer(staged, schema) as writer:
            writer.write_table(pa.table([pa.array([], schema.field(0).type)], schema=schema))
        published = publish_shard(folder, staged, receipt)
    assert storage.sha256(folder.uri(0))[0] == published.sha256 and not published.adopted
