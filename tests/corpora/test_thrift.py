"""Our reading of parquet footers agrees with pyarrow's on sound files, and never ends the process on damaged ones."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpora.footer import open_parquet
from curator.corpora.parquet import ParquetCorpus
from curator.corpora.thrift import column_chunks
from curator.errors import CorpusError


def table(rows: int) -> pa.Table:
    columns = {
        "text": [f"row {i} " * (i % 30 + 1) for i in range(rows)],
        "a.b": [i % 3 == 0 for i in range(rows)],
        "nested": [{"x": [str(i)], "y": i / 3} for i in range(rows)],
        "map": pa.array([[("k", i)] for i in range(rows)], pa.map_(pa.string(), pa.int64())),
    }
    return pa.table(columns)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_sizes_and_places_are_those_of_pyarrow(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(3000), path, compression=compression, row_group_size=700, data_page_size=2000)
    metadata = pq.read_metadata(path)
    with open_parquet(str(path)) as parquet:
        chunks = parquet.chunks()
    assert len(chunks) == metadata.num_row_groups == 5
    for g, group in enumerate(chunks):
        for c, chunk in enumerate(group):
            expected = metadata.row_group(g).column(c)
            start = expected.data_page_offset
            if expected.dictionary_page_offset is not None:
                start = min(start, expected.dictionary_page_offset)
            stop = start + expected.total_compressed_size
            assert chunk[1:] == (expected.total_uncompressed_size, start, stop, expected.num_values)
            assert expected.path_in_schema.startswith(chunk.name)
        assert [chunk.name for chunk in group] == ["text", "a.b", "nested", "nested", "map", "map"]


@pytest.mark.parametrize("footer", [b"", b"\x15", b"\x19\xff\xff\xff\xff\x0f", b"\x1c" * 1000, b"\xff" * 100, b"\0"])
def test_damaged_bytes_are_a_value_error(footer: bytes) -> None:
    with pytest.raises(ValueError, match=r"Thrift|nested"):
        column_chunks(footer)


@pytest.mark.slow
def test_flipped_bytes_never_escape_as_anything_but_bad_rows(tmp_path: Path, read_all: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(1000), path, row_group_size=300, data_page_size=2000)
    sound, noise = path.read_bytes(), random.Random(3)
    footer_bytes = int.from_bytes(sound[-8:-4], "little")
    for _ in range(400):
        broken = bytearray(sound)
        first = len(broken) - 8 - footer_bytes if noise.random() < 0.6 else 0
        for _ in range(noise.choice((1, 1, 5))):
            broken[noise.randrange(first, len(broken))] = noise.randrange(256)
        path.write_bytes(broken)
        try:
            rows, damage = read_all(ParquetCorpus(uri=str(path), columns=("nested",)), 5000)
        except CorpusError:
            continue  # a renamed column can look like a second one
        assert rows or damage
