r"""Lines end with \n alone; any cut of any file gives each line once, and bytes that cannot be read are one entry."""

import gzip
import random
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.corpora import blocks
from curator.corpora.blocks import LARGEST_WINDOW_BYTES, Damage, unpacked_blocks
from curator.corpora.files import list_source_files
from curator.corpora.lines import iter_lines, read_lines, split_lines
from curator.errors import CorpusError, StorageError

PIECES = st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"\r", b"\xe2\x80\xa8", b"\x0c", b"\xc2\x85", b"long" * 9]))
NewFile = Callable[..., str]


def oracle(content: bytes) -> list[bytes]:
    """Lines by the definition: cut at every \\n, and nothing after a last one."""
    lines = content.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


@given(pieces=PIECES, sizes=st.lists(st.integers(1, 9), min_size=1), limit=st.integers(1, 40))
def test_lines_do_not_depend_on_blocks(pieces: list[bytes], sizes: list[int], limit: int) -> None:
    content, blocks, position = b"".join(pieces), [], 0
    while position < len(content):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(content[position : position + size])
        position += size
    lines = list(iter_lines(blocks, limit))
    assert [line.size_bytes for line in lines] == [len(line) for line in oracle(content)]
    assert [line.data for line in lines] == [line if len(line) <= limit else None for line in oracle(content)]
    assert [line.row for line in lines] == list(range(len(lines)))
    assert all(content[line.offset :].startswith(line.data or b"") for line in lines)


@settings(max_examples=60, deadline=None)
@given(pieces=PIECES, target=st.integers(1, 60), form=st.sampled_from(["plain", "gzip", "zstd"]))
def test_extents_cover_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], target: int, form: str
) -> None:
    content = b"".join(pieces)
    packed = {"plain": content, "gzip": gzip.compress(content), "zstd": zstandard.compress(content)}[form]
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(packed)
    (source,) = list_source_files(str(path))
    split = split_lines(source, target)
    assert split.damage == [] and (split.streamed == (form != "plain") or not content)
    assert sum(extent.size_bytes for extent in split.extents) == len(content)
    assert all(extent.size_bytes >= target for extent in split.extents[:-1])
    one_by_one = [line for extent in split.extents for _, line in read_lines(source, [extent], 1000)]
    assert [line.data for line in one_by_one] == oracle(content)
    assert [line for _, line in read_lines(source, split.extents[::-1], 1000)] == one_by_one
    for index, extent in enumerate(split.extents):
        rows = [line.row for i, line in read_lines(source, split.extents, 1000) if i == index]
        assert rows[0] == extent.first_row


def test_a_byte_order_mark_is_dropped_at_the_beginning_alone(new_file: NewFile) -> None:
    (source,) = list_source_files(new_file(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n"))
    lines = [line.data for extent in split_lines(source, 1).extents for _, line in read_lines(source, [extent], 100)]
    assert lines == [b"a", b"\xef\xbb\xbfb"]


@pytest.mark.parametrize("form", ["plain", "gzip", "zstd"])
def test_a_line_over_the_limit_is_never_held(new_file: NewFile, form: str) -> None:
    content = b"first\n" + b"x" * 200_000_000 + b"\nlast\n"
    packed = {"plain": bytes, "gzip": lambda c: gzip.compress(c, 1), "zstd": zstandard.compress}[form](content)
    (source,) = list_source_files(new_file(packed))
    del content, packed
    tracemalloc.start()
    extents = split_lines(source, 1000).extents
    lines = [line for _, line in read_lines(source, extents, 1_000_000)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(line.data, line.size_bytes) for line in lines] == [(b"first", 5), (None, 200_000_000), (b"last", 4)]
    assert peak < 60_000_000


# ------------------------------------------------------------------------------------------------ damage


def read_back(uri: str, target: int = 50) -> tuple[bytes, list[tuple[str, int | None]]]:
    """All lines that can be read, and (reason, offset) of the rest."""
    (source,) = list_source_files(uri)
    split = split_lines(source, target)
    lines = [line for _, line in read_lines(source, split.extents, 10_000)]
    assert [bad.row for bad in split.damage] == [None] * len(split.damage)
    return b"".join((line.data or b"") + b"\n" for line in lines), [(bad.reason, bad.offset) for bad in split.damage]


def complete_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


CONTENT = b"".join(b'{"text": "line %d %d"}\n' % (i, i * 7919 % 1000) for i in range(60))


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_a_file_cut_at_any_byte_keeps_its_complete_lines(new_file: NewFile, name: str) -> None:
    halves = CONTENT[:700], CONTENT[700:]
    packed = b"".join(gzip.compress(h) if name == "a.gz" else zstandard.compress(h) for h in halves)
    path = Path(new_file(packed, name))
    boundary = len(gzip.compress(halves[0]) if name == "a.gz" else zstandard.compress(halves[0]))
    for size in range(1, len(packed)):
        path.write_bytes(packed[:size])
        if name == "a.gz":
            readable = b"" if size < boundary else halves[0]
            readable += zlib.decompressobj(31).decompress(packed[boundary if size >= boundary else 0 : size])
        else:
            readable = b"" if size < boundary else halves[0]  # one block each: all of it or nothing
        kept, damage = read_back(str(path))
        if size == boundary:
            assert (kept, damage) == (
                complete_lines(halves[0]) + halves[0][len(complete_lines(halves[0])) :] + b"\n",
                [],
            )
            continue
        assert kept == complete_lines(readable), size
        assert damage == [("truncated_file", len(kept))], size
    path.write_bytes(packed)
    assert read_back(str(path)) == (CONTENT, [])


def test_noise_in_the_middle_of_gzip_keeps_what_came_before(new_file: NewFile) -> None:
    noise = random.Random(5)
    content = b"".join(noise.randbytes(40).hex().encode() + b"\n" for _ in range(20_000))
    packed = bytearray(gzip.compress(content))
    packed[len(packed) // 2 : len(packed) // 2 + 2000] = b"\xff" * 2000
    kept, damage = read_back(new_file(bytes(packed)), 100_000)
    assert damage == [("damaged_file", len(kept))]
    same = next(i for i, (a, b) in enumerate(zip(kept, content, strict=False)) if a != b)
    assert 0.45 * len(content) < same <= len(kept)


def test_a_wrong_checksum_is_reported_after_the_last_line(new_file: NewFile) -> None:
    packed = bytearray(gzip.compress(CONTENT))
    packed[-8] ^= 1
    assert read_back(new_file(bytes(packed))) == (CONTENT, [("damaged_file", len(CONTENT))])


def test_bytes_after_a_gzip_member_are_damage_and_padding_is_not(new_file: NewFile) -> None:
    packed = gzip.compress(CONTENT)
    assert read_back(new_file(packed + b"\0" * 1000)) == (CONTENT, [])
    assert read_back(new_file(packed + b"\0garbage")) == (CONTENT, [("damaged_file", len(CONTENT))])


def test_noise_in_zstd_keeps_the_frames_before(new_file: NewFile) -> None:
    frames = [zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT) for _ in range(3)]
    broken = bytearray(frames[1])
    broken[-1] ^= 1
    kept, damage = read_back(new_file(frames[0] + bytes(broken) + frames[2]))
    assert kept.startswith(CONTENT) and len(kept) < 3 * len(CONTENT)
    assert damage == [("damaged_file", len(kept))]


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_a_compressed_file_with_a_zeroed_beginning_is_damaged(new_file: NewFile, name: str) -> None:
    packed = gzip.compress(CONTENT) if name == "a.gz" else zstandard.compress(CONTENT)
    assert read_back(new_file(b"\0" * 20 + packed[20:], name)) == (b"", [("damaged_file", 0)])


def test_plain_text_under_a_compressed_name_is_plain(new_file: NewFile) -> None:
    assert read_back(new_file(CONTENT, "unpacked_by_the_store.jsonl.gz")) == (CONTENT, [])


def test_a_long_window_can_be_read(new_file: NewFile) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1, write_content_size=False)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert read_back(new_file(packed.compress(CONTENT) + packed.flush())) == (CONTENT, [])


@pytest.mark.parametrize("window_log", [26, 28])
def test_planning_unpacks_one_file_with_a_wide_window_at_a_time(
    new_file: NewFile, monkeypatch: pytest.MonkeyPatch, window_log: int
) -> None:
    """Each takes as much memory as its window, and dozens of files are planned at once."""
    content = b"\n".join(b"%d" % i for i in range(2_000))

    def pack(log: int) -> bytes:
        parameters = zstandard.ZstdCompressionParameters(window_log=log, compression_level=1, write_content_size=False)
        writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        return writer.compress(content) + writer.flush()

    usual, wide = pack(25), pack(window_log)
    under_way, most, real = Counter[int](), Counter[int](), blocks.unpacked_blocks

    def counted(uri: str, compression: Any, window_bytes: int = LARGEST_WINDOW_BYTES) -> Iterator[bytes]:
        under_way[window_bytes] += 1
        most[window_bytes] = max(most[window_bytes], under_way[window_bytes])
        time.sleep(0.02)
        try:
            yield from real(uri, compression, window_bytes)
        finally:
            under_way[window_bytes] -= 1

    monkeypatch.setattr(blocks, "unpacked_blocks", counted)
    sources = [
        list_source_files(new_file(packed, f"{i}"))[0] for i, packed in enumerate([usual, usual + wide, wide] * 3)
    ]
    with ThreadPoolExecutor(9) as threads:
        splits = list(threads.map(lambda source: split_lines(source, 1_000), sources))
    assert most[LARGEST_WINDOW_BYTES] == 1 < most[1 << 25], most
    for split, times in zip(splits, [1, 2, 1] * 3, strict=True):
        assert split.damage == [] and sum(extent.size_bytes for extent in split.extents) == times * len(content)


def test_a_decompression_bomb_is_read_in_small_blocks(new_file: NewFile) -> None:
    for packed in (gzip.compress(bytes(100_000_000), 9), zstandard.compress(bytes(100_000_000))):
        sizes = [len(block) for block in unpacked_blocks(new_file(packed), "gzip" if packed[0] == 0x1F else "zstd")]
        assert sum(sizes) == 100_000_000
        assert max(sizes) < 20_000_000


@pytest.mark.parametrize(
    ("head", "kind"), [(b"BZh91AY&SYxx", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"PK\x03\x04", "zip"), (b"PAR1", "parquet")]
)
def test_other_packings_are_refused_by_name(new_file: NewFile, head: bytes, kind: str) -> None:
    with pytest.raises(CorpusError, match=kind):
        read_back(new_file(head))


def test_an_empty_file_has_no_extents(new_file: NewFile) -> None:
    for content, name in (
        (b"", "a.jsonl"),
        (b"", "a.gz"),
        (gzip.compress(b""), "b.gz"),
        (zstandard.compress(b""), "c.zst"),
    ):
        (source,) = list_source_files(new_file(content, name))
        split = split_lines(source, 10)
        assert (split.extents, split.damage) == ([], [])


def test_trouble_of_the_storage_is_not_damage(new_file: NewFile, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = new_file(gzip.compress(CONTENT))

    class Failing:
        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def seek(self, position: int) -> int:
            return position

        def read(self, size: int) -> bytes:
            raise TimeoutError("the store does not answer")

    monkeypatch.setattr("curator.storage.open_read", lambda uri: Failing())
    with pytest.raises(StorageError, match="does not answer"):
        list(unpacked_blocks(uri, "gzip"))


def test_damage_carries_its_words() -> None:
    assert Damage("truncated_file", "early").reason == "truncated_file"
