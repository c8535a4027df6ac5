"""Malformed corpora, each with what must become of it, known to its maker and not to the code under test."""

import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

MAX_ROW_BYTES = 30_000

Chance = random.Random


@dataclass
class Input:
    """One corpus and its fate.

    Attributes:
        kind: what is wrong with it.
        corpus: its part of the spec.
        good: texts that must be kept, in order, by row number where it is known.
        bad: row number to the reasons that would do; empty = any fate but a loss.
        whole: nothing else may be kept or quarantined.
        refused: the file as a whole may be refused instead.
        damage: what is kept is a beginning of the texts, and what is lost is recorded as damage.
        checked: checksums guard the content: what is kept is of the texts, in their order.
        malformed: how many inputs this counts as.
    """

    kind: str
    corpus: dict[str, Any]
    good: list[tuple[int | None, str]]
    bad: dict[int, set[str]] = field(default_factory=dict)
    whole: bool = True
    refused: bool = False
    damage: bool = False
    checked: bool = False
    malformed: int = 1


# ------------------------------------------------------------------------------------------------ malformed lines


def _line(text: str, **more: Any) -> bytes:
    return json.dumps({"text": text, "id": 1} | more, ensure_ascii=False).encode()


def _insert(raw: bytes, what: bytes, chance: Chance) -> bytes:
    """In the middle of the text, between two characters."""
    text = raw.decode()
    at = text.index('"text": "') + 9
    return (text[:at]).encode() + what + text[at:].encode()


def _flip(raw: bytes, chance: Chance) -> bytes:
    at = chance.randrange(len(raw))
    new = chance.choice([byte for byte in range(256) if byte not in (10, raw[at])])
    return raw[:at] + bytes([new]) + raw[at + 1 :]


Maker = Callable[[str, Chance], bytes]
LINES: dict[str, tuple[Maker, set[str]]] = {
    "invalid UTF-8": (lambda t, c: _insert(_line(t), bytes([c.choice([0xFF, 0xC0, 0xFE, 0x80])]), c), {"invalid_utf8"}),
    "half a character": (lambda t, c: _insert(_line(t), "é€𝔘"[c.randrange(3)].encode()[:-1], c), {"invalid_utf8"}),
    "raw surrogate": (lambda t, c: _insert(_line(t), b"\xed" + bytes([c.randrange(0xA0, 0xC0), 0x80]), c),
                      {"lone_surrogate"}),
    "escaped surrogate": (lambda t, c: _insert(_line(t), b"\\ud%x%02x " % (c.randrange(8, 16), c.randrange(256)), c),
                          {"lone_surrogate"}),
    "surrogate in the source": (lambda t, c: _line(t)[:-1] + b', "source": "\\udfff"}', {"lone_surrogate"}),
    "raw NUL": (lambda t, c: _insert(_line(t), bytes([c.choice([0, 1, 9, 13, 31])]), c), {"not_json"}),
    "cut": (lambda t, c: json.dumps({"text": t}).encode()[: c.randrange(1, 12)], {"not_json"}),
    "cut late": (lambda t, c: _line(t)[:-1], {"not_json"}),
    "deep list": (lambda t, c: b"[" * c.randrange(5_000, 15_000), {"not_json"}),
    "deep object": (lambda t, c: b'{"a":' * 3_500 + b"1" + b"}" * 3_500, {"not_json"}),
    "no object": (lambda t, c: c.choice([b"[1]", b'"text"', b"5", b"null", b"true", b"-0", b"1e999"]), {"not_json"}),
    "noise": (lambda t, c: c.choice([b"'text'", b"{text: 1}", b"{,}", b'{"text": "x",}', b"<doc>", b"\x7fELF", b"}{"]),
              {"not_json"}),
    "order mark": (lambda t, c: b"\xef\xbb\xbf" + _line(t), {"not_json"}),
    "huge number": (lambda t, c: b'{"text": "x", "n": ' + b"9" * c.randrange(4_400, 9_000) + b"}", {"not_json"}),
    "blank": (lambda t, c: c.choice([b"", b" ", b"\t", b"\r", "\u3000".encode()]), {"blank_line"}),
    "text is no string": (lambda t, c: c.choice([b'{"text": 5}', b'{"text": ["x"]}', b'{"text": {}}', b'{"text": true}',
                                                b'{"text": NaN}', b'{"text": 1e400}']), {"text_not_string"}),
    "no text": (lambda t, c: c.choice([b"{}", b'{"Text": "x"}', b'{"text": null}', b'{"text ": "x"}']),
                {"missing_text"}),
    "empty text": (lambda t, c: c.choice([b'{"text": ""}', b'{"text": " \\n\\u3000"}', b'{"text": "\\u2028"}']),
                   {"empty_text"}),
    "null at last": (lambda t, c: _line(t)[:-1] + b', "text": null}', {"missing_text"}),
    "too long": (lambda t, c: _line("x" * (MAX_ROW_BYTES + c.randrange(1, 100_000))), {"row_too_long"}),
    "a byte": (lambda t, c: _flip(_line(t), c), set()),
}  # fmt: skip
INTACT: dict[str, Callable[[str], tuple[bytes, str]]] = {
    "plain": lambda t: (_line(t), t),
    "escaped": lambda t: (json.dumps({"text": t}).encode(), t),
    "carriage return": lambda t: (_line(t) + b"\r", t),
    "separators": lambda t: (_line(f"{t}\u2028\u2029\x85\x0c"), f"{t}\u2028\u2029\x85\x0c"),
    "NUL": lambda t: (_line(f"\x00{t}"), f"\x00{t}"),
    "last of two": lambda t: (b'{"text": 5, ' + _line(t)[1:], t),
    "infinity": lambda t: (_line(t)[:-1] + b', "n": 1e99999, "m": -Infinity}', t),
    "pair": lambda t: (_line(f"{t}\U0001f600"), f"{t}\U0001f600"),
}


def lines(texts: list[str], chance: Chance, folder: Path, count: int) -> Input:
    """One file of malformed lines among intact ones; packed or plain."""
    good: list[tuple[int | None, str]] = []
    bad: dict[int, set[str]] = {}
    first, text = INTACT["plain"](texts[0])  # not a malformed one: a byte order mark may begin a file
    good.append((0, text))
    rows: list[bytes] = [first]
    for _ in range(count):
        for _ in range(chance.randrange(3)):
            raw, text = INTACT[chance.choice(list(INTACT))](chance.choice(texts))
            good.append((len(rows), text))
            rows.append(raw)
        maker, reasons = LINES[chance.choice(list(LINES))]
        bad[len(rows)] = reasons
        rows.append(maker(chance.choice(texts), chance))
    raw, text = INTACT["plain"](texts[0])
    good.append((len(rows), text))
    content = b"\n".join([*rows, raw]) + b"\n" * chance.randrange(2)
    name, content = chance.choice(
        [("a.jsonl", content), ("a.jsonl.gz", gzip.compress(content, 1)), ("a.zst", zstandard.compress(content, 1))]
    )
    (folder / name).write_bytes(content)
    return Input("lines", _corpus("jsonl", folder / name), good, bad, malformed=count)


def _corpus(kind: str, uri: Path, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "uri": str(uri), "max_row_bytes": MAX_ROW_BYTES} | more


# ------------------------------------------------------------------------------------------------ malformed files


def _damage(content: bytes, chance: Chance) -> tuple[str, bytes]:
    """Cut, flipped, zeroed, doubled, with noise."""
    at, size = chance.randrange(len(content)), chance.randrange(1, 40)
    return chance.choice([
        ("cut", content[:at]),
        ("flipped", content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]),
        ("zeroed", content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]),
        ("noise", content[:at] + chance.randbytes(min(size, len(content) - at)) + content[at + size :]),
        ("gap", content[:at] + content[at + size :]),
        ("noise at the end", content + chance.randbytes(size)),
    ])  # fmt: skip


def packed(texts: list[str], chance: Chance, folder: Path) -> Input:
    """A damaged gzip or zstd file of JSON lines: a prefix is kept, the rest recorded."""
    chosen = [chance.choice(texts) for _ in range(20)]
    content = b"".join(_line(text) + b"\n" for text in chosen)
    zipped = (
        gzip.compress(content)
        if chance.random() < 0.5
        else zstandard.ZstdCompressor(write_checksum=True).compress(content)
    )
    how, damaged = _damage(zipped, chance)
    path = folder / f"a.jsonl{chance.choice(['', '.gz', '.zst'])}"
    path.write_bytes(damaged)
    good: list[tuple[int | None, str]] = [(None, text) for text in chosen]
    return Input(f"packed, {how}", _corpus("jsonl", path), good, whole=False, refused=True, damage=how == "cut")


def parquet(texts: list[str], chance: Chance, folder: Path) -> Input:
    """A damaged parquet file, with checksums: what is kept is what was written."""
    chosen = [chance.choice(texts) for _ in range(24)]
    sink = io.BytesIO()
    table = pa.table({"text": chosen, "n": pa.array(range(24)), "l": [[i] for i in range(24)]})
    codec = chance.choice(["zstd", "snappy", "none", "gzip"])
    pq.write_table(table, sink, row_group_size=8, compression=codec, write_page_checksum=True)
    how, damaged = _damage(sink.getvalue(), chance)
    path = folder / "a.parquet"
    path.write_bytes(damaged)
    columns = chance.choice([[], ["n"], ["l"]])
    good: list[tuple[int | None, str]] = [(None, text) for text in chosen]
    corpus = _corpus("parquet", path, columns=columns, source_field=None)
    return Input(f"parquet, {how}", corpus, good, whole=False, refused=True, checked=True)


def odd_types(texts: list[str], chance: Chance, folder: Path) -> Input:
    """A sound parquet file whose text column is of another type, or has holes."""
    text, path = chance.choice(texts), folder / "a.parquet"
    odd: dict[str, tuple[Any, list[tuple[int | None, str]], dict[int, set[str]]]] = {
        "binary": (pa.array([text.encode(), b"\xff\xfe"]), [], {0: {"text_not_string"}, 1: {"text_not_string"}}),
        "integers": (pa.array([1, -(2**63)]), [], {0: {"text_not_string"}, 1: {"text_not_string"}}),
        "lists": (pa.array([[text], []]), [], {0: {"text_not_string"}, 1: {"text_not_string"}}),
        "structs": (pa.array([{"a": text}, None]), [], {0: {"text_not_string"}, 1: {"missing_text"}}),
        "nulls": (pa.array([None, text, None]), [(1, text)], {0: {"missing_text"}, 2: {"missing_text"}}),
        "dictionary": (pa.array([text, None]).dictionary_encode(), [(0, text)], {1: {"missing_text"}}),
        "large": (pa.array([text, ""], pa.large_string()), [(0, text)], {1: {"empty_text"}}),
        "view": (pa.array([text, " "], pa.string_view()), [(0, text)], {1: {"empty_text"}}),
        "not UTF-8": (
            pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xffa")),
            [(1, "a")], {0: {"invalid_utf8"}},
        ),
        "decimal": (pa.array([None, 1], pa.decimal128(38, 2)), [], {0: {"missing_text"}, 1: {"text_not_string"}}),
        "late dates": (pa.array([2**62, 0], pa.timestamp("us")), [], {0: {"text_not_string"}, 1: {"text_not_string"}}),
        "extension": (pa.array([text.encode()[:16].ljust(16)] * 2, pa.binary(16)).cast(pa.uuid()), [], {}),
        "JSON extension": (pa.ExtensionArray.from_storage(pa.json_(), pa.array([text, text])), [], {}),
    }  # fmt: skip
    name = chance.choice(list(odd))
    column, good, bad = odd[name]
    pq.write_table(pa.table({"text": column}), path)
    return Input(f"column of {name}", _corpus("parquet", path), good, bad, refused=True)


def texts_whole(texts: list[str], chance: Chance, folder: Path) -> Input:
    """A text file as one document that is not text, or too long."""
    text = chance.choice(texts)
    content, bad = chance.choice([
        (text.encode() + b"\xff", {"invalid_utf8"}), (b"\xed\xa0\x80" + text.encode(), {"lone_surrogate"}),
        (b"x" * (MAX_ROW_BYTES + 9), {"row_too_long"}), (b" \n\t" * 50, {"empty_text"}),
        (text.encode("utf-16"), {"invalid_utf8"}),
    ])  # fmt: skip
    (folder / "a.txt").write_bytes(content)
    corpus = {"kind": "text", "uri": str(folder / "a.txt"), "max_row_bytes": MAX_ROW_BYTES}
    return Input("text", corpus, [], {0: bad})


def saved(texts: list[str], chance: Chance, folder: Path) -> Input:
    """A damaged Arrow file of `datasets`: offsets that point anywhere, among others."""
    chosen = [chance.choice(texts) for _ in range(12)]
    datasets.Dataset.from_list([{"text": text} for text in chosen]).save_to_disk(folder / "saved")
    (path,) = (folder / "saved").glob("*.arrow")
    content = bytearray(path.read_bytes())
    offsets = np.cumsum([0, *(len(text.encode()) for text in chosen)]).astype("<i4").tobytes()
    at = bytes(content).find(offsets)
    if at >= 0 and chance.random() < 0.5:
        for _ in range(chance.randrange(1, 4)):
            here = at + 4 * chance.randrange(len(chosen) + 1)
            content[here : here + 4] = int(chance.choice([-1, -(2**31), 2**31 - 1, 10**9, 5])).to_bytes(
                4, "little", signed=True
            )
        how = "offsets"
    else:
        how, damaged = _damage(bytes(content), chance)
        content = bytearray(damaged)
    path.write_bytes(content)
    good: list[tuple[int | None, str]] = [(None, text) for text in chosen]
    corpus = {"kind": "hub", "path": str(folder / "saved"), "max_row_bytes": MAX_ROW_BYTES}
    return Input(f"saved, {how}", corpus, good, whole=False, refused=True)


FILES = (packed, packed, parquet, parquet, odd_types, texts_whole, saved)


def heavy(texts: list[str], folder: Path, *, whole: bool) -> Iterator[Input]:
    """Bombs, and lines of 100 MB: few, as each takes seconds."""
    line, size = _line(texts[0]), 100 << 20
    good: list[tuple[int | None, str]] = [(1, texts[0])]
    long = b'{"text": "' + b"x" * size + b'"}\n' + line
    names: dict[str, Any] = {"a.jsonl": bytes, "a.jsonl.gz": gzip.compress, "a.zst": zstandard.compress}
    for name in names if whole else ("a.jsonl",):
        (folder / name).write_bytes(names[name](long))
        yield Input(f"100 MB line, {name}", _corpus("jsonl", folder / name), good, {0: {"row_too_long"}})
    zeros = bytes(1 << 20)
    for name, opened in (("b.gz", gzip.open), ("b.zst", zstandard.open)):
        with opened(folder / name, "wb") as file:
            for _ in range(8 << 10 if whole else 1 << 10):
                file.write(zeros)
            file.write(b"\n" + line)
        yield Input(f"bomb, {name}", _corpus("jsonl", folder / name), good, {0: {"row_too_long"}})
    if not whole:
        return
    with gzip.open(folder / "a.c.gz", "wb") as file:
        for _ in range(64):
            file.write(b"\n" * (1 << 20))
    yield Input("bomb of 64 million lines", _corpus("jsonl", folder / "a.c.gz"), [], whole=False, refused=True)
    value = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array([" " * 10_000]))
    pq.write_table(pa.table({"text": value}), folder / "d.parquet", compression="zstd", row_group_size=100_000)
    fate = {row: {"empty_text"} for row in range(100_000)}
    yield Input("bomb of 1 GB, parquet", _corpus("parquet", folder / "d.parquet"), [], fate)
