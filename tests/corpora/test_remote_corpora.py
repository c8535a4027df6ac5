"""Corpora on object stores and in memory: the same rows as on disk."""

import gzip
import io
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpora.jsonl import JsonlCorpus
from curator.corpora.parquet import ParquetCorpus
from curator.corpora.text import TextCorpus
from curator.data import Document
from curator.errors import CorpusError

ROWS = [f"row {i} é" for i in range(500)]
LINES = "".join(f'{{"text": "{text}"}}\n' for text in ROWS).encode()


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "memory":
        return "memory://bucket/corpus"
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_endpoint"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdirs("s3://bucket", exist_ok=True)
    return "s3://bucket/corpus"


def put(uri: str, content: bytes) -> None:
    with fsspec.open(uri, "wb") as file:
        file.write(content)


def found(rows: list[Any]) -> list[str]:
    return [row.text for row in rows if isinstance(row, Document)]


def test_all_file_formats_read_the_same_rows(root: str, read_all: Any) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ROWS}), table, row_group_size=100)
    put(f"{root}/plain/a.jsonl", LINES)
    put(f"{root}/packed/a.jsonl.gz", gzip.compress(LINES))
    put(f"{root}/tables/a.parquet", table.getvalue())
    put(f"{root}/words/a.txt", "\n".join(ROWS).encode())
    corpora = [
        JsonlCorpus(uri=f"{root}/plain/*.jsonl"),
        JsonlCorpus(uri=f"{root}/packed/*"),
        ParquetCorpus(uri=f"{root}/tables/*.parquet"),
        TextCorpus(uri=f"{root}/words/a.txt", unit="line"),
    ]
    for corpus in corpora:
        (source,) = corpus.list_sources()
        assert source.uri.startswith(root.split("://")[0] + "://") and source.path.startswith("a.")
        assert source.fingerprint
        rows, damage = read_all(corpus, 3000)
        assert (found(rows), damage) == (ROWS, [])
        assert rows[7].doc_id == f"{source.path}:7"


def test_a_replaced_object_has_another_fingerprint(root: str) -> None:
    put(f"{root}/b/x.jsonl", b"{}\n")
    corpus = JsonlCorpus(uri=f"{root}/b/*.jsonl")
    before = corpus.list_sources()
    assert corpus.list_sources() == before
    put(f"{root}/b/x.jsonl", b"[]\n")
    assert corpus.list_sources()[0].fingerprint != before[0].fingerprint


def test_a_glob_that_matches_nothing_is_named(root: str) -> None:
    with pytest.raises(CorpusError, match=r"none/\*.jsonl' matches no file"):
        JsonlCorpus(uri=f"{root}/none/*.jsonl").list_sources()
