"""Data sets that `datasets` opens, without a network."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from curator.corpora.hub import HubCorpus
from curator.corpora.rows import fit_columns
from curator.data import BadRow, Document
from curator.errors import CorpusError, StorageError

pytestmark = pytest.mark.usefixtures("no_network", "datasets_cache")


def test_rows_are_judged_like_those_of_files(tmp_path: Path, read_all: Any) -> None:
    texts = ["a", None, "", "b\0", "ü" * 30]
    datasets.Dataset.from_dict({"text": texts, "n": [1, 2, 3, 4, None]}).save_to_disk(tmp_path / "set")
    corpus = HubCorpus(path=str(tmp_path / "set"), columns=("n",), max_row_bytes=50)
    rows, damage = read_all(corpus, 1)
    assert damage == []
    assert [row.text if isinstance(row, Document) else row.reason for row in rows] == [
        "a",
        "missing_text",
        "empty_text",
        "b\0",
        "row_too_long",
    ]
    assert [row.row for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0].doc_id == "set/train:0" and rows[0].columns == {"n": 1}
    schema = corpus.columns_schema(corpus.list_sources())
    assert schema == pa.schema([("n", pa.int64())]) and fit_columns(rows[0], schema) is rows[0]


def test_extents_follow_the_text_not_the_row_count(tmp_path: Path) -> None:
    texts = ["short"] * 1000 + ["long " * 1000] * 100
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "set")
    corpus = HubCorpus(path=str(tmp_path / "set"))
    (source,) = corpus.list_sources()
    extents = corpus.split(source, 50_000).extents
    assert sum(extent.size_bytes for extent in extents) == 1000 * 5 + 100 * 5000
    assert all(50_000 <= extent.size_bytes < 55_000 for extent in extents[:-1])


def test_a_data_set_is_never_held_whole(tmp_path: Path) -> None:
    texts = [chr(97 + i % 26) * 10_000 for i in range(6_000)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "set")
    corpus = HubCorpus(path=str(tmp_path / "set"))
    (source,) = corpus.list_sources()
    before, peak = pa.total_allocated_bytes(), 0
    for _, row in corpus.read(source, corpus.split(source, 1 << 20).extents):
        assert isinstance(row, Document) and row.text == texts[row.row]
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 20_000_000  # of 60 MB


def test_selected_and_shuffled_rows_are_read_in_their_order(tmp_path: Path, read_all: Any) -> None:
    shuffled = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(100)]}).shuffle(seed=1).select(range(40))
    shuffled.save_to_disk(tmp_path / "set")
    rows, _ = read_all(HubCorpus(path=str(tmp_path / "set")), 30)
    assert [row.text for row in rows] == shuffled["text"]


def test_the_fingerprint_is_stable_and_follows_the_content(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()

    def fingerprint(text: str) -> str:
        (data / "train.jsonl").write_text(json.dumps({"text": text}))
        return HubCorpus(path=str(data)).list_sources()[0].fingerprint

    first = fingerprint("one")
    assert HubCorpus(path=str(data)).list_sources()[0].fingerprint == first
    assert fingerprint("another") != first


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "~/none-at-all", "a/b/c"])
def test_a_folder_that_is_not_there_never_becomes_a_download(path: str) -> None:
    with pytest.raises(CorpusError, match="there is no folder"):
        HubCorpus(path=path).list_sources()


def test_a_wrong_split_is_an_error_with_the_splits(tmp_path: Path) -> None:
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "set")
    with pytest.raises(CorpusError, match=r"no split 'train'; it has \['test'\]"):
        HubCorpus(path=str(tmp_path / "set")).list_sources()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text('{"text": "a"}')
    with pytest.raises(CorpusError, match=r"validation.*train"):
        HubCorpus(path=str(tmp_path / "folder"), split="validation").list_sources()


def test_rows_without_the_text_column(tmp_path: Path, read_all: Any) -> None:
    datasets.Dataset.from_dict({"body": ["a", "b"]}).save_to_disk(tmp_path / "set")
    rows, _ = read_all(HubCorpus(path=str(tmp_path / "set")), 10)
    assert [(row.row, row.reason) for row in rows if isinstance(row, BadRow)] == [
        (0, "missing_text"),
        (1, "missing_text"),
    ]
    assert "body" in rows[0].detail
    with pytest.raises(CorpusError, match="no column 'url'; available keys: body"):
        corpus = HubCorpus(path=str(tmp_path / "set"), columns=("url",))
        corpus.columns_schema(corpus.list_sources())


def test_extension_types_are_refused_in_needed_columns(tmp_path: Path, read_all: Any) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "grid": datasets.Array2D((2, 2), "int32")})
    rows = {"text": ["a"], "grid": [[[1, 2], [3, 4]]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    found, _ = read_all(HubCorpus(path=str(tmp_path / "set")))
    assert [row.text for row in found] == ["a"]
    corpus = HubCorpus(path=str(tmp_path / "set"), columns=("grid",))
    with pytest.raises(CorpusError, match="extension type"):
        corpus.columns_schema(corpus.list_sources())


def test_a_repository_with_a_script_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(CorpusError):
        HubCorpus(path=str(tmp_path / "evil")).list_sources()
    assert not (tmp_path / "ran").exists()


def test_files_that_a_builder_cannot_read_are_an_error_of_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\nnonsense\n')
    with pytest.raises(CorpusError, match="cannot open the data set 'json'"):
        HubCorpus(path="json", data_files=(str(tmp_path / "rows.jsonl"),)).list_sources()


def test_an_unreachable_hub_is_trouble_of_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises((StorageError, CorpusError), match="org/name"):
        HubCorpus(path="org/name").list_sources()


def test_an_empty_data_set_is_told(tmp_path: Path, read_all: Any) -> None:
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "set")
    with pytest.raises(CorpusError, match="cannot open the data set"):
        read_all(HubCorpus(path=str(tmp_path / "set")))
