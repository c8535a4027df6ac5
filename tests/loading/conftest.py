"""Small published datasets of distinct random rows, and what they hold, read with pyarrow alone."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from curator.manifest import Manifest, ShardEntry, Totals

Item = dict[str, Any]
TOTALS = dict.fromkeys(Totals.model_fields, 0)
TOKENIZER = {"source": "gone", "revision": None, "eos_id": None, "fingerprint": "0" * 64}


def _write_shard(folder: Path, number: int, rows: int, rows_per_group: int) -> ShardEntry:
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


def _write_dataset(folder: Path, shard_rows: list[int], rows_per_group: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shards = [_write_shard(folder, number, rows, rows_per_group) for number, rows in enumerate(shard_rows)]
    manifest = Manifest(
        name="test", content="dataset", curator_version="0", spec={}, keys={}, tokenizer=TOKENIZER, models={}, cuts={},
        weight_scale=1.0, shards=tuple(shards), totals=Totals(**TOTALS), quarantined={},
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def _stored_rows(dataset: Path, *, kept: bool = True) -> dict[str, Item]:
    """Rows by doc_id, read with pyarrow alone."""
    rows = {}
    for path in sorted((dataset / "curated").glob("*.parquet")):
        rows |= {row["doc_id"]: row for row in pq.read_table(path).to_pylist()}
    return {name: row for name, row in rows.items() if not kept or any(row["token_weights"])}


def _same(left: Item, right: Item) -> bool:
    if left.keys() != right.keys():
        return False
    return all(
        left[name] == right[name]
        if isinstance(left[name], str)
        else torch.equal(left[name].nan_to_num(9), right[name].nan_to_num(9))
        for name in left
    )


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    return _write_dataset


@pytest.fixture(scope="session")
def stored_rows() -> Callable[..., dict[str, Item]]:
    return _stored_rows


@pytest.fixture(scope="session")
def same() -> Callable[[Item, Item], bool]:
    return _same


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_dataset(tmp_path_factory.mktemp("data") / "out", [13, 1, 20, 7])
