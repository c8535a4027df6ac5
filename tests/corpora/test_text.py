"""Plain text: a document a file, or a line."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import zstandard

from curator.corpora.text import TextCorpus
from curator.data import BadRow, Document
from curator.errors import CorpusError


def test_a_document_a_file_keeps_every_byte(tmp_path: Path, read_all: Any) -> None:
    contents = {
        "a.txt": b"one\r\n\ntwo\n",
        "b/c.txt": "é\u2028 \0".encode(),
        "b/d.txt": gzip.compress(b"packed"),
        "b/e.txt": b"\xef\xbb\xbfmarked",
    }
    (tmp_path / "b").mkdir()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    rows, damage = read_all(TextCorpus(uri=f"{tmp_path}/**/*.txt"), 1)
    assert damage == []
    found = [(row.doc_id, row.source, row.row, row.text) for row in rows]
    expected = ["one\r\n\ntwo\n", "é\u2028 \0", "packed", "marked"]
    assert found == [(name, "", 0, text) for name, text in zip(contents, expected, strict=True)]


def test_bad_files_have_their_words(tmp_path: Path, read_all: Any) -> None:
    contents = {
        "blank.txt": b" \n\n",
        "bytes.txt": b"ab\xff",
        "cut.txt": gzip.compress(b"words " * 1000)[:-12],
        "empty.txt": b"",
        "long.txt": b"x" * 101,
        "packed_empty.txt": zstandard.compress(b""),
        "surrogate.txt": b"\xed\xa0\x80",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    rows, damage = read_all(TextCorpus(uri=f"{tmp_path}/*.txt", max_row_bytes=100))
    assert [(r.file, r.row, r.reason, r.offset) for r in rows if isinstance(r, BadRow)] == [
        ("blank.txt", 0, "empty_text", 0),
        ("bytes.txt", 0, "invalid_utf8", 2),
        ("long.txt", 0, "row_too_long", 0),
        ("surrogate.txt", 0, "lone_surrogate", 0),
    ]
    assert not any(isinstance(row, Document) for row in rows)
    assert [(d.file, d.row, d.reason, d.offset) for d in damage] == [("cut.txt", None, "truncated_file", 0)]


def test_a_document_a_line(new_file: Any, read_all: Any) -> None:
    content = b"\xef\xbb\xbfone\r\n\n  two\xe2\x80\xa8\n \nbad \xff\n" + b"x" * 50 + b"\nlast"
    rows, _ = read_all(TextCorpus(uri=new_file(content), unit="line", source="s", max_row_bytes=40), 1)
    assert [row.text if isinstance(row, Document) else f"!{row.reason}" for row in rows] == [
        "one",
        "!blank_line",
        "  two\u2028",
        "!blank_line",
        "!invalid_utf8",
        "!row_too_long",
        "last",
    ]
    assert [row.doc_id for row in rows if isinstance(row, Document)] == [f"rows.jsonl:{i}" for i in (0, 2, 6)]


def test_the_folder_can_name_the_source(tmp_path: Path, read_all: Any) -> None:
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "a.txt").write_text("x")
    for uri in (f"{tmp_path}/*/*.txt", f"{tmp_path}/math/a.txt"):
        rows, _ = read_all(TextCorpus(uri=uri, source_from_folder=True))
        assert [row.source for row in rows] == ["math"]


def test_text_has_no_columns_to_carry() -> None:
    with pytest.raises(ValueError, match="columns"):
        TextCorpus(uri="x", columns=("url",))


def test_other_packings_are_refused(new_file: Any, read_all: Any) -> None:
    with pytest.raises(CorpusError, match="xz"):
        read_all(TextCorpus(uri=new_file(b"\xfd7zXZ\0...")))
