"""One contract for all corpus formats: the same rows exactly once, in order, however the files are cut."""

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import TypeAdapter

from curator.corpora import CorpusConfig
from curator.data import UNTIL_END, Corpus, Document, Extent

Documents = list[dict[str, str]]
Written = tuple[dict[str, Any], list[tuple[str, str, str]]]  # config; expected (doc_id, source, text) in order
Writer = Callable[[Documents, Path], Written]


def _rows(documents: Documents) -> list[tuple[str, str, str]]:
    return [(d["id"], d["source"], d["text"]) for d in documents]


def _lines(documents: Documents) -> bytes:
    return b"".join(json.dumps(d, ensure_ascii=False).encode() + b"\n" for d in documents)


def _halves(documents: Documents) -> tuple[Documents, Documents]:
    return documents[:70], documents[70:]


def write_jsonl(documents: Documents, folder: Path) -> Written:
    first, second = _halves(documents)
    (folder / "a.jsonl").write_bytes(_lines(first))
    (folder / "b.jsonl").write_bytes(_lines(second).removesuffix(b"\n"))
    return {"kind": "jsonl", "uri": f"{folder}/*.jsonl", "id_field": "id"}, _rows(documents)


def write_gzip(documents: Documents, folder: Path) -> Written:
    members = [gzip.compress(_lines(part)) for part in _halves(documents)]
    (folder / "named_wrongly.txt").write_bytes(b"".join(members))
    return {"kind": "jsonl", "uri": f"{folder}/*", "id_field": "id"}, _rows(documents)


def write_zstd(documents: Documents, folder: Path) -> Written:
    content = _lines(documents)
    frames = [zstandard.compress(content[i : i + 100_000]) for i in range(0, len(content), 100_000)]
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    (folder / "a.jsonl.zst").write_bytes(skippable + skippable.join(frames))
    return {"kind": "jsonl", "uri": f"{folder}/a.jsonl.zst", "id_field": "id"}, _rows(documents)


def write_parquet(documents: Documents, folder: Path) -> Written:
    for name, part in zip("ab", _halves(documents), strict=True):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet", row_group_size=9)
    return {"kind": "parquet", "uri": f"{folder}/*.parquet", "id_field": "id"}, _rows(documents)


def write_parquet_one_group(documents: Documents, folder: Path) -> Written:
    schema = pa.schema(
        [("source", pa.dictionary(pa.int8(), pa.string())), ("text", pa.large_string()), ("id", pa.string())]
    )
    pq.write_table(pa.Table.from_pylist(documents, schema), folder / "one.parquet")
    return {"kind": "parquet", "uri": f"{folder}/one.parquet", "id_field": "id"}, _rows(documents)


def write_text_files(documents: Documents, folder: Path) -> Written:
    expected = []
    for number, d in enumerate(documents):
        path = f"{d['source']}/{number:03d}.txt"
        (folder / d["source"]).mkdir(exist_ok=True)
        (folder / path).write_bytes(gzip.compress(d["text"].encode()) if number % 3 == 0 else d["text"].encode())
        expected.append((path, d["source"], d["text"]))
    return {"kind": "text", "uri": f"{folder}/*/*.txt", "source_from_folder": True}, sorted(expected)


def write_text_lines(documents: Documents, folder: Path) -> Written:
    lines = [d["text"].replace("\n", " ").replace("\r", " ") for d in documents]
    (folder / "lines.txt").write_bytes(b"\r\n".join(line.encode() for line in lines))
    expected = [(f"lines.txt:{row}", "all", line) for row, line in enumerate(lines)]
    return {"kind": "text", "unit": "line", "uri": f"{folder}/lines.txt", "source": "all"}, expected


def write_saved_dataset(documents: Documents, folder: Path) -> Written:
    import datasets

    saved = datasets.DatasetDict({"test": datasets.Dataset.from_list(documents)})
    saved.save_to_disk(folder / "saved")
    return {"kind": "hub", "path": str(folder / "saved"), "split": "test", "id_field": "id"}, _rows(documents)


def write_hub_builder(documents: Documents, folder: Path) -> Written:
    (folder / "rows.jsonl").write_bytes(_lines(documents))
    config = {"kind": "hub", "path": "json", "data_files": [f"{folder}/rows.jsonl"], "id_field": "id"}
    return config, _rows(documents)


def write_hub_folder(documents: Documents, folder: Path) -> Written:
    (folder / "data").mkdir()
    for number, part in enumerate(_halves(documents)):
        pq.write_table(pa.Table.from_pylist(part), folder / "data" / f"train-{number:05d}-of-00002.parquet")
    return {"kind": "hub", "path": str(folder), "id_field": "id"}, _rows(documents)


WRITERS: list[Writer] = [
    write_jsonl,
    write_gzip,
    write_zstd,
    write_parquet,
    write_parquet_one_group,
    write_text_files,
    write_text_lines,
    write_saved_dataset,
    write_hub_builder,
    write_hub_folder,
]


@pytest.fixture(params=WRITERS, ids=lambda writer: writer.__name__.removeprefix("write_"))
def written(
    request: pytest.FixtureRequest, documents: Documents, tmp_path: Path, no_network: None, datasets_cache: Path
) -> tuple[Corpus, list[tuple[str, str, str]]]:
    folder = tmp_path / "corpus"
    folder.mkdir()
    config, expected = request.param(documents, folder)
    corpus: Corpus = TypeAdapter(CorpusConfig).validate_python(config)
    return corpus, expected


def _found(rows: list[Any]) -> list[tuple[str, str, str]]:
    assert all(isinstance(row, Document) for row in rows), next(row for row in rows if not isinstance(row, Document))
    return [(row.doc_id, row.source, row.text) for row in rows]


def test_every_kind_of_the_union_is_tested(documents: Documents, tmp_path: Path) -> None:
    kinds = {member.model_fields["kind"].default for member in get_args(get_args(CorpusConfig)[0])}
    tested = set()
    for number, writer in enumerate(WRITERS):
        (tmp_path / str(number)).mkdir()
        tested.add(writer(documents[:5], tmp_path / str(number))[0]["kind"])
    assert kinds == tested


@pytest.mark.parametrize("target_bytes", [1, 3_000, 150_000, 1 << 40])
def test_any_target_gives_the_same_rows_once_and_in_order(written: Any, read_all: Any, target_bytes: int) -> None:
    corpus, expected = written
    rows, damage = read_all(corpus, target_bytes)
    assert damage == []
    assert _found(rows) == expected
    numbers = [(row.file, row.row) for row in rows]
    assert len(set(numbers)) == len(expected)


def test_extents_are_near_the_target_and_as_many_as_rows_when_it_is_tiny(written: Any) -> None:
    corpus, expected = written
    sources = corpus.list_sources()
    assert sum(len(corpus.split(source, 1).extents) for source in sources) in range(len(sources), len(expected) + 1)
    longest = max(len(text.encode()) for _, _, text in expected)
    for source in sources:
        extents = corpus.split(source, 200_000).extents
        assert all(extent.size_bytes <= 200_000 + 2 * longest for extent in extents)


def test_splitting_is_deterministic(written: Any) -> None:
    corpus, _ = written
    once = [(source, corpus.split(source, 20_000)) for source in corpus.list_sources()]
    assert once == [(source, corpus.split(source, 20_000)) for source in corpus.list_sources()]


def test_a_subset_of_extents_gives_its_rows_alone(written: Any) -> None:
    corpus, _ = written
    for source in corpus.list_sources()[:3]:
        extents = corpus.split(source, 50_000).extents
        everything = list(corpus.read(source, extents))
        chosen = extents[1::2]
        expected = [(index // 2, row) for index, row in everything if index % 2 == 1]
        assert list(corpus.read(source, chosen)) == expected


def test_a_sample_reads_to_the_end_of_a_file(written: Any) -> None:
    corpus, expected = written
    sample = Extent(source=0, start=0, stop=UNTIL_END, first_row=0, size_bytes=0)
    rows = [row for source in corpus.list_sources() for _, row in corpus.read(source, [sample])]
    assert _found(rows) == expected
    first = corpus.list_sources()[0]
    assert _found([row for _, row in itertools.islice(corpus.read(first, [sample]), 1)]) == expected[:1]


def test_the_config_survives_json(written: Any) -> None:
    corpus, _ = written
    adapter: TypeAdapter[Any] = TypeAdapter(CorpusConfig)
    dumped = adapter.dump_json(corpus)
    assert adapter.validate_json(dumped) == corpus
    assert "split_name" not in json.loads(dumped)
    hash(corpus)


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'jsonl', 'parquet', 'text', 'hub'"):
        TypeAdapter(CorpusConfig).validate_python({"kind": "csv", "uri": "x"})
