"""What publishing sums up: repeated ids, in memory and dealt out to files; rates of the stages; packing of extents."""

import os
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator import parse_spec, storage
from curator.data import BadRow, Extent, SourceFile, Split
from curator.frozen import open_plan
from curator.job import Job
from curator.manifest import ShardFolder, TokenReceipt, start_receipt
from curator.plan import _cut_shards
from curator.publish import _write_quarantine, count_duplicate_ids


def write_ids(folder: ShardFolder, shards: list[list[str]]) -> int:
    for number, ids in enumerate(shards):
        path = Path(folder.uri(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"doc_id": pa.array(ids, pa.string()), "text": pa.array(["x"] * len(ids))})
        pq.write_table(table, path, row_group_size=7)
    return sum(map(len, shards))


@pytest.mark.parametrize("in_memory", [10_000, 100, 3])
def test_repeated_ids_are_counted_however_little_fits_in_memory(tmp_path: Path, in_memory: int) -> None:
    chance = random.Random(in_memory)
    shards = [[f"dokument-é-{chance.randrange(400)}" for _ in range(chance.randrange(60))] for _ in range(12)]
    shards += [[], ["", "", "only here"]]
    folder = ShardFolder(root=str(tmp_path), name="curated")
    rows = write_ids(folder, shards)
    expected = sum(count - 1 for count in Counter(name for ids in shards for name in ids).values())
    assert expected > 20
    assert count_duplicate_ids(folder, list(range(len(shards))), rows, in_memory) == expected
    assert not list(tmp_path.glob("_staging/*"))


def test_no_shards_have_no_repeated_ids(tmp_path: Path) -> None:
    assert count_duplicate_ids(ShardFolder(root=str(tmp_path), name="curated"), [], 0) == 0


@pytest.mark.parametrize("place", ["local", "memory"])
def test_the_list_of_quarantined_rows_is_written_as_it_is_read(
    make_spec: Callable[..., dict[str, Any]], tmp_path: Path, place: str
) -> None:
    """However many shards have bad rows, memory holds those of one, or on a store of the few that are read ahead."""
    spec = parse_spec(make_spec(rows=5))
    job, shards, each = Job(spec, open_plan(spec)), 200, 100
    if place == "memory":
        job = Job(spec, job.plan, directory=f"memory://{tmp_path.name}")
    rows = [BadRow(file="a é.jsonl", row=i, reason="not_json", detail="x" * 600) for i in range(each)]
    for number in range(shards):
        receipt = TokenReceipt(number=number, rows=0, tokens=0, text_bytes=0, quarantined=tuple(rows),
                               **start_receipt()())  # fmt: skip
        storage.write_once(job.tokens.root, job.tokens.receipt_file(number), receipt.model_dump_json().encode())
    tracemalloc.start()
    try:
        assert _write_quarantine(job) == {"not_json": shards * each}
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    written = storage.read_bytes(storage.join(job.root, "quarantine.jsonl"))
    expected = "".join(row.model_dump_json() + "\n" for row in rows) * shards
    assert written.decode() == expected
    if place == "local":
        assert peak_bytes < len(written) / 4, f"{peak_bytes:,} bytes in memory for {len(written):,}"
    assert not list(tmp_path.glob("out/_staging/*"))


class Sized:
    """Files that split into extents of given sizes."""

    def __init__(self, sizes: list[list[int]]) -> None:
        self.sizes = sizes

    def split(self, source: SourceFile, target_bytes: int) -> Split:
        time.sleep(random.random() / 1000)
        sizes = self.sizes[int(source.path)]
        return Split([Extent(source=0, start=i, stop=i + 1, first_row=i, size_bytes=n) for i, n in enumerate(sizes)])


def test_small_files_fill_a_shard_until_it_has_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    chance = random.Random(1)
    sizes = [[chance.randrange(1, 40) for _ in range(chance.randrange(4))] for _ in range(300)]
    sources = [SourceFile(uri=str(i), path=str(i), size_bytes=sum(s), fingerprint="") for i, s in enumerate(sizes)]
    shards, _ = _cut_shards(Sized(sizes), sources, 100, 4.0)  # type: ignore[arg-type]
    again, _ = _cut_shards(Sized(sizes), sources, 100, 4.0)  # type: ignore[arg-type]
    assert again == shards, "the plan depends on which file was read first"
    packed = [[extent.size_bytes for extent in shard.extents] for shard in shards]
    assert [size for shard in packed for size in shard] == [size for part in sizes for size in part]
    assert all(sum(shard) >= 100 > sum(shard[:-1]) for shard in packed[:-1])
    assert [shard.tokens for shard in shards] == [round(sum(shard) / 4) for shard in packed]
