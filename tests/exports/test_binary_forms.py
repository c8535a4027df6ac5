"""Readers of the forms for Megatron-LM, NeMo, OLMo-core and nanotron, and what only one of these forms promises.

Each reader is written from the trainer's documented format (named in the form's module), not from our writer.
"""

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from curator.errors import SpecError
from curator.export import export_dataset
from curator.exports.form import Facts, Form, Item
from curator.exports.megatron import MegatronForm
from curator.exports.nanotron import NanotronForm
from curator.exports.nemo import NemoForm
from curator.exports.olmo_core import OlmoCoreForm

Document = tuple[list[int], list[float]]
EOS = 1


def indexed(prefix: Path) -> list[npt.NDArray[Any]]:
    """Sequences of a Megatron indexed dataset, by its index's own pointers."""
    data = prefix.with_suffix(".idx").read_bytes()
    assert data[:9] == b"MMIDIDX\0\0"
    version, code, sequences, boundaries = struct.unpack_from("<QBQQ", data, 9)
    assert version == 1
    dtype = {4: np.dtype("<i4"), 7: np.dtype("<f4"), 8: np.dtype("<u2")}[code]
    lengths = np.frombuffer(data, "<i4", sequences, 34)
    pointers = np.frombuffer(data, "<i8", sequences, 34 + 4 * sequences)
    documents = np.frombuffer(data, "<i8", boundaries, 34 + 12 * sequences)
    assert len(data) == 34 + 12 * sequences + 8 * boundaries
    assert documents.tolist() == list(range(sequences + 1))
    values = prefix.with_suffix(".bin").read_bytes()
    assert len(values) == lengths.sum() * dtype.itemsize
    return [np.frombuffer(values, dtype, n, start) for n, start in zip(lengths, pointers, strict=True)]


def read_megatron(folder: Path, record: dict[str, Any]) -> list[Document]:
    pairs = zip(indexed(folder / "curated"), indexed(folder / "curated_weights"), strict=True)
    return [(ids.tolist(), weights.tolist()) for ids, weights in pairs]


def read_nemo(folder: Path, record: dict[str, Any]) -> list[Document]:
    """As Megatron-Bridge's collator: inputs and masks lose each document's last place, targets its first."""
    documents = []
    for row in pq.read_table(folder / "curated.idx.parquet").to_pylist():
        ids, mask, starts = row["input_ids"], row["loss_mask"], row["seq_start_id"]
        assert len(ids) == len(mask) <= record["sequence_length"] and starts[0] == 0
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            inputs, targets, weights = ids[start : end - 1], ids[start + 1 : end], mask[start : end - 1]
            assert len(inputs) == len(targets) == len(weights) > 0
            documents.append(([inputs[0], *targets], [0.0, *map(float, weights)]))
    return documents


def read_olmo_core(folder: Path, record: dict[str, Any]) -> list[Document]:
    """Windows of the sequence length, or one without; documents end with the end-of-text token."""
    (path,) = folder.glob("tokens_*.npy")
    ids = np.fromfile(path, path.stem.removeprefix("tokens_"))
    mask = np.fromfile(folder / "label_mask.npy", np.bool_)
    assert len(ids) == len(mask)
    length = record["sequence_length"] or len(ids)
    assert len(ids) % length == 0
    documents = []
    for start in range(0, len(ids), length):
        window, weights = ids[start : start + length], mask[start : start + length].astype(float)
        ends = np.flatnonzero(window == record["eos_id"]) + 1
        parts = zip(np.split(window, ends), np.split(weights, ends), strict=True)
        documents += [(i.tolist(), w.tolist()) for i, w in parts if len(i)]
    return [(i, w) for i, w in documents if any(i)]  # padding is a run of token 0 behind the last document


def read_nanotron(folder: Path, record: dict[str, Any]) -> list[Document]:
    named, count, told = (folder / "curated.ds.metadata").read_text().splitlines()
    tokenizer, size = named.split("|")
    assert tokenizer == record["tokenizer"]
    ids = np.fromfile(folder / "curated.ds", {"2": "<u2", "4": "<u4"}[size])
    mask = np.fromfile(folder / "curated.ds.loss", np.bool_).astype(float)
    ends = np.fromfile(folder / "curated.ds.index", "<u8").astype(np.int64)
    assert len(ids) == len(mask) == ends[-1] == int(count) and (np.diff(ends) > 0).all()
    assert told.split()[0] == count, "the same, for people"
    windows = np.arange(record["sequence_length"], len(ids) + 1, record["sequence_length"])
    assert np.isin(windows, ends).all(), "a document reaches over a window's end"
    parts = zip(np.split(ids, ends[:-1]), np.split(mask, ends[:-1]), strict=True)
    return [(i.tolist(), w.tolist()) for i, w in parts if i.any()]


READERS = {"megatron": read_megatron, "nemo": read_nemo, "olmo_core": read_olmo_core, "nanotron": read_nanotron}


# ------------------------------------------------------------------------------------------------ ids of all sizes


def make_items(count: int, length: int = 64) -> Iterator[Item]:
    """Packed items of two documents each, the second ending at the end."""
    for _ in range(count):
        ids = np.full(length, 7, np.int32)
        ids[length // 2 - 1] = EOS
        weights = np.ones(length, np.float32)
        weights[[0, length // 2]] = 0
        yield {
            "input_ids": ids,
            "labels": np.where(weights == 0, -100, ids).astype(np.int64),
            "token_weights": weights,
            "document_ids": np.repeat(np.arange(2), length // 2),
            "position_ids": np.tile(np.arange(length // 2), 2),
        }


@pytest.mark.parametrize(("vocab_size", "size"), [(65_536, 2), (65_537, 4)])
def test_ids_take_two_bytes_as_long_as_all_of_them_fit(tmp_path: Path, vocab_size: int, size: int) -> None:
    facts = Facts(vocab_size, EOS, 64, "tokenizer")
    for form, name in ((MegatronForm(), "curated.bin"), (NanotronForm(), "curated.ds"), (OlmoCoreForm(), "tokens_*")):
        folder = tmp_path / form.kind
        folder.mkdir()
        form.write(make_items(3), folder, facts)
        (path,) = folder.glob(name)
        assert path.stat().st_size == 3 * 64 * size, form.kind


@pytest.mark.slow
@pytest.mark.parametrize("form", [MegatronForm(), NanotronForm(), NemoForm(), OlmoCoreForm()], ids=lambda f: f.kind)
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, form: Form) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        tracemalloc.start()
        form.write(make_items(count, 1024), folder, Facts(100, EOS, 1024, "tokenizer"))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    few, many = peak(600), peak(1800)  # from two row groups on: one is written while the next one fills
    assert many < few + 200_000  # one more item is 30 kB here


# ------------------------------------------------------------------------------------------------ single forms


def test_an_index_is_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curator.exports.megatron._CHUNK_DOCUMENTS", 4)
    MegatronForm().write(make_items(10), tmp_path, Facts(100, EOS, None, "tokenizer"))
    assert [len(ids) for ids in indexed(tmp_path / "curated")] == [64] * 10
    assert all(weights[1] == 1 for weights in indexed(tmp_path / "curated_weights"))
    assert not (tmp_path / "lengths.tmp").exists()


def without_eos(make_documents: Callable[..., list[Document]]) -> list[Document]:
    documents = make_documents([9, 20, 5, 33], soft=False, seed=3)
    return [(ids[:-1], weights[:-1]) for ids, weights in documents if any(weights[:-1])]


def test_olmo_core_gets_an_end_of_text_token_without_weight_where_it_is_missing(
    tmp_path: Path, make_documents: Any, write_dataset: Any, triples: Any
) -> None:
    documents = without_eos(make_documents)
    export_dataset(write_dataset(tmp_path / "in", documents), "olmo_core", tmp_path / "out")
    seen = read_olmo_core(tmp_path / "out", {"sequence_length": None, "eos_id": EOS})
    assert [ids[:-1] for ids, _ in seen] == [list(ids) for ids, _ in documents]
    assert all(ids[-1] == EOS and weights[-1] == 0 for ids, weights in seen)
    assert triples(seen) == triples(documents)


def test_olmo_core_refuses_packed_documents_that_it_could_not_tell_apart(
    tmp_path: Path, make_documents: Any, write_dataset: Any
) -> None:
    dataset = write_dataset(tmp_path / "in", without_eos(make_documents))
    with pytest.raises(SpecError, match=r"tokens\.eos.*token 1.*tokens\.eos: true"):
        export_dataset(dataset, "olmo_core", tmp_path / "out", sequence_length=16)
    assert not (tmp_path / "out").exists()


def test_olmo_core_refuses_a_tokenizer_without_end_of_text(
    tmp_path: Path, make_documents: Any, write_dataset: Any
) -> None:
    dataset = write_dataset(tmp_path / "in", without_eos(make_documents), eos_id=None)
    with pytest.raises(SpecError, match="no end-of-text token"):
        export_dataset(dataset, "olmo_core", tmp_path / "out")


def test_nemo_rows_hold_no_padding_and_no_piece_of_a_single_token(
    tmp_path: Path, make_documents: Any, write_dataset: Any
) -> None:
    dataset = write_dataset(tmp_path / "in", make_documents([15, 9, 6, 30], soft=False, seed=1))
    export_dataset(dataset, "nemo", tmp_path / "out", sequence_length=16)
    table = pq.read_table(tmp_path / "out" / "curated.idx.parquet")
    rows = table.to_pylist()
    assert len(rows[0]["input_ids"]) == 15, "the piece of one token behind the first document is left out"
    assert all(0 not in row["input_ids"] for row in rows)
    assert [str(field.type) for field in table.schema] == ["list<element: int32>"] * 2 + ["list<element: int8>"]
