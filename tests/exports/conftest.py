"""Small curated datasets with recognisable tokens, and one reader for each form.

A reader is what a trainer sees: `(folder, record) -> [(ids, weights), ...]`, the documents as the trainer keeps them
apart, token-aligned (the weight at t concerns the prediction of token t), padding left out. Readers are written from
the trainers' documented formats in the files of this folder that define `READERS`, by kind of form.
"""

import importlib.util
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.export import ExportRecord
from curator.manifest import Manifest, ShardEntry, Totals

Document = tuple[Sequence[int], Sequence[float]]
Reader = Callable[[Path, dict[str, Any]], list[Document]]
Triples = Counter[tuple[int, int, float]]

EOS = 1
LENGTHS = [5, 3, 8, 2, 4, 9, 6, 7, 12, 2, 3]
_FOLDER = Path(__file__).parent


def _load_readers() -> dict[str, Reader]:
    found: dict[str, Reader] = {}
    for path in sorted(_FOLDER.glob("test_*.py")):
        if "READERS" not in path.read_text(encoding="utf-8"):
            continue
        spec = importlib.util.spec_from_file_location(f"exports_readers_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert not found.keys() & module.READERS.keys(), f"{path.name}: a form has two readers"
        found |= module.READERS
    return found


@pytest.fixture(scope="session")
def readers() -> dict[str, Reader]:
    return _load_readers()


@pytest.fixture(scope="session")
def read(readers: dict[str, Reader]) -> Callable[[Path], tuple[ExportRecord, list[Document]]]:
    """What was written: its record, and the documents as the trainer keeps them apart."""

    def read(folder: Path) -> tuple[ExportRecord, list[Document]]:
        record = json.loads((folder / "export.json").read_text())
        return ExportRecord.model_validate(record), readers[record["kind"]](folder, record)

    return read


def _make_documents(lengths: Sequence[int] = LENGTHS, *, soft: bool, seed: int) -> list[Document]:
    """Documents of ever new ids, each ended by EOS; every fifth keeps no token."""
    random = np.random.default_rng(seed)
    documents, number = [], EOS + 1
    for index, length in enumerate(lengths):
        ids = [*range(number, number + length - 1), EOS]
        weights = (random.random(length) < (0.0 if index % 5 == 4 else 0.6)).astype(np.float32)
        if soft:
            weights *= random.uniform(0.1, 3.0, length).astype(np.float32)
        weights[0] = 0
        documents.append((ids, weights.tolist()))
        number += length - 1
    return documents


def _write_shard(folder: Path, number: int, documents: Sequence[Document]) -> ShardEntry:
    ids = [np.array(ids, np.int32) for ids, _ in documents]
    weights = [np.array(values, np.float32) for _, values in documents]
    scores = [np.append(np.nan, -np.arange(1, len(i)) / 8).astype(np.float16) for i in ids]
    columns = {
        "input_ids": pa.array([i.tolist() for i in ids], pa.list_(pa.int32())),
        "labels": pa.array(
            [np.where(w == 0, -100, i).tolist() for i, w in zip(ids, weights, strict=True)], pa.list_(pa.int32())
        ),
        "token_weights": pa.array([w.tolist() for w in weights], pa.list_(pa.float32())),
        "logprobs_base": pa.array(list(scores), pa.list_(pa.float16())),
    }
    table = pa.table({"doc_id": [f"{number}:{row}" for row in range(len(ids))], **columns})
    path = folder / "curated" / f"{number:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    flat = list(itertools.chain.from_iterable(weights))
    return ShardEntry(
        number=number, file=f"curated/{path.name}", sha256=f"{number:064x}", bytes=path.stat().st_size,
        rows=len(ids), tokens=len(flat), kept_tokens=sum(w > 0 for w in flat), weight_sum=float(sum(flat)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_documents() -> Callable[..., list[Document]]:
    return _make_documents


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """Publish documents as a curated dataset of two shards, whose tokenizer is no longer to be had."""

    def write(folder: Path, documents: Sequence[Document], eos_id: int | None = EOS) -> Path:
        folder.mkdir(parents=True)
        half = len(documents) // 2
        parts = [part for part in (documents[:half], documents[half:]) if part]
        shards = [_write_shard(folder, number, part) for number, part in enumerate(parts)]
        tokenizer = {"source": str(folder / "gone" / "tokenizer.json"), "revision": None, "eos_id": eos_id}
        tokenizer["fingerprint"] = "0" * 64
        manifest = Manifest(
            name="test", content="dataset", curator_version="0", spec={}, keys={}, tokenizer=tokenizer, models={},
            cuts={}, weight_scale=1.0, shards=tuple(shards), totals=Totals(**dict.fromkeys(Totals.model_fields, 0)),
            quarantined={},
        )  # fmt: skip
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        return folder

    return write


@pytest.fixture(scope="session")
def triples() -> Callable[[Sequence[Document]], Triples]:
    """What is learned: how often each (context token, predicted token, weight) occurs."""

    def count(documents: Sequence[Document]) -> Triples:
        for _, weights in documents:
            assert weights[0] == 0, "the first token of a document is learned, from another document or from nothing"
        return Counter(
            (int(ids[t - 1]), int(ids[t]), float(np.float32(weights[t])))
            for ids, weights in documents
            for t in range(1, len(ids))
            if weights[t] != 0
        )

    return count


@pytest.fixture
def hard(tmp_path: Path, make_documents: Callable[..., Any], write_dataset: Callable[..., Path]) -> Path:
    return write_dataset(tmp_path / "dataset", make_documents(soft=False, seed=1))


@pytest.fixture
def soft(tmp_path: Path, make_documents: Callable[..., Any], write_dataset: Callable[..., Path]) -> Path:
    return write_dataset(tmp_path / "dataset", make_documents(soft=True, seed=1))
