"""Parquet: damage, oversized row groups, types that Python or Arrow cannot take, and extension types that never run."""

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpora.parquet import ParquetCorpus
from curator.corpora.rows import explain_missing_text, fit_columns
from curator.data import UNTIL_END, BadRow, Document, Extent
from curator.errors import CorpusError, StorageError


def write(tmp_path: Path, table: pa.Table, name: str = "a.parquet", **options: Any) -> str:
    pq.write_table(table, tmp_path / name, **options)
    return str(tmp_path / name)


def good(rows: list[Any]) -> list[str]:
    return [row.text for row in rows if isinstance(row, Document)]


def bad(rows: list[Any]) -> list[BadRow]:
    return [row for row in rows if isinstance(row, BadRow)]


def numbered(count: int) -> pa.Table:
    return pa.table({"text": [f"row {i} " + "abcdefgh" * (i % 50) for i in range(count)], "source": ["s"] * count})


def test_a_file_cut_short_is_one_entry_and_no_rows(tmp_path: Path, read_all: Any) -> None:
    uri = write(tmp_path, numbered(100))
    content = Path(uri).read_bytes()
    for size in (1, 3, 4, 7, 11, 500, len(content) - 1):
        Path(uri).write_bytes(content[:size])
        rows, damage = read_all(ParquetCorpus(uri=uri))
        assert rows == []
        assert [(d.file, d.row, d.reason, d.offset) for d in damage] == [("a.parquet", None, "truncated_file", 0)]


def test_a_file_that_is_no_parquet_or_has_a_spoilt_footer_is_damaged(tmp_path: Path, read_all: Any) -> None:
    uri = write(tmp_path, numbered(100))
    content = bytearray(Path(uri).read_bytes())
    spoilt = bytes(content[:-200]) + b"\xff" * 150 + bytes(content[-50:])
    too_long = bytes(content[:-8]) + b"\xff\xff\xff\x7fPAR1"
    for broken in (b'{"text": "a"}\n' * 10, spoilt, too_long):
        Path(uri).write_bytes(broken)
        rows, damage = read_all(ParquetCorpus(uri=uri))
        assert rows == [] and [d.reason for d in damage] == ["damaged_file"]
        sample = Extent(source=0, start=0, stop=UNTIL_END, first_row=0, size_bytes=0)
        (source,) = ParquetCorpus(uri=uri).list_sources()
        assert list(ParquetCorpus(uri=uri).read(source, [sample])) == []


def test_an_empty_file_and_a_file_without_rows_have_no_extents(tmp_path: Path, read_all: Any) -> None:
    (tmp_path / "empty.parquet").touch()
    write(tmp_path, numbered(0), "none.parquet")
    assert read_all(ParquetCorpus(uri=f"{tmp_path}/*.parquet")) == ([], [])


@pytest.mark.parametrize("target_bytes", [1 << 30, 200_000, 20_000])
def test_a_damaged_row_group_costs_its_rest_alone(tmp_path: Path, read_all: Any, target_bytes: int) -> None:
    table = pa.table({"text": [f"row {i} {i * 7919 % 10007:05d} " * 40 for i in range(9000)]})
    uri = write(
        tmp_path, table, row_group_size=3000, write_page_checksum=True, data_page_size=4096, use_dictionary=False
    )
    column = pq.read_metadata(uri).row_group(1).column(0)
    content = bytearray(Path(uri).read_bytes())
    middle = column.data_page_offset + column.total_compressed_size * 9 // 10
    content[middle : middle + 50] = b"\x55" * 50
    Path(uri).write_bytes(content)
    monolith = ParquetCorpus(uri=uri)
    rows, damage = read_all(monolith, target_bytes)
    expected = table.column("text").to_pylist()
    assert damage == []
    kept = good(rows)
    assert kept[:3000] == expected[:3000] and kept[-3000:] == expected[-3000:]
    assert kept[3000:-3000] == expected[3000 : len(kept) - 3000] and 6000 < len(kept) < 9000
    lost = bad(rows)
    assert {row.reason for row in lost} == {"damaged_file"} and all(row.row is None for row in lost)
    assert all(row.offset == column.data_page_offset for row in lost)
    ranges = [row.detail.split(" of ")[0].removeprefix("rows ").split(" to ") for row in lost]
    missing = [n for first, last in ranges for n in range(int(first), int(last) + 1)]
    assert missing == list(range(len(kept) - 3000, 6000))


def test_what_a_damaged_page_claims_to_be_takes_no_memory(tmp_path: Path, read_all: Any) -> None:
    """Its header says 1 GiB, in five bytes, of a file of some kB; Arrow's pool must never have been asked for that."""
    uri = write(tmp_path, numbered(100), use_dictionary=False, compression="none")
    content = bytearray(Path(uri).read_bytes())
    start = pq.read_metadata(uri).row_group(0).column(0).data_page_offset
    size = b"\x80\x80\x80\x80\x08"  # 2**30 in Thrift's compact form: zigzag, seven bits to a byte, lowest first
    header = b"\x15\x00\x15" + size + b"\x15" + size + b"\x2c\x15\xc8\x01\x15\x00\x15\x06\x15\x06\x00\x00"
    content[start : start + len(header)] = header
    Path(uri).write_bytes(content)
    pool = pa.default_memory_pool()
    most_bytes = max(pool.max_memory(), 2**26)
    rows, damage = read_all(ParquetCorpus(uri=uri))
    assert damage == [] and [row.reason for row in bad(rows)] == ["damaged_file"] and str(2**30) in rows[0].detail
    assert pool.max_memory() <= most_bytes


def test_a_failing_storage_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = ParquetCorpus(uri=write(tmp_path, numbered(5000)))
    (source,) = corpus.list_sources()
    from curator import storage

    real_open, opened = storage.open_read, []

    def flaky(uri: str) -> Any:
        opened.append(uri)
        file = real_open(uri)
        if len(opened) > 1:
            raise StorageError("the store is away")
        real_read, reads = file.read, []

        class Flaky:
            closed = False

            def read(self, size: int = -1) -> bytes:
                reads.append(size)
                if len(reads) > 3:
                    raise OSError("connection reset")
                return bytes(real_read(size))

            def __enter__(self) -> "Flaky":
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return Flaky()

    monkeypatch.setattr("curator.storage.open_read", flaky)
    with pytest.raises(StorageError):
        list(corpus.read(source, [Extent(source=0, start=0, stop=5000, first_row=0, size_bytes=0)]))


@pytest.mark.slow
def test_one_giant_row_group_is_cut_inside_and_read_in_small_batches(tmp_path: Path) -> None:
    text = [chr(97 + i % 26) * 8000 + str(i) for i in range(20_000)]
    uri = write(tmp_path, pa.table({"text": text}), row_group_size=20_000, use_dictionary=False)
    corpus = ParquetCorpus(uri=uri)
    (source,) = corpus.list_sources()
    split = corpus.split(source, 10_000_000)
    assert split.streamed and len(split.extents) == 16
    before, peak, seen = pa.total_allocated_bytes(), 0, 0
    for _, row in corpus.read(source, split.extents):
        assert isinstance(row, Document) and row.text == text[row.row]
        seen += 1
        if seen % 500 == 0:
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert seen == 20_000
    assert peak < 80_000_000  # of 160 MB of text
    (row, *_) = corpus.read(source, split.extents[-1:])
    assert isinstance(row[1], Document) and row[1].row == split.extents[-1].first_row


def test_only_needed_columns_count_and_are_read(tmp_path: Path) -> None:
    table = numbered(100).append_column("blob", pa.array([b"x" * 10_000 + str(i).encode() for i in range(100)]))
    corpus = ParquetCorpus(uri=write(tmp_path, table))
    (source,) = corpus.list_sources()
    (extent,) = corpus.split(source, 1_000_000).extents
    assert extent.size_bytes < 50_000


def test_strings_that_are_not_utf8_are_quarantined_alone(tmp_path: Path, read_all: Any) -> None:
    raw = [b"good", b"bad \xff", b"\xed\xa0\x80", b"fine", None]
    text = pa.Array.from_buffers(pa.string(), 5, pa.array(raw, pa.binary()).buffers())
    source = pa.Array.from_buffers(pa.string(), 5, pa.array([b"s", b"s", b"s", b"\xfe", b"s"], pa.binary()).buffers())
    rows, _ = read_all(ParquetCorpus(uri=write(tmp_path, pa.table({"text": text, "source": source}))))
    assert good(rows) == ["good"]
    assert [(r.row, r.reason) for r in bad(rows)] == [
        (1, "invalid_utf8"),
        (2, "lone_surrogate"),
        (3, "invalid_utf8"),
        (4, "missing_text"),
    ]


def test_a_file_without_the_text_column_quarantines_its_rows(tmp_path: Path, read_all: Any) -> None:
    write(tmp_path, numbered(3), "a.parquet")
    write(tmp_path, pa.table({"body": ["x", "y"]}), "b.parquet")
    rows, _ = read_all(ParquetCorpus(uri=f"{tmp_path}/*.parquet"))
    assert len(good(rows)) == 3
    assert [(r.file, r.row, r.reason) for r in bad(rows)] == [
        ("b.parquet", 0, "missing_text"),
        ("b.parquet", 1, "missing_text"),
    ]
    assert "available keys: body" in explain_missing_text(bad(rows))


def test_text_of_another_type_is_quarantined(tmp_path: Path, read_all: Any) -> None:
    rows, _ = read_all(ParquetCorpus(uri=write(tmp_path, pa.table({"text": [1, None]}))))
    assert [r.reason for r in bad(rows)] == ["text_not_string", "missing_text"]


def test_carried_columns_keep_values_and_types(tmp_path: Path, read_all: Any) -> None:
    moment = datetime.datetime(2024, 2, 29, 12, 0, 1, 5, tzinfo=datetime.UTC)
    kinds = {
        "n": (pa.uint8(), [3, None]),
        "when": (pa.timestamp("us", "UTC"), [moment, None]),
        "tags": (pa.large_list(pa.string()), [["a", None], []]),
        "nested": (pa.struct([("x", pa.float32()), ("y", pa.list_(pa.int16()))]), [{"x": 0.5, "y": [1]}, None]),
        "kind": (pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
        "nothing": (pa.null(), [None, None]),
        "raw": (pa.binary(), [b"\xff", b""]),
    }
    columns = {name: pa.array(values, kind) for name, (kind, values) in kinds.items()}
    corpus = ParquetCorpus(uri=write(tmp_path, pa.table({"text": ["a", "b"], **columns})), columns=tuple(kinds))
    schema = corpus.columns_schema(corpus.list_sources())
    assert schema.names == list(kinds)
    assert schema.field("kind").type == schema.field("nothing").type == pa.string()
    for name in ("n", "when", "raw"):
        assert schema.field(name).type == kinds[name][0]
    rows, _ = read_all(corpus)
    assert [row.columns for row in rows] == [{name: values[i] for name, (_, values) in kinds.items()} for i in (0, 1)]
    assert all(isinstance(fit_columns(row, schema), Document) for row in rows)


def test_a_value_that_python_cannot_hold_is_a_column_type(tmp_path: Path, read_all: Any) -> None:
    extreme = pa.array([0, 2**62], pa.int64()).view(pa.timestamp("us"))
    corpus = ParquetCorpus(uri=write(tmp_path, pa.table({"text": ["a", "b"], "when": extreme})), columns=("when",))
    rows, _ = read_all(corpus)
    schema = corpus.columns_schema(corpus.list_sources())
    fitted = [fit_columns(row, schema) for row in rows]
    assert isinstance(fitted[0], Document)
    assert isinstance(fitted[1], BadRow) and fitted[1].reason == "column_type"


def test_a_missing_column_is_named_with_what_there_is(tmp_path: Path) -> None:
    corpus = ParquetCorpus(uri=write(tmp_path, numbered(2)), columns=("url",))
    with pytest.raises(CorpusError, match="no column 'url'; available keys: text, source"):
        corpus.columns_schema(corpus.list_sources())


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    corpus = ParquetCorpus(uri=write(tmp_path, table))
    with pytest.raises(CorpusError, match="2 columns named 'text'"):
        corpus.split(corpus.list_sources()[0], 100)


def test_dots_in_column_names_are_plain_characters(tmp_path: Path, read_all: Any) -> None:
    table = pa.table({"a.b": ["dotted"], "a": [{"b": "nested", "c": 1}], "text": ["t"]})
    rows, _ = read_all(ParquetCorpus(uri=write(tmp_path, table), text_field="a.b", columns=("a",)))
    assert good(rows) == ["dotted"] and rows[0].columns == {"a": {"b": "nested", "c": 1}}
