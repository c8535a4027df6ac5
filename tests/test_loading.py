"""`curator.load` over small published datasets: nothing lost or doubled, whatever the layout."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import curator
from curator.errors import OutputError, TrainingError
from curator.manifest import Manifest, ShardEntry, Totals
from curator.training import Collator, Endless, epochs
from curator.training.curated_dataset import CuratedDataset

Item = dict[str, Any]
TOTALS = dict.fromkeys(Totals.model_fields, 0)


def write_shard(folder: Path, number: int, rows: int, rows_per_group: int) -> ShardEntry:
    """A shard of distinct random rows; every fifth row keeps no token."""
    random = np.random.default_rng(number)
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "token_weights", "logprobs_base")}
    for row in range(rows):
        length = int(random.integers(1, 40))
        ids = random.integers(0, 1000, length).astype(np.int32)
        weights = (random.random(length) < (0 if row % 5 == 4 else 0.6)) * random.random(length).astype(np.float32)
        weights[0] = 0
        logprobs = -random.random(length).astype(np.float16)
        logprobs[0] = np.nan
        values = (ids, np.where(weights == 0, -100, ids), weights, logprobs)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value.tolist())
    kinds = [pa.int32(), pa.int32(), pa.float32(), pa.float16()]
    table = pa.table(
        {
            "doc_id": [f"{number}:{row}" for row in range(rows)],
            "source": ["s"] * rows,
            "text": pa.array(["text"] * rows, pa.large_string()),
            **{n: pa.array(v, pa.list_(kind)) for (n, v), kind in zip(columns.items(), kinds, strict=True)},
        }
    )
    path = folder / "curated" / f"{number:05d}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    weights = list(itertools.chain.from_iterable(columns["token_weights"]))
    return ShardEntry(
        number=number,
        file=f"curated/{path.name}",
        sha256=f"{number:064x}",
        bytes=path.stat().st_size,
        rows=rows,
        tokens=len(weights),
        kept_tokens=sum(w > 0 for w in weights),
        weight_sum=sum(weights),
    )


def write_dataset(folder: Path, shard_rows: list[int], rows_per_group: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shards = [write_shard(folder, number, rows, rows_per_group) for number, rows in enumerate(shard_rows)]
    manifest = Manifest(
        name="test", content="dataset", curator_version="0", spec={}, keys={}, tokenizer={}, models={}, cuts={},
        weight_scale=1.0, shards=tuple(shards), totals=Totals(**TOTALS), quarantined={},
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "out", [13, 1, 20, 7])


def stored_rows(dataset: Path, *, kept: bool = True) -> dict[str, Item]:
    """Rows by doc_id, read with pyarrow alone."""
    rows = {}
    for path in sorted((dataset / "curated").glob("*.parquet")):
        rows |= {row["doc_id"]: row for row in pq.read_table(path).to_pylist()}
    return {name: row for name, row in rows.items() if not kept or any(row["token_weights"])}


def same(left: Item, right: Item) -> bool:
    if left.keys() != right.keys():
        return False
    return all(
        left[name] == right[name]
        if isinstance(left[name], str)
        else torch.equal(left[name].nan_to_num(9), right[name].nan_to_num(9))
        for name in left
    )


# ------------------------------------------------------------------------------------------------ rows


def test_rows_come_whole_and_aligned_with_their_columns(dataset: Path) -> None:
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


def test_rows_without_a_kept_token_are_skipped_and_counted(dataset: Path) -> None:
    loaded = curator.load(dataset)
    given = sum(1 for _ in loaded)
    assert loaded.num_rows == len(stored_rows(dataset, kept=False)) == given + loaded.skipped_rows
    assert loaded.skipped_rows >= 7
    assert sum(1 for _ in loaded) == given, "the second iteration counts anew"
    assert loaded.num_rows == given + loaded.skipped_rows


@pytest.mark.parametrize("sequence_length", [None, 16])
def test_online_selection_can_have_every_scored_token(dataset: Path, sequence_length: int | None) -> None:
    loaded = curator.load(dataset, sequence_length, rows="scored")
    found = sum(int((~item["logprobs_base"].isnan()).sum()) for item in loaded)
    every = stored_rows(dataset, kept=False).values()
    assert found == sum(len(row["input_ids"]) - 1 for row in every), "the log-prob of a first token is unknown"
    assert loaded.skipped_rows == sum(len(row["input_ids"]) == 1 for row in every)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 60])
def test_ranks_share_the_rows_evenly(dataset: Path, world_size: int) -> None:
    parts = [curator.load(dataset, rank=rank, world_size=world_size) for rank in range(world_size)]
    given = [item["doc_id"] for part in parts for item in part]
    assert sorted(given) == sorted(stored_rows(dataset))
    sizes = [part.num_rows for part in parts]
    assert sum(sizes) == 41 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("sequence_length", [None, 16])
def test_dataloader_workers_lose_and_double_nothing(
    dataset: Path, world_size: int, sequence_length: int | None
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


def test_rows_and_collator_make_batches(dataset: Path) -> None:
    batches = list(DataLoader(curator.load(dataset), batch_size=4, collate_fn=Collator(pad_to_multiple_of=8)))
    assert sum(len(batch["input_ids"]) for batch in batches) == len(stored_rows(dataset))
    assert all(batch["labels"].shape[1] % 8 == 0 for batch in batches)


# ------------------------------------------------------------------------------------------------ order


def test_the_order_depends_on_seed_and_epoch_alone(dataset: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        loaded = curator.load(dataset, seed=seed)
        loaded.set_epoch(epoch)
        return [item["doc_id"] for item in loaded]

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert orders[0, 1] == order(0, 1)
    assert len({tuple(o) for o in orders.values()}) == 4
    assert len({tuple(sorted(o)) for o in orders.values()}) == 1


def test_a_shuffle_in_small_windows_still_gives_every_row_to_someone(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "_WINDOW_TOKENS", 150)  # one or two row groups
    whole = [item["doc_id"] for item in curator.load(dataset)]
    parts = [[item["doc_id"] for item in curator.load(dataset, rank=rank, world_size=5)] for rank in range(5)]
    assert list(itertools.chain.from_iterable(parts)) == whole
    assert sorted(whole) == sorted(stored_rows(dataset))


def test_persistent_workers_see_a_new_epoch(dataset: Path) -> None:
    loaded = curator.load(dataset)
    loader = DataLoader(loaded, batch_size=None, num_workers=1, persistent_workers=True)
    first = [item["doc_id"] for item in loader]
    loaded.set_epoch(1)
    second = [item["doc_id"] for item in loader]
    assert first != second and sorted(first) == sorted(second)


@pytest.mark.parametrize("workers", [0, 2])
def test_endless_gives_every_epoch_in_its_order(dataset: Path, workers: int) -> None:
    one = len(stored_rows(dataset))
    endless = DataLoader(Endless(curator.load(dataset)), batch_size=None, num_workers=workers)
    given = [item["doc_id"] for item in itertools.islice(endless, 3 * one)]
    assert len(given) == 3 * one
    if workers == 0:
        loaded = curator.load(dataset)
        for epoch in range(3):
            loaded.set_epoch(epoch)
            assert given[epoch * one : (epoch + 1) * one] == [item["doc_id"] for item in loaded]


def test_a_rank_without_a_kept_row_is_told_so_instead_of_spinning(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "out", [5], rows_per_group=5)
    ranks = [curator.load(folder, rank=rank, world_size=5) for rank in range(5)]
    (idle,) = [rank for rank in ranks if not list(rank)]  # every fifth row keeps nothing
    with pytest.raises(TrainingError, match=r"this rank has 1 rows, of which 1 were skipped.*fewer processes"):
        next(iter(Endless(idle)))
    with pytest.raises(TrainingError, match="this rank has 0 rows"):
        next(iter(Endless(curator.load(folder, rank=0, world_size=6))))


# ------------------------------------------------------------------------------------------------ packing


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


# ------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("sequence_length", [None, 16])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_place_of_an_epoch_can_be_resumed(dataset: Path, sequence_length: int | None, epoch: int) -> None:
    def fresh() -> CuratedDataset:
        return curator.load(dataset, sequence_length, seed=5, rank=1, world_size=2)

    loaded = fresh()
    loaded.set_epoch(epoch)
    items, states = [], [loaded.state_dict()]
    for item in loaded:
        items.append(item)
        states.append(loaded.state_dict())
    skipped = loaded.skipped_rows
    for done, state in enumerate(states):
        resumed = fresh()
        resumed.load_state_dict(json.loads(json.dumps(state)))
        rest = list(resumed)
        assert len(rest) == len(items) - done
        assert all(same(left, right) for left, right in zip(rest, items[done:], strict=True))
        assert resumed.skipped_rows == skipped
        resumed.set_epoch(epoch + 1)
        assert len(list(resumed)) > 0, "the next epoch starts from its beginning"


class StateCarrier(IterableDataset[Any]):
    """Each item with its worker's state behind it, as a loader that checkpoints its workers sees it."""

    def __init__(self, inner: CuratedDataset, states: dict[int, Any] | None = None) -> None:
        self.inner, self.states = inner, states

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        if self.states is not None:
            self.inner.load_state_dict(self.states[info.id])
        for item in self.inner:
            yield info.id, item, self.inner.state_dict()


@pytest.mark.parametrize("sequence_length", [None, 16])
def test_dataloader_workers_resume_each_from_its_own_place(dataset: Path, sequence_length: int | None) -> None:
    def stream(states: dict[int, Any] | None = None) -> dict[int, list[Any]]:
        loaded = StateCarrier(curator.load(dataset, sequence_length), states)
        seen: dict[int, list[Any]] = {0: [], 1: []}
        for worker, item, state in DataLoader(loaded, batch_size=None, num_workers=2):
            seen[worker].append((item, state))
        return seen

    whole = stream()
    rest = stream({0: whole[0][2][1], 1: whole[1][5][1]})
    for worker, done in ((0, 3), (1, 6)):
        expected = [item for item, _ in whole[worker][done:]]
        assert len(expected) > 2
        assert all(same(a, b) for (a, _), b in zip(rest[worker], expected, strict=True))


def test_a_state_of_something_else_is_refused(dataset: Path, tmp_path: Path) -> None:
    state = curator.load(dataset, seed=1).state_dict()
    with pytest.raises(TrainingError, match=r"seed 1 \(now 2\)"):
        curator.load(dataset, seed=2).load_state_dict(state)
    with pytest.raises(TrainingError, match=r"world_size 1 \(now 2\)"):
        curator.load(dataset, seed=1, rank=0, world_size=2).load_state_dict(state)
    with pytest.raises(TrainingError, match="saved with another dataset;"):
        curator.load(write_dataset(tmp_path / "other", [3]), seed=1).load_state_dict(state)


def test_the_state_of_workers_cannot_be_asked_of_this_process(dataset: Path) -> None:
    loaded = curator.load(dataset)
    reader = iter(DataLoader(loaded, batch_size=None, num_workers=1))
    next(reader)
    with pytest.raises(TrainingError, match=r"only they know.*StatefulDataLoader.*num_workers=0"):
        loaded.state_dict()
    del reader
    loaded.set_epoch(1)
    assert loaded.state_dict()["row"] == 0, "nothing of the next epoch has been read"
    loaded.set_epoch(0)
    next(iter(loaded))
    assert loaded.state_dict()["row"] > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_is_resumed_once(dataset: Path, workers: int) -> None:
    reader = iter(loaded := curator.load(dataset))
    given = [next(reader)["doc_id"] for _ in range(4)]
    resumed = curator.load(dataset)
    resumed.load_state_dict(loaded.state_dict())
    rest = [item["doc_id"] for item in reader]
    loader = DataLoader(resumed, batch_size=None, num_workers=workers)
    assert [item["doc_id"] for item in loader] == rest
    assert [item["doc_id"] for item in loader] == given + rest, "without set_epoch the same epoch comes again, whole"


def test_a_state_that_is_none_is_refused(dataset: Path) -> None:
    state = curator.load(dataset).state_dict()
    with pytest.raises(TrainingError, match=r"has no dataset, epoch, .*pass what state_dict\(\) gave"):
        curator.load(dataset).load_state_dict({})
    with pytest.raises(TrainingError, match=r"has no row;"):
        curator.load(dataset).load_state_dict({name: value for name, value in state.items() if name != "row"})


@pytest.mark.slow  # torch waits 5 s for each worker that raised
def test_a_state_of_this_process_is_refused_by_workers(dataset: Path) -> None:
    loaded = curator.load(dataset)
    next(iter(loaded))
    loaded.load_state_dict(loaded.state_dict())
    with pytest.raises(TrainingError, match="worker 0 of 1, this is 0 of 2"):
        list(DataLoader(loaded, batch_size=None, num_workers=2))


# ------------------------------------------------------------------------------------------------ arguments and errors


def test_rank_comes_from_the_launchers_environment(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert curator.load(dataset).num_rows == 41 - 41 * 3 // 4
    assert curator.load(dataset, rank=0, world_size=1).num_rows == 41


@pytest.mark.slow
def test_rank_comes_from_torch_distributed_first(dataset: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch, curator\n"
        "rank = int(sys.argv[1])\n"
        "torch.distributed.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=rank, world_size=2)\n"
        "print(*(item['doc_id'] for item in curator.load(sys.argv[3])))\n"
        "torch.distributed.destroy_process_group()\n"
    )
    command = [sys.executable, "-c", code]
    misleading = {**os.environ, "RANK": "0", "WORLD_SIZE": "1"}
    places = [str(tmp_path / "meet"), str(dataset)]
    running = [
        subprocess.Popen([*command, str(rank), *places], stdout=subprocess.PIPE, text=True, env=misleading)
        for rank in range(2)
    ]
    given = [process.communicate()[0].split() for process in running]
    assert all(given) and sorted(given[0] + given[1]) == sorted(stored_rows(dataset))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_length": 1}, "sequence_length=1"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"rank": 0}, "both or neither"),
        ({"sequence_length": "64"}, "sequence_length='64'; use a whole number of at least 2"),
        ({"sequence_length": 64.0}, r"sequence_length=64\.0"),
        ({"rank": "0", "world_size": "1"}, "rank='0'"),
        ({"rows": "all"}, "rows='all'; use one of kept, scored"),
    ],
)
def test_arguments_out_of_range_are_named(dataset: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        curator.load(dataset, **arguments)


def test_a_rank_that_is_no_number_is_named(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "")
    with pytest.raises(TrainingError, match=r"RANK=''.*unset it, or pass rank and world_size"):
        curator.load(dataset)


def without_kept_tokens(folder: Path) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        table = pq.read_table(path)
        zeros = [[0.0] * len(weights) for weights in table["token_weights"].to_pylist()]
        index = table.schema.get_field_index("token_weights")
        pq.write_table(table.set_column(index, "token_weights", pa.array(zeros, pa.list_(pa.float32()))), path)
        shard.update(kept_tokens=0, weight_sum=0.0)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_dataset_that_keeps_nothing_is_refused_where_kept_rows_are_asked_for(tmp_path: Path) -> None:
    folder = without_kept_tokens(write_dataset(tmp_path / "out", [6, 3]))
    with pytest.raises(TrainingError, match=r"no row with a kept token.*rows='scored'"):
        curator.load(folder)
    with pytest.raises(TrainingError, match="no row with a kept token"):
        curator.load(write_dataset(tmp_path / "empty", []))
    assert list(curator.load(folder, rows="scored"))


def test_a_folder_without_a_finished_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no finished dataset.*curator run"):
        curator.load(tmp_path)


def truncate(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


def misalign(path: Path) -> None:
    table = pq.read_table(path)
    longer = pa.array([[*values, 1] for values in table["labels"].to_pylist()], pa.list_(pa.int32()))
    pq.write_table(table.set_column(table.schema.get_field_index("labels"), "labels", longer), path)


@pytest.mark.parametrize(
    ("damage", "message"), [(truncate, "2 rows, the manifest says 3"), (misalign, "labels and input_ids")]
)
def test_a_shard_that_is_not_the_manifests_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = write_dataset(tmp_path / "out", [3])
    damage(folder / "curated" / "00000.parquet")
    with pytest.raises(OutputError, match=message):
        list(curator.load(folder))


def test_a_dataset_published_without_labels_loads(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "out", [6])
    path = folder / "curated" / "00000.parquet"
    expected = {row["doc_id"]: row["labels"] for row in pq.read_table(path).to_pylist()}
    pq.write_table(pq.read_table(path).drop_columns(["labels", "logprobs_base", "text"]), path)
    items = list(curator.load(folder))
    assert len(items) > 3
    assert all(item["labels"].tolist() == expected[item["doc_id"]] for item in items)


def test_a_dataset_loads_from_any_storage(dataset: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/loading-test/out", recursive=True)
    assert all(
        same(a, b) for a, b in zip(curator.load("memory://loading-test/out"), curator.load(dataset), strict=True)
    )
    memory.rm("/loading-test", recursive=True)


def test_weights_without_tokens_are_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "out", [3])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "content": "weights"}))
    with pytest.raises(OutputError, match="weights without tokens"):
        curator.load(folder)
