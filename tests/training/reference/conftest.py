"""What the tests of training a reference share: good texts, a spec, training by it, a real curated dataset by hand."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.training import TrainSpec, train_reference
from curator.training.reference.record import TrainResult


@pytest.fixture(scope="session")
def good_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short documents."""
    path = tmp_path_factory.mktemp("good") / "good.jsonl"
    rows = [{"text": f"Document {i} says that two and two is four. " * (1 + i % 4)} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small are fastest on one thread, above all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def train_spec(tiny_llama: Path, good_texts: Path, tmp_path: Path, one_thread: None) -> Callable[..., dict[str, Any]]:
    """A spec as a user sends it; `corpus=None` leaves the corpus out."""

    def make(**changes: Any) -> dict[str, Any]:
        spec = {
            "base": str(tiny_llama),
            "corpus": {"kind": "jsonl", "uri": str(good_texts)},
            "output": str(tmp_path / "reference"),
            "sequence_length": 64,
            "batch_tokens": 256,
            "micro_batch_tokens": 128,
            "learning_rate": 3e-3,
            "eval_fraction": 0.1,
            "dtype": "float32",
        }
        return {name: value for name, value in (spec | changes).items() if value is not None}

    return make


@pytest.fixture
def train() -> Callable[..., TrainResult]:
    """Train as a user's spec says; Ctrl-C comes with the line that begins with `interrupt_at`."""

    def train(
        spec: dict[str, Any], say: Callable[[str], object] = lambda line: None, interrupt_at: str | None = None
    ) -> TrainResult:
        def listen(line: str) -> None:
            say(line)
            if interrupt_at is not None and line.startswith(interrupt_at):
                raise KeyboardInterrupt

        return train_reference(TrainSpec.model_validate(spec), listen)

    return train


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Publish rows of (ids, weights) as a curated dataset of a tokenizer."""
    from curator.manifest import Manifest, ShardEntry, Totals

    def write(
        rows: Sequence[tuple[Sequence[int], Sequence[float]]], fingerprint: str, content: str = "dataset"
    ) -> Path:
        folder = tmp_path / f"dataset-{len(list(tmp_path.glob('dataset-*')))}"
        (folder / "curated").mkdir(parents=True)
        weights = [np.asarray(row[1], np.float32) for row in rows]
        table = pa.table(
            {
                "doc_id": [str(number) for number in range(len(rows))],
                "input_ids": pa.array([list(ids) for ids, _ in rows], pa.list_(pa.int32())),
                "token_weights": pa.array([row.tolist() for row in weights], pa.list_(pa.float32())),
            }
        )
        pq.write_table(table, folder / "curated" / "00000.parquet")
        shard = ShardEntry(
            number=0, file="curated/00000.parquet", sha256="0" * 64, bytes=1, rows=len(rows),
            tokens=sum(map(len, weights)), kept_tokens=1, weight_sum=1.0,
        )  # fmt: skip
        manifest = Manifest(
            name="test", content=content, curator_version="0", spec={}, keys={}, models={}, cuts={}, weight_scale=1.0,
            tokenizer={"source": "somewhere", "revision": None, "fingerprint": fingerprint, "bos_id": None},
            shards=(shard,), totals=Totals(**dict.fromkeys(Totals.model_fields, 0)), quarantined={},
        )  # fmt: skip
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        return folder

    return write
