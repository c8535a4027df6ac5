"""Readers of the forms in parquet, datasets, JSON and MDS, and what only one of these forms promises.

Each reader is written from the trainer's documented format (its version is in the form's module), not from our writer.
"""

import itertools
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.export import export_dataset
from curator.exports.columns import write_parquet
from curator.exports.mosaicml import MosaicMLForm
from curator.exports.torchtitan import TorchtitanForm

Document = tuple[list[int], list[float]]


def parquet_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / "data").glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()


def disk_rows(folder: Path) -> Iterator[dict[str, Any]]:
    from datasets import load_from_disk

    yield from load_from_disk(str(folder))


def kept(ids: list[int], labels: list[int]) -> list[float]:
    """Weights of token-aligned labels, once each is seen to be its own token or ignored."""
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    return [float(label != -100) for label in labels]


def split(ids: list[int], weights: list[float], starts: list[int]) -> list[Document]:
    assert starts[0] == 0
    ends = [*starts[1:], len(ids)]
    return [(ids[a:b], weights[a:b]) for a, b in zip(starts, ends, strict=True)]


def by_position(row: dict[str, Any], weights: list[float]) -> list[Document]:
    """Documents of a row as transformers finds them: where positions return to 0; the last may be padding."""
    if "position_ids" not in row:
        return [(row["input_ids"], weights)]
    starts = [t for t, position in enumerate(row["position_ids"]) if position == 0]
    return split(row["input_ids"], weights, starts)


def without_padding(documents: list[Document]) -> list[Document]:
    """The documents; padding, where positions alone tell, is a document of zeros without weight."""
    return [(ids, weights) for ids, weights in documents if any(ids) or any(weights)]


def read_hugging_face(folder: Path, record: dict[str, Any]) -> list[Document]:
    documents = []
    for row in parquet_rows(folder):
        weights = row["token_weights"]
        assert [w > 0 for w in weights] == [bool(k) for k in kept(row["input_ids"], row["labels"])]
        for name in (name for name in row if name.startswith("logprobs_")):
            assert all(np.isfinite(score) for score, w in zip(row[name], weights, strict=True) if w > 0)
        documents += by_position(row, weights)
    return without_padding(documents)


def read_trl(folder: Path, record: dict[str, Any]) -> list[Document]:
    documents = []
    for row in parquet_rows(folder):
        lengths = row.get("seq_lengths", [len(row["input_ids"])])
        assert sum(lengths) == len(row["input_ids"])
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        documents += split(row["input_ids"], kept(row["input_ids"], row["labels"]), starts)
    return documents


def read_axolotl(folder: Path, record: dict[str, Any]) -> list[Document]:
    documents = []
    for row in parquet_rows(folder):
        assert sorted(row) == ["attention_mask", "input_ids", "labels"]
        assert set(row["attention_mask"]) == {1} and len(row["attention_mask"]) == len(row["input_ids"])
        documents.append((row["input_ids"], kept(row["input_ids"], row["labels"])))
    return documents


def read_llama_factory(folder: Path, record: dict[str, Any]) -> list[Document]:
    documents = []
    for row in disk_rows(folder / "tokenized"):
        assert ("position_ids" in row) == (record["sequence_length"] is not None), "a packed row needs positions"
        weights, numbers = kept(row["input_ids"], row["labels"]), np.array(row["attention_mask"])
        assert not np.array(weights)[numbers == 0].any(), "padding is learned"
        for number in range(1, numbers.max() + 1):
            places = np.flatnonzero(numbers == number)
            assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
            if "position_ids" in row:
                assert [row["position_ids"][place] for place in places] == list(range(len(places)))
            documents.append(([row["input_ids"][p] for p in places], [weights[p] for p in places]))
    return documents


def read_ms_swift(folder: Path, record: dict[str, Any]) -> list[Document]:
    documents = []
    for row in disk_rows(folder / "train"):
        (message,) = row["messages"]
        assert message["role"] == "assistant"
        ids, scales = message["content"]["token_ids"], message["content"]["loss_scale"]
        assert len(ids) == len(scales) == row["lengths"]
        documents.append((ids, scales))
    return documents


def read_torchtune(folder: Path, record: dict[str, Any]) -> list[Document]:
    return [(row["tokens"], kept(row["tokens"], row["labels"])) for row in parquet_rows(folder)]


def read_torchtitan(folder: Path, record: dict[str, Any]) -> list[Document]:
    documents = []
    for row in parquet_rows(folder):
        assert len(row["input"]) == len(row["labels"]) == record["sequence_length"]
        starts = [t for t, position in enumerate(row["positions"]) if position == 0]
        for ids, labels in split(row["input"], row["labels"], starts):
            assert all(label in (-100, token) for token, label in zip(ids[1:], labels[:-1], strict=True))
            assert labels[-1] == -100, "the last token of a document predicts the next document"
            documents.append((ids, [0.0, *(float(label != -100) for label in labels[:-1])]))
    return without_padding(documents)


def read_tinker(folder: Path, record: dict[str, Any]) -> list[Document]:
    documents = []
    for line in (folder / "train.jsonl").read_text().splitlines():
        datum = json.loads(line)
        (chunk,) = datum["model_input"]["chunks"]
        target, weight = datum["loss_fn_inputs"]["target_tokens"], datum["loss_fn_inputs"]["weights"]
        assert chunk["type"] == "encoded_text" and (target["dtype"], weight["dtype"]) == ("int64", "float32")
        assert target["shape"] == weight["shape"] == [len(chunk["tokens"])] == [len(weight["data"])]
        assert chunk["tokens"][1:] == target["data"][:-1], "targets are the inputs one step to the left"
        documents.append(([*chunk["tokens"], target["data"][-1]], [0.0, *weight["data"]]))
    return documents


def read_mds_array(data: bytes, encoding: str) -> np.ndarray:
    rank, width = data[0] >> 2, 1 << (data[0] & 3)
    assert rank == 1
    length = int.from_bytes(data[1 : 1 + width], "little")
    values = np.frombuffer(data[1 + width :], encoding.removeprefix("ndarray:"))
    assert len(values) == length
    return values


def mds_rows(folder: Path) -> Iterator[dict[str, Any]]:
    index = json.loads((folder / "mds" / "index.json").read_text())
    assert index["version"] == 2
    for shard in index["shards"]:
        assert (shard["format"], shard["compression"], shard["zip_data"]) == ("mds", None, None)
        assert shard["column_names"] == sorted(shard["column_names"])
        data = (folder / "mds" / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", data)
        assert count == shard["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
        for start, stop in itertools.pairwise(offsets):
            sizes = struct.unpack_from(f"<{len(shard['column_names'])}I", data, start)
            row, place = {}, start + 4 * len(sizes)
            for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
                row[name] = read_mds_array(data[place : place + size], encoding).tolist()
                place += size
            assert place == stop
            yield row


def read_mosaicml(folder: Path, record: dict[str, Any]) -> list[Document]:
    documents = []
    for row in mds_rows(folder):
        assert [w > 0 for w in row["token_weights"]] == [bool(k) for k in kept(row["input_ids"], row["labels"])]
        documents += by_position(row, row["token_weights"])
    return without_padding(documents)


READERS = {
    "axolotl": read_axolotl,
    "hugging_face": read_hugging_face,
    "llama_factory": read_llama_factory,
    "mosaicml": read_mosaicml,
    "ms_swift": read_ms_swift,
    "tinker": read_tinker,
    "torchtitan": read_torchtitan,
    "torchtune": read_torchtune,
    "trl": read_trl,
}


@pytest.fixture
def dataset(tmp_path: Path, make_documents: Callable[..., Any], write_dataset: Callable[..., Path]) -> Path:
    return write_dataset(tmp_path / "dataset", make_documents([5, 3, 8, 2, 4, 9, 6], soft=False, seed=0))


def test_packed_rows_without_padding_marks_are_all_of_one_length(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, TorchtitanForm(), tmp_path / "out", sequence_length=7)
    assert {len(values) for row in parquet_rows(tmp_path / "out") for values in row.values()} == {7}


@pytest.mark.slow
def test_hugging_face_files_open_with_datasets_and_collate(dataset: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    from curator.training import Collator

    export_dataset(dataset, "hugging_face", tmp_path / "out", sequence_length=8)
    files = str(tmp_path / "out" / "data" / "*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    batch = Collator()([rows[0], rows[1]])
    assert batch["input_ids"].shape == batch["position_ids"].shape == (2, 8)
    assert "attention_mask" not in batch


def test_ms_swift_comes_with_a_template_that_adds_nothing(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, "ms_swift", tmp_path / "out")
    code = (tmp_path / "out" / "template.py").read_text()
    compile(code, "template.py", "exec")
    assert 'prefix=[], prompt=["{{QUERY}}"], chat_sep=[], suffix=[]' in code


def test_mds_shards_are_cut_by_size(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_dataset(dataset, MosaicMLForm(), tmp_path / "one")
    monkeypatch.setattr("curator.exports.mosaicml._SHARD_BYTES", 150)
    export_dataset(dataset, MosaicMLForm(), tmp_path / "many")
    assert len(list((tmp_path / "one" / "mds").glob("*.mds"))) == 1
    assert len(list((tmp_path / "many" / "mds").glob("*.mds"))) > 2
    assert repr(list(mds_rows(tmp_path / "many"))) == repr(list(mds_rows(tmp_path / "one")))  # NaN equals itself


@pytest.mark.parametrize("length", [255, 256, 65_535, 65_536])
def test_mds_arrays_of_any_width_of_shape(tmp_path: Path, length: int) -> None:
    from curator.exports.mosaicml import _encode_array

    values = np.arange(length, dtype="<i4")
    assert np.array_equal(read_mds_array(_encode_array(values), "ndarray:int32"), values)


def test_parquet_files_are_cut_by_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curator.exports.columns.ROW_GROUP_TOKENS", 10)
    monkeypatch.setattr("curator.exports.columns._FILE_TOKENS", 25)
    rows = [{"tokens": np.arange(n, n + 4, dtype=np.int32)} for n in range(30)]
    write_parquet(rows, tmp_path / "data")
    files = sorted((tmp_path / "data").iterdir())
    assert len(files) > 3 and files[0].name == "train-00000.parquet"
    assert pq.read_metadata(files[0]).num_row_groups > 1
    table = pa.concat_tables([pq.read_table(path) for path in files])
    assert table["tokens"].to_pylist() == [row["tokens"].tolist() for row in rows]
