"""The partial manifest at every moment of a job equals what a plain reading of the published files gives."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curator import parse_spec, storage
from curator.errors import OutputError
from curator.frozen import open_plan
from curator.job import Job
from curator.manifest import ShardFolder, read_manifest
from curator.partial import PARTIAL_MANIFEST, list_published, partial_manifest, read_shard, write_partial_manifest
from curator.pipeline import score, tokenize, weigh
from curator.publish import publish_dataset
from curator.stages.select import SelectStage


class Here:
    """Runs the stages in this process, one task after the other; the last one for at most `limit` shards."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit

    def pool(self, workers: Any, tasks: int) -> "Here":
        return self

    def map(self, stage: Any, tasks: Sequence[Any], *, on_result: Callable[[Any], None], **_: Any) -> list[Any]:
        stage.open()
        for task in tasks[: self.limit] if isinstance(stage, SelectStage) else tasks:
            on_result(stage.run(task, stage.load(task), lambda tokens: None))
        return []


@pytest.fixture
def job(make_spec: Callable[..., dict[str, Any]]) -> Job:
    """A planned job of several shards, with two bad rows."""
    spec = make_spec(rows=120, shard_tokens=20_000)
    corpus = Path(spec["corpus"]["uri"])
    corpus.write_bytes(corpus.read_bytes() + b'{"text": "\xff"}\n{nope\n')
    parsed = parse_spec(spec)
    return Job(parsed, open_plan(parsed))


def run_until(job: Job, curated: int) -> None:
    """Work through all stages, but publish only the first `curated` shards."""
    everything: Any = Here()
    tokenize(job, everything)
    for name in job.spec.models:
        score(job, everything, name, [])
    some: Any = Here(curated)
    weigh(job, some, [])


def read_rows(path: str) -> dict[str, Any]:
    """Counts of one shard, row by row from its file."""
    table = pq.read_table(path)
    weights = [np.asarray(row, np.float32) for row in table.column("token_weights").to_pylist()]
    return {
        "rows": len(weights),
        "tokens": sum(map(len, weights)),
        "kept_tokens": sum(int((row != 0).sum()) for row in weights),
        "weight_sum": sum(float(row.astype(np.float64).sum()) for row in weights),
        "rows_without_kept_tokens": sum(not row.any() for row in weights),
        "text_bytes": sum(len(text.encode()) for text in table.column("text").to_pylist()),
    }


def test_a_job_that_has_only_been_planned_has_an_empty_one(job: Job) -> None:
    manifest = partial_manifest(job)
    assert (manifest.complete, manifest.shards, manifest.cuts, manifest.weight_scale) == (False, (), None, None)
    assert manifest.planned_shards == len(job.plan.shards) >= 4
    assert manifest.totals.rows == manifest.totals.quarantined_rows == 0


def test_the_published_shards_are_listed_as_their_files_are(job: Job) -> None:
    run_until(job, 3)
    manifest = partial_manifest(job)
    assert [shard.number for shard in manifest.shards] == [0, 1, 2]
    counted = [read_rows(job.curated.uri(number)) for number in range(3)]
    for shard, found in zip(manifest.shards, counted, strict=True):
        assert (shard.sha256, shard.bytes) == storage.sha256(storage.join(job.root, shard.file))
        assert (shard.rows, shard.tokens, shard.kept_tokens) == (found["rows"], found["tokens"], found["kept_tokens"])
    for name in counted[0]:
        assert getattr(manifest.totals, name) == pytest.approx(sum(found[name] for found in counted), rel=1e-6)
    assert manifest.quarantined == {"invalid_utf8": 1, "not_json": 1} and manifest.totals.quarantined_rows == 2
    assert manifest.cuts is not None and manifest.cuts[""].share <= 1


def test_with_every_shard_it_says_what_the_manifest_will_say(job: Job) -> None:
    run_until(job, len(job.plan.shards))
    partial = partial_manifest(job).model_dump()
    calibration = job.read_calibration()
    assert calibration is not None
    publish_dataset(job, calibration)
    finished = read_manifest(job.root).model_dump()
    assert finished["totals"].pop("duplicate_ids") == 0  # known only when all ids are
    assert finished["totals"].pop("weight_sum") == pytest.approx(partial["totals"].pop("weight_sum"))
    assert partial.pop("complete") is False and partial.pop("planned_shards") == len(job.plan.shards)
    assert partial == finished


def test_it_is_written_beside_the_shards_until_the_dataset_is_finished(job: Job) -> None:
    run_until(job, 2)
    written = write_partial_manifest(job.root)
    path = Path(job.root, PARTIAL_MANIFEST)
    assert written is not None and json.loads(path.read_text()) == written.model_dump(mode="json")
    run_until(job, 2)
    later = write_partial_manifest(job)
    assert later is not None and len(later.shards) == len(json.loads(path.read_text())["shards"]) == 4
    run_until(job, len(job.plan.shards))
    calibration = job.read_calibration()
    assert calibration is not None
    publish_dataset(job, calibration)
    assert write_partial_manifest(job) is None


def test_a_folder_without_a_plan_has_none(tmp_path: Path) -> None:
    assert write_partial_manifest(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_only_shards_with_file_and_receipt_count_and_a_new_receipt_is_seen(job: Job) -> None:
    run_until(job, 3)
    folder = job.curated
    Path(folder.uri(0)).unlink()
    Path(folder.root, folder.receipt_file(1)).unlink()
    Path(folder.root, folder.name, "notes.parquet").write_bytes(b"")
    Path(folder.root, folder.name, "_receipts", "notes.json").write_bytes(b"")
    before = list_published(folder)
    assert list(before) == [2]
    receipt = Path(folder.root, folder.receipt_file(2))
    assert read_shard(folder, 2, before[2]).entry.kept_tokens != 7
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"kept_tokens": 7}))
    assert read_shard(folder, 2, list_published(folder)[2]).entry.kept_tokens == 7
    assert list_published(ShardFolder(root=folder.root, name="weights")) == {}


def test_a_folder_whose_name_looks_like_a_glob_is_that_folder(job: Job, tmp_path: Path) -> None:
    run_until(job, 2)
    odd = Path(job.root).rename(tmp_path / "out[1]*?")
    assert list(list_published(ShardFolder(root=str(odd), name="curated"))) == [0, 1]


def test_a_damaged_receipt_is_named(job: Job) -> None:
    run_until(job, 1)
    Path(job.root, job.curated.receipt_file(0)).write_text("{}")
    with pytest.raises(OutputError, match=r"00000\.json' is not a sound CuratedReceipt"):
        partial_manifest(job)
