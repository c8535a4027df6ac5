"""What pages of a parquet file claim to be is checked before Arrow takes memory; sound files are read as ever."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpora.pages import LARGEST_PAGE_BYTES, CheckedFile
from curator.corpora.parquet import ParquetCorpus
from curator.corpora.thrift import ColumnChunk, column_chunks, page_header
from curator.data import BadRow

MOST_BYTES = 1 << 28
"""What Arrow may take for the files here; they hold 12 to 25 MB."""


def zigzag(number: int) -> bytes:
    """An i32 in Thrift's compact form."""
    number, out = 2 * number, bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def places(path: Path) -> list[list[ColumnChunk]]:
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    return column_chunks(content[-8 - length : -8])


@pytest.fixture
def large(tmp_path: Path) -> Callable[[str], Path]:
    """A file with one column chunk of more than 8 MB, which Arrow reads through a buffer."""

    def write(compression: str) -> Path:
        texts = np.random.default_rng(0).bytes(12 << 20).hex()
        rows = [texts[i : i + 1200] for i in range(0, len(texts), 1200)]
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": rows}), path, compression=compression, use_dictionary=False)
        assert pq.read_metadata(path).row_group(0).column(0).total_compressed_size > 9 << 20
        return path

    return write


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("lie", ["packed", "unpacked", "both"])
@pytest.mark.parametrize("page", [0, 3])
def test_a_page_of_a_large_column_that_claims_gigabytes_is_damage_and_takes_none(
    large: Callable[[str], Path], read_all: Any, compression: str, lie: str, page: int
) -> None:
    path = large(compression)
    content = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    for _ in range(page):
        header = page_header(content, at)
        assert header is not None
        at += header.length + header.packed_bytes
    header = page_header(content, at)
    assert header is not None
    true = b"\x15\x00\x15" + zigzag(header.unpacked_bytes) + b"\x15" + zigzag(header.packed_bytes)
    assert content[at : at + len(true)] == true, "type, bytes unpacked, bytes packed: as the format says"
    unpacked = header.unpacked_bytes if lie == "packed" else 2**31 - 1
    packed = header.packed_bytes if lie == "unpacked" else 2**31 - 1
    rest = content[at + len(true) : at + header.length]
    claim = b"\x15\x00\x15" + zigzag(unpacked) + b"\x15" + zigzag(packed) + rest
    content[at : at + len(claim)] = claim
    path.write_bytes(content)
    pool = pa.default_memory_pool()
    most_bytes = max(pool.max_memory(), MOST_BYTES)
    rows, damage = read_all(ParquetCorpus(uri=str(path)))
    assert damage == [] and isinstance(rows[-1], BadRow) and rows[-1].reason == "damaged_file"
    assert f"the page at byte {at} claims 2147483647 bytes" in rows[-1].detail
    assert (len(rows) > 1) == (page > 0), "what lies before the damage is kept"
    assert pool.max_memory() <= most_bytes


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("block", [1 << 23, 5000, 701])
def test_the_pages_of_a_sound_file_lie_end_to_end_however_it_is_read(
    tmp_path: Path, version: str, compression: str, block: int
) -> None:
    chance = np.random.default_rng(1)
    table = pa.table({
        "text": [chance.bytes(int(n)).hex() for n in chance.integers(0, 300, 3000)],
        "source": [f"s{i % 7}" for i in range(3000)],
        "nested": [[i] * (i % 4) if i % 9 else None for i in range(3000)],
    })  # fmt: skip
    path = tmp_path / "a.parquet"
    pq.write_table(
        table, path, compression=compression, data_page_size=4096, data_page_version=version, row_group_size=1100,
        write_page_checksum=True,
    )  # fmt: skip
    content, groups = path.read_bytes(), places(path)
    assert len(groups) == 3
    for group in groups:
        file = CheckedFile(io.BytesIO(content))
        file.expect(group)
        for chunk in group:
            file.seek(chunk.start)
            read = b"".join(file.read(min(block, chunk.stop - at)) for at in range(chunk.start, chunk.stop, block))
            assert read == content[chunk.start : chunk.stop] and file.tell() == chunk.stop
        assert [(walk.position, walk.values) for walk in file._walks] == [(chunk.stop, 0) for chunk in group]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"\x15\x00\x15\x02\x15\x01\x00", "claims -1 bytes, and its column has"),
        (b"\x15\x00\x15\x01\x15\x02\x00", "claims -1 bytes unpacked"),
        (b"\x15\x00\x15" + zigzag(LARGEST_PAGE_BYTES + 1) + b"\x15\x02\x00", "write the file with smaller pages"),
        (b"\x15\x00\x15\x02\x15\x02\x2c\x15\x01\x00\x00", "-1 values"),
        (b"\x15\x00\x15\x02\x00", "header is damaged: KeyError"),
        (b"\x15\x00\x15\x02\x15\x02\x25\x02\x00", "header is damaged: AttributeError"),
        (b"\x15" + b"\x80" * 5000 + b"\x01\x00", "more than 64 bits"),
        (b"\x1d\x00", "unknown Thrift type 13"),
        (b"\x15\x00\x15\x02\x15", "has no whole header"),
    ],
)
def test_a_header_that_cannot_be_is_damage(header: bytes, said: str) -> None:
    file = CheckedFile(io.BytesIO(b"PAR1" + header))
    file.expect([ColumnChunk("text", 100, 4, 40, 10)])
    file.seek(4)
    assert file.read(1 << 20) == b"\0" + header[1:], "blanked, so that Arrow gives what lies before it"
    assert file.damage is not None and said in file.damage.detail
    file.expect([])
    assert file.damage is None
