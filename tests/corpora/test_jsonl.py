"""JSON lines: every kind of bad row beside good ones, in every packing, with its place."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from curator.corpora.jsonl import JsonlCorpus
from curator.data import BadRow, Document
from curator.errors import CorpusError, StorageError

LINES: list[tuple[bytes, str]] = [
    (b'\xef\xbb\xbf{"text": "first", "id": 5}', "first"),
    (b'{"text": "nul \\u0000 and \xef\xbf\xbd", "id": "x"}', "nul \0 and \ufffd"),
    (b'{"text": "\xff"}', "!invalid_utf8"),
    (b'{"text": "\xed\xa0\x80"}', "!lone_surrogate"),
    (b'{"text": "\\ud800"}', "!lone_surrogate"),
    (b'{"text": "unfinished', "!not_json"),
    (b'["text"]', "!not_json"),
    (b"[" * 100_000, "!not_json"),
    (b"", "!blank_line"),
    (b"   \r", "!blank_line"),
    (b'{"body": "a"}', "!missing_text"),
    (b'{"text": null}', "!missing_text"),
    (b'{"text": 5}', "!text_not_string"),
    (b'{"text": " \\n"}', "!empty_text"),
    (b'{"text": "' + b"long" * 50_000 + b'"}', "!row_too_long"),
    (b'{"text": "windows", "id": "x"}\r', "windows"),
    ('{"text": "a\u2028b\x85c", "id": "x"}'.encode(), "a\u2028b\x85c"),
    (b'{"text": "last", "extra": NaN}', "last"),
]


@pytest.mark.parametrize("target_bytes", [1, 400, 1 << 30])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_nothing_is_lost_and_every_bad_row_has_its_word(
    new_file: Any, read_all: Any, pack: Any, target_bytes: int
) -> None:
    content = b"\n".join(line for line, _ in LINES)
    corpus = JsonlCorpus(uri=new_file(pack(content)), id_field="id", max_row_bytes=150_000)
    rows, damage = read_all(corpus, target_bytes)
    assert damage == []
    assert [row.text if isinstance(row, Document) else f"!{row.reason}" for row in rows] == [word for _, word in LINES]
    assert [row.row for row in rows] == list(range(len(LINES)))
    starts = [sum(len(line) + 1 for line, _ in LINES[:i]) for i in range(len(LINES))]
    for row in rows:
        if isinstance(row, BadRow):
            place = row.offset - starts[row.row]
            assert place == (10 if row.reason == "invalid_utf8" or row.row == 3 else 0)
            assert len(row.detail) < 300
    ids = [row.doc_id for row in rows if isinstance(row, Document)]
    assert ids == ["5", "x", "x", "x", f"rows.jsonl:{len(LINES) - 1}"]


def test_a_cut_gzip_gives_rows_and_one_entry_once(new_file: Any, read_all: Any) -> None:
    lines = b"".join(b'{"text": "row %d"}\n' % i for i in range(1000))
    packed = gzip.compress(lines)
    rows, damage = read_all(JsonlCorpus(uri=new_file(packed[: len(packed) // 2], "a.jsonl.gz")), 500)
    assert all(isinstance(row, Document) for row in rows) and 100 < len(rows) < 900
    assert [(d.file, d.row, d.reason) for d in damage] == [("a.jsonl.gz", None, "truncated_file")]
    assert damage[0].offset == sum(len(b'{"text": "row %d"}\n' % i) for i in range(len(rows)))


def test_a_document_of_ten_megabytes_is_like_any_other(new_file: Any, read_all: Any) -> None:
    text = "word é " * 1_400_000
    rows, _ = read_all(JsonlCorpus(uri=new_file(json.dumps({"text": text}).encode())), 1000)
    assert [row.text for row in rows] == [text]


def test_a_glob_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere/\*.jsonl' matches no file"):
        JsonlCorpus(uri=f"{tmp_path}/nowhere/*.jsonl").list_sources()
    with pytest.raises(CorpusError, match="matches no file"):
        JsonlCorpus(uri=f"{tmp_path}/a.jsonl").list_sources()
    with pytest.raises(StorageError, match="is a folder"):
        JsonlCorpus(uri=str(tmp_path)).list_sources()


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(str(tmp_path) + "/a\udcff.jsonl").write_bytes(b"{}")
    with pytest.raises(CorpusError, match="rename the file"):
        JsonlCorpus(uri=f"{tmp_path}/*.jsonl").list_sources()


def test_sources_are_ordered_and_relative(tmp_path: Path) -> None:
    for name in ("b/1.jsonl", "a/2.jsonl", "a/10.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}\n")
    sources = JsonlCorpus(uri=f"{tmp_path}/**/*.jsonl").list_sources()
    assert [source.path for source in sources] == ["a/10.jsonl", "a/2.jsonl", "b/1.jsonl"]
    assert all(source.size_bytes == 3 and source.fingerprint for source in sources)


def test_carried_columns_are_inferred_over_files(tmp_path: Path, read_all: Any) -> None:
    first = [{"text": "a", "n": i, "tags": ["x"]} for i in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in first) + "broken\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b", "n": 2.5, "url": null}\n'))
    corpus = JsonlCorpus(uri=f"{tmp_path}/*", columns=("url", "n", "tags"))
    schema = corpus.columns_schema(corpus.list_sources())
    expected = [("url", pa.string()), ("n", pa.float64()), ("tags", pa.list_(pa.string()))]
    assert [(field.name, field.type) for field in schema] == expected
    rows, _ = read_all(corpus)
    assert rows[0].columns == {"url": None, "n": 0, "tags": ["x"]}
    assert rows[-1].columns == {"url": None, "n": 2.5, "tags": None}
    assert JsonlCorpus(uri=corpus.uri).columns_schema(corpus.list_sources()) == pa.schema([])


def test_types_come_from_the_first_thousand_rows(new_file: Any) -> None:
    lines = b'{"text": "a", "n": 1}\n' * 1000 + b'{"text": "a", "late": 1}\n'
    corpus = JsonlCorpus(uri=new_file(lines), columns=("late",))
    with pytest.raises(CorpusError, match="'late'; available keys: text, n"):
        corpus.columns_schema(corpus.list_sources())
