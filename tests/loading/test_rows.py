"""What `curator.load` gives: every kept row once, whole or packed, to one rank and one worker."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import curator
from curator.training import Collator

Item = dict[str, Any]


def test_rows_come_whole_and_aligned_with_their_columns(
    dataset: Path, stored_rows: Callable[..., dict[str, Item]]
) -> None:
    items = list(curator.load(dataset))
    expected = stored_rows(dataset)
    assert sorted(item["doc_id"] for item in items) == sorted(expected)
    for item in items:
        row = expected[item["doc_id"]]
        assert set(item) == {"doc_id", "input_ids", "labels", "token_weights", "logprobs_base"}
        for name in ("input_ids", "labels", "token_weights"):
            assert item[name].tolist() == row[name]
        assert item["logprobs_base"][1:].tolist() == row["logprobs_base"][1:]
        assert item["logprobs_base"][0].isnan()
    assert items[0]["input_ids"].dtype == items[0]["labels"].dtype == torch.int64
    assert items[0]["token_weights"].dtype == items[0]["logprobs_base"].dtype == torch.float32


def test_rows_without_a_kept_token_are_skipped_and_counted(
    dataset: Path, stored_rows: Callable[..., dict[str, Item]]
) -> None:
    loaded = curator.load(dataset)
    given = sum(1 for _ in loaded)
    assert loaded.num_rows == len(stored_rows(dataset, kept=False)) == given + loaded.skipped_rows
    assert loaded.skipped_rows >= 7
    assert sum(1 for _ in loaded) == given, "the second iteration counts anew"
    assert loaded.num_rows == given + loaded.skipped_rows


@pytest.mark.parametrize("sequence_length", [None, 16])
def test_online_selection_can_have_every_scored_token(
    dataset: Path, sequence_length: int | None, stored_rows: Callable[..., dict[str, Item]]
) -> None:
    loaded = curator.load(dataset, sequence_length, rows="scored")
    found = sum(int((~item["logprobs_base"].isnan()).sum()) for item in loaded)
    every = stored_rows(dataset, kept=False).values()
    assert found == sum(len(row["input_ids"]) - 1 for row in every), "the log-prob of a first token is unknown"
    assert loaded.skipped_rows == sum(len(row["input_ids"]) == 1 for row in every)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 60])
def test_ranks_share_the_rows_evenly(
    dataset: Path, world_size: int, stored_rows: Callable[..., dict[str, Item]]
) -> None:
    parts = [curator.load(dataset, rank=rank, world_size=world_size) for rank in range(world_size)]
    given = [item["doc_id"] for part in parts for item in part]
    assert sorted(given) == sorted(stored_rows(dataset))
    sizes = [part.num_rows for part in parts]
    assert sum(sizes) == 41 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("sequence_length", [None, 16])
def test_dataloader_workers_lose_and_double_nothing(
    dataset: Path, world_size: int, sequence_length: int | None, stored_rows: Callable[..., dict[str, Item]]
) -> None:
    weights, ids, skipped = 0.0, [], 0
    for rank in range(world_size):
        part = curator.load(dataset, sequence_length, rank=rank, world_size=world_size)
        for batch in DataLoader(part, batch_size=2, num_workers=2, collate_fn=list):
            ids += [item["doc_id"] for item in batch if sequence_length is None]
            weights += sum(float(item["token_weights"].double().sum()) for item in batch)
        skipped += part.skipped_rows
    expected = stored_rows(dataset)
    assert weights == pytest.approx(sum(sum(row["token_weights"]) for row in expected.values()), rel=1e-6)
    assert skipped == 41 - len(expected)
    if sequence_length is None:
        assert sorted(ids) == sorted(expected)


def test_rows_and_collator_make_batches(dataset: Path, stored_rows: Callable[..., dict[str, Item]]) -> None:
    batches = list(DataLoader(curator.load(dataset), batch_size=4, collate_fn=Collator(pad_to_multiple_of=8)))
    assert sum(len(batch["input_ids"]) for batch in batches) == len(stored_rows(dataset))
    assert all(batch["labels"].shape[1] % 8 == 0 for batch in batches)


@pytest.mark.parametrize("sequence_length", [2, 3, 16, 64, 5000])
def test_packed_weights_add_up_to_the_datasets_weight_sum(dataset: Path, sequence_length: int) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    total, kept = 0.0, 0
    for rank in range(2):
        for item in curator.load(dataset, sequence_length, rank=rank, world_size=2):
            assert {len(values) for values in item.values()} == {sequence_length}
            inside = item["document_ids"][1:] == item["document_ids"][:-1]
            counted = item["token_weights"][1:] * inside
            total += float(counted.double().sum())
            kept += int((counted > 0).sum())
            assert (item["labels"] == torch.where(item["token_weights"] > 0, item["input_ids"], -100)).all()
    assert total == pytest.approx(sum(shard["weight_sum"] for shard in manifest["shards"]), rel=1e-6)
    assert kept == sum(shard["kept_tokens"] for shard in manifest["shards"])


def test_a_dataset_published_without_labels_loads(tmp_path: Path, write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset(tmp_path / "out", [6])
    path = folder / "curated" / "00000.parquet"
    expected = {row["doc_id"]: row["labels"] for row in pq.read_table(path).to_pylist()}
    pq.write_table(pq.read_table(path).drop_columns(["labels", "logprobs_base", "text"]), path)
    items = list(curator.load(folder))
    assert len(items) > 3
    assert all(item["labels"].tolist() == expected[item["doc_id"]] for item in items)


def test_a_dataset_loads_from_any_storage(dataset: Path, same: Callable[..., bool]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/loading-test/out", recursive=True)
    assert all(
        same(a, b) for a, b in zip(curator.load("memory://loading-test/out"), curator.load(dataset), strict=True)
    )
    memory.rm("/loading-test", recursive=True)
