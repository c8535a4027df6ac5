"""What is fuzzed: a parser each, with what must hold of whatever it accepts, judged by other means than its own."""

import email.message
import io
import json
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from starlette.datastructures import Headers

from curator.client.part import place
from curator.client.sse import EventParser, ServerEvent
from curator.corpora.jsonl import JsonlCorpus
from curator.corpora.parquet import ParquetCorpus
from curator.corpora.thrift import column_chunks
from curator.data import BadRow, Document
from curator.errors import CuratorError, ServerError
from curator.inspection import POSITION
from curator.job_directory import EventLog
from curator.scorers.bigram import BigramModel
from curator.spec import load_spec, parse_spec
from service.admission.body import MAX_DEPTH, read_json_body
from service.admission.places import Places
from service.admission.refusals import Refused
from service.downloads import content_disposition, is_not_modified, select_span
from service.problems import Problem
from service.uploads import FILENAME_PATTERN

ETAG = '"' + "a" * 64 + '"'
_folder = Path(os.path.realpath(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)))
_root, _outside = _folder / "root", _folder / "outside"
for made in (_root / "corpus", _outside):
    made.mkdir(parents=True)
(_root / "corpus" / "a.jsonl").write_text("{}")
(_outside / "secret").write_text("x")
(_root / "out").symlink_to(_outside)
_places = Places((str(_root),), ("s3://bucket/team",), str(_folder), str(_folder / "jobs"), str(_folder / "up"),
                 str(_folder / "up" / "mine"), lambda job: False)  # fmt: skip


def spec(data: bytes) -> None:
    """A file in YAML: a spec that is accepted says the same when it is written out and read again."""
    path = _folder / "spec.yaml"
    path.write_bytes(data)
    try:
        found = load_spec(str(path))
    except CuratorError:
        return
    assert parse_spec(json.loads(found.model_dump_json())) == found


def body(data: bytes) -> None:
    """A request's body: what is accepted is what any JSON parser reads, of bounded depth."""
    try:
        found = read_json_body(data)
    except Problem:
        return
    assert found == json.loads(data) and _depth(found) <= MAX_DEPTH


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def uri(data: bytes) -> None:
    """A place: one that may be written or read lies, by the system's own word, below the allowed root."""
    text = data.decode("utf-8", "surrogateescape").replace("ROOT", str(_root))
    for access in ("write", "folder", "files"):
        try:
            _places.check(text, access)  # type: ignore[arg-type]
        except Refused:
            continue
        if text.startswith(("s3://", "gs://")):
            assert text.startswith("s3://bucket/team") and "/../" not in f"{text}/"
        elif access != "files":
            assert f"{os.path.realpath(text)}/".startswith(f"{_root}/"), text


def range_header(data: bytes) -> None:
    """Range and conditions: a span lies within the file, and a plain one is what it says."""
    first, rest, *_ = [*data.split(b"\n"), b""]  # a header's value has no line end
    size = len(data) % 100
    pairs = [(b"range", first), *([(b"if-range", rest)] if rest else [])]
    headers = Headers(raw=pairs)
    plain = re.fullmatch(rb"bytes=([0-9]{1,6})-([0-9]{1,6})", first)
    try:
        span = select_span(headers, ETAG, size)
    except Problem as problem:
        assert problem.status == 416
        assert plain is None or int(plain[1]) >= size
        return
    if span is not None:
        assert 0 <= span.start < span.stop <= size
        if plain is not None:
            assert (span.start, span.stop) == (int(plain[1]), min(int(plain[2]) + 1, size))
    conditions = Headers(raw=[(b"if-none-match", first), (b"if-match", rest)])
    try:
        if is_not_modified(conditions, ETAG):
            assert first.strip(b" \t") == b"*" or ETAG.encode() in first
    except Problem as problem:
        assert problem.status == 412 and rest.strip(b" \t") != ETAG.encode()


def cursor(data: bytes) -> None:
    """Positions in lists, and a log of events that holds anything: found is what a walk over the lines finds."""
    text = data.decode("latin-1")
    if re.search(POSITION, text) and not text.endswith("\n"):
        section, index = (int(part) for part in text.split("."))
        assert f"{section}.{index}".replace("0", "") in text.replace("0", "") and section < 10**9 > index
    ids = list(range(1, 1 + data[0] % 40)) if data else []
    path = _folder / "events.jsonl"
    lines = [json.dumps({"id": i, "pad": "x" * (data[i % len(data)] * 30)}).encode() + b"\n" for i in ids]
    path.write_bytes(b"".join(lines) + data[:20].replace(b"\n", b""))
    wanted = int.from_bytes(data[1:3], "little") % 50
    assert EventLog(path).offset_after(wanted) == sum(len(line) for line in lines[:wanted])


def jsonl(data: bytes) -> None:
    """Rows: as many as lines, each kept or quarantined, however the file is cut; kept text is what JSON says."""
    path = _folder / "rows.jsonl"
    path.write_bytes(data)
    corpus = JsonlCorpus(uri=str(path), max_row_bytes=1000)
    (source,) = corpus.list_sources()
    try:
        split = corpus.split(source, 1 + len(data) % 50)
        rows = [row for _, row in corpus.read(source, split.extents)]
    except CuratorError as error:
        assert "rows.jsonl" in str(error)
        return
    if not data.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")) and not re.match(rb"[\x50-\x5f]\x2a\x4d\x18", data):
        lines = data.split(b"\n")
        assert len(rows) == len(lines) - (lines[-1] == b"") and not split.damage
        for line, row in zip(lines, rows, strict=False):
            assert isinstance(row, BadRow) or row.text == json.loads(line.removeprefix(b"\xef\xbb\xbf"))["text"]


def _parquet_seed() -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": ["one", "two", None, "é"], "n": [1, 2, 3, 4], "l": [[1], [], None, [2]]})
    pq.write_table(table, sink, row_group_size=2, write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def parquet(data: bytes) -> None:
    """A parquet file: rows or recorded damage, and never an error that is not ours."""
    path = _folder / "rows.parquet"
    path.write_bytes(data)
    corpus = ParquetCorpus(uri=str(path), columns=("n",))
    (source,) = corpus.list_sources()
    try:
        split = corpus.split(source, 10)
        rows = [row for _, row in corpus.read(source, split.extents)]
        corpus.columns_schema([source])
    except CuratorError as error:
        assert "rows.parquet" in str(error) or "corpus.columns" in str(error)
        return
    assert all(isinstance(row, Document | BadRow) for row in rows)


def footer(data: bytes) -> None:
    """A footer's Thrift bytes: chunks, or a ValueError."""
    try:
        groups = column_chunks(data)
    except ValueError:
        return
    assert all(chunk.start >= 0 and chunk.size_bytes >= 0 for group in groups for chunk in group)


def stream(data: bytes) -> None:
    """Server-sent events: the same however the bytes were cut."""
    size = 1 + (data[0] if data else 0) % 7
    parts, whole = EventParser(), EventParser()
    cut: list[ServerEvent] = []
    for start in range(0, len(data), size):
        cut += parts.feed(data[start : start + size])
    assert cut == list(whole.feed(data)) and parts.last_id == whole.last_id


def names(data: bytes) -> None:
    """Names of files: an upload's is plain, a shard's leads nowhere else, a download's survives its header."""
    text = data.decode("utf-8", "replace")
    if re.fullmatch(FILENAME_PATTERN[1:-1], text, re.ASCII):
        assert os.path.basename(text) == text and text not in (".", "..") and len(text) <= 100 and text.isprintable()
    with suppress(ServerError):
        assert os.path.realpath(place(_root, text)).startswith(f"{_root}/")
    header = content_disposition(text)
    assert header.isascii() and header.isprintable()
    message = email.message.Message()
    message["Content-Disposition"] = header
    assert message.get_filename() == text or "filename*=" in header


def _counts_seed() -> bytes:
    sink = io.BytesIO()
    arrays = {"unigram": [3, 2, 1], "row_sizes": [2, 0, 1], "following": [0, 2, 1], "count": [1, 1, 2]}
    np.savez(sink, **{name: np.array(values) for name, values in arrays.items()})
    return sink.getvalue()


def bigram(data: bytes) -> None:
    """A model's file of counts: counts, or an error that names it."""
    folder = _folder / "bigram"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").touch()
    (folder / "counts.npz").write_bytes(data)
    config = BigramModel(engine="bigram", model=str(folder))
    try:
        config.build(config.identify(), 1)
    except CuratorError:
        return


def broken(data: bytes) -> None:
    """Fails on purpose, to see that the fuzzer finds it."""
    if data[:1] == b"c" and data[1:2] == b"u" and data[2:3] == b"r" and data[3:4] == b"a":
        raise RuntimeError("four bytes")


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "spec": (spec, [b"name: x\ncorpus: {kind: jsonl, uri: /a}\nmodels: {reference: {engine: bigram}}\n"
                    b"policy: {kind: loss, keep: 0.5}\noutput: {uri: /o}\n", b"a: &x [*x]",
                    b"? [a]\n: {b: !!python/x 1}"]),
    "body": (body, [b'{"name": "x", "corpus": {"a": [1, 2.5, true, null, "\\u00e9"]}}', b'{"a": 1, "a": 2}', b"[[[["]),
    "uri": (uri, [b"ROOT/corpus/a.jsonl", b"ROOT/../outside/secret", b"ROOT/out/secret", b"s3://bucket/team/x/../y",
                  b"ROOT/%2e%2e/outside", b"ROOT/corpus/*.jsonl", b"file:///etc/passwd", b"ROOT/./corpus//a"]),
    "range": (range_header, [b"bytes=0-5\n" + ETAG.encode(), b"bytes=-5", b"bytes=5-", b"bytes=0-0,2-3", b"*\n*",
                             b'W/"x", ' + ETAG.encode(), b"BYTES = 1-2"]),
    "cursor": (cursor, [b"2.17", b"\x10\x05\x00abc", b"0.0"]),
    "jsonl": (jsonl, [b'{"text": "a"}\n{"text": "\xc3\xa9", "id": [1]}\n\n{"text": 1}', b"\x1f\x8b\x08\0",
                      b"(\xb5/\xfd",
                      b'\xef\xbb\xbf{"text": "a"}\r\n[' + b"[" * 50]),
    "parquet": (parquet, [_parquet_seed()]),
    "footer": (footer, [_parquet_seed()[-1500:-8]]),
    "stream": (stream, [b"id: 1\r\ndata: x\r\n\r\n", b"\xef\xbb\xbfevent: a\ndata\n\nretry: 10\n",
                        b"retry: " + b"9" * 5000 + b"\n"]),
    "names": (names, [b"curated/00000.parquet", b"a.jsonl.gz", b"../x", "é\".txt".encode(), b"a\r\nb"]),
    "bigram": (bigram, [_counts_seed(), b"PK\x03\x04"]),
}  # fmt: skip
"""The target `broken` is asked for by name alone."""
