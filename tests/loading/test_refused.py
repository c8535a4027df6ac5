"""Datasets that cannot be trained on: unfinished, damaged, without tokens or without a kept one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curator
from curator.errors import OutputError, TrainingError
from curator.export import export_dataset

Item = dict[str, Any]


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


def test_a_dataset_that_keeps_nothing_is_refused_where_kept_rows_are_asked_for(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def leave_out(column: str) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pq.read_table(path).drop_columns([column]), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "2 rows, the manifest says 3"),
        (misalign, "labels and input_ids"),
        (cut, "magic bytes not found"),
        (Path.unlink, r"there is no '.*/out/curated/00000\.parquet'"),
        (leave_out("doc_id"), "no column doc_id"),
        (leave_out("input_ids"), "no column input_ids"),
        (leave_out("token_weights"), "no column token_weights"),
    ],
)
def test_a_shard_that_is_not_the_manifests_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str, write_dataset: Callable[..., Path]
) -> None:
    folder = write_dataset(tmp_path / "out", [3])
    damage(folder / "curated" / "00000.parquet")
    message = rf"(?s)curated/00000\.parquet is damaged or was replaced: .*{message}.*; find out with `curator verify`"
    with pytest.raises(OutputError, match=message):
        list(curator.load(folder))
    with pytest.raises(OutputError, match=message):
        export_dataset(folder, "tinker", tmp_path / "export")


def test_weights_without_tokens_are_refused(tmp_path: Path, write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset(tmp_path / "out", [3])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "content": "weights"}))
    with pytest.raises(OutputError, match="weights without tokens"):
        curator.load(folder)
