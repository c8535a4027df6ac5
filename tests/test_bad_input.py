"""Bad input, end to end through Ray: nothing is lost in silence, and every fault has a clear word."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from curator import Manifest, curate, parse_spec, verify
from curator.errors import CorpusError, CuratorError, OutputError, SpecError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
MakeSpec = Callable[..., dict[str, Any]]
TEXTS = [
    "नमस्ते दुनिया", "你好，世界", "안녕하세요", "مرحبا بالعالم", "שלום", "ไทย", "👩‍👩‍👧‍👦🏳️‍🌈", "e\u0301 é ﬁ ﷺ",
    "\u200b\u2028 zero", "\x00 NUL \x00",
    "a\r\n\tb\x0c", "\ufeffBOM", "<|endoftext|> <s>", "a", "𝔘𒀀", "\U0010ffff\uffff",
]  # fmt: skip
BAD_LINES = {
    b'{"text": "\xff"}': "invalid_utf8",
    b'{"text": "a\xed\xa0\x80"}': "lone_surrogate",
    b'{"text": "a\\ud800b"}': "lone_surrogate",
    b'{"text": "x", "source": "\\udfff"}': "lone_surrogate",
    b'{"text": "cut': "not_json",
    b"[1, 2]": "not_json",
    b"[" * 100_000: "not_json",
    b"": "blank_line",
    b'{"body": "x"}': "missing_text",
    b'{"text": null}': "missing_text",
    b'{"text": 5}': "text_not_string",
    b'{"text": ""}': "empty_text",
    b'{"text": " \\n\\t\\u3000"}': "empty_text",
    b'{"text": "' + b"x" * 200_000 + b'"}': "row_too_long",
}


def run(spec: dict[str, Any]) -> tuple[Manifest, Path]:
    parsed = parse_spec(spec)
    manifest = curate(parsed)
    assert verify(parsed.output_root) == []
    return manifest, Path(parsed.output_root)


def curated(directory: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(directory.glob("curated/*.parquet")) for row in pq.read_table(path).to_pylist()]


def quarantine(directory: Path) -> list[dict[str, Any]]:
    path = directory / "quarantine.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def over(spec: dict[str, Any], folder: Path, files: dict[str, bytes], **corpus: Any) -> dict[str, Any]:
    """The spec, over these files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return spec | {"corpus": {"kind": "jsonl", "uri": f"{folder}/*"} | corpus}


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_every_row_is_published_or_quarantined_with_its_place(make_spec: MakeSpec, tmp_path: Path) -> None:
    names = ["../up", "quo\"te'", "new\nline", "é" * 300, None, ""]
    good = [
        {"text": text, "id": i % 9, "source": names[i % len(names)], "é\n../": i, "kind": None if i % 2 else [i, {}]}
        for i, text in enumerate(TEXTS)
    ]
    content = as_lines(good) + b"\n".join(BAD_LINES) + b'\n{"text": "no line end"}'
    spec = over(
        make_spec(shard_tokens=100, policy={"kind": "excess_loss", "keep": 0.5, "scope": "source"}),
        tmp_path / "rows",
        {'né "q" \n.jsonl': content, "empty.jsonl": b""},
        id_field="id", columns=["é\n../"], max_row_bytes=150_000,
    )  # fmt: skip
    manifest, directory = run(spec)
    rows = curated(directory)
    assert [row["text"] for row in rows] == [*TEXTS, "no line end"]
    assert [row["source"] for row in rows[:6]] == [name or "" for name in names]
    assert [row["é\n../"] for row in rows] == [*range(len(TEXTS)), None]
    assert rows[-1]["doc_id"] == f'né "q" \n.jsonl:{len(TEXTS) + len(BAD_LINES)}'
    assert manifest.totals.duplicate_ids == len(TEXTS) - 9
    found = quarantine(directory)
    assert [(bad["row"] - len(TEXTS), bad["reason"]) for bad in found] == list(enumerate(BAD_LINES.values()))
    assert sum(manifest.quarantined.values()) == manifest.totals.quarantined_rows == len(BAD_LINES)


def test_damaged_files_keep_their_readable_rows(make_spec: MakeSpec, tmp_path: Path, mix_rows: list[Any]) -> None:
    lines = as_lines(mix_rows[:100])
    packed, tight = gzip.compress(lines), zstandard.compress(lines)
    files = {"a.gz": packed[: len(packed) // 2], "b.zst": tight[: len(tight) // 2], "c.gz": packed, "d.gz": packed[:5]}
    spec = over(make_spec(shard_tokens=20_000), tmp_path / "packed", files)
    manifest, directory = run(spec)
    rows = curated(directory)
    assert [row["text"] for row in rows if row["doc_id"].startswith("c.gz")] == [row["text"] for row in mix_rows[:100]]
    kept = [row["text"] for row in rows if row["doc_id"].startswith("a.gz")]
    assert 10 < len(kept) < 100 and kept == [row["text"] for row in mix_rows[: len(kept)]]
    assert [(bad["file"], bad["reason"], bad["row"]) for bad in quarantine(directory)] == [
        (name, "truncated_file", None) for name in ("a.gz", "b.zst", "d.gz")
    ]
    assert all(bad["offset"] is not None for bad in quarantine(directory))
    with pytest.raises(CorpusError, match=r"'a\.gz', offset \d+: truncated_file"):
        run(spec | {"on_bad_row": "fail", "output": {"uri": str(tmp_path / "strict")}})
    with pytest.raises(CorpusError, match="truncated_file"):  # also over the tokens that the lenient run has left
        run(spec | {"on_bad_row": "fail", "output": {"uri": str(tmp_path / "b")}, "work": str(directory)})
    assert manifest.quarantined == {"truncated_file": 3}


def test_parquet_of_odd_types_and_damaged_parquet(make_spec: MakeSpec, tmp_path: Path) -> None:
    table = pa.table({
        "text": ["one two", None, "three four"],
        "when": pa.array([1, None, 3], pa.timestamp("ns", "UTC")),
        "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
        "code": pa.array(["x", "y", "x"]).dictionary_encode(),
        "raw": pa.array([b"\xff\x00", b"", None], pa.binary()),
        "big": pa.array([2**64 - 1, 0, None], pa.uint64()),
    })  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    whole = buffer.getvalue()
    files = {"a.parquet": whole, "b.parquet": whole[: len(whole) // 2], "empty.parquet": b""}
    names = table.column_names[1:]
    _, directory = run(over(make_spec(), tmp_path / "tables", files, kind="parquet", columns=names))
    (path,) = directory.glob("curated/*.parquet")
    found = pq.read_table(path)
    assert found.column("text").to_pylist() == ["one two", "three four"]
    expected = table.take([0, 2])
    for name in names:
        kind = pa.string() if name == "code" else table.schema.field(name).type
        assert found.column(name).combine_chunks().equals(expected.column(name).cast(kind).combine_chunks()), name
    assert [(bad["file"], bad["row"], bad["reason"]) for bad in quarantine(directory)] == [
        ("b.parquet", None, "truncated_file"),
        ("a.parquet", 1, "missing_text"),
    ]


def test_a_corpus_of_bad_rows_alone_gives_an_empty_dataset(make_spec: MakeSpec, tmp_path: Path) -> None:
    bad = [line for line in BAD_LINES if len(line) < 1000]
    manifest, directory = run(over(make_spec(), tmp_path / "bad", {"a.jsonl": b"\n".join(bad) + b"\n"}))
    assert manifest.totals.rows == 0 and manifest.totals.quarantined_rows == len(bad) == len(quarantine(directory))
    assert (directory / "report.html").exists()
    blank_first = b"\n" * 300 + as_lines([{"text": "after three hundred blank lines"}])
    spec = over(make_spec(output={"uri": str(tmp_path / "late")}), tmp_path / "late_rows", {"a.jsonl": blank_first})
    manifest, _ = run(spec)
    assert manifest.totals.rows == 1 and manifest.quarantined == {"blank_line": 300}


@pytest.mark.parametrize(
    ("content", "corpus", "message"),
    [
        (as_lines([{"body": "x"}] * 3), {}, r"is text_field right\?"),
        (b"plain words\n" * 50, {}, "none of 50 rows read is usable; 50 are not_json.*check kind"),
        (b"", {}, "have no rows"),
        (b"PAR1....PAR1", {}, "use kind: parquet"),
        (b"x\n", {"kind": "hub", "path": "./nowhere"}, "no folder './nowhere'"),
    ],
    ids=["text_field", "kind", "empty", "parquet", "hub"],
)
def test_a_corpus_that_the_spec_misreads_is_an_error_before_work(
    make_spec: MakeSpec, tmp_path: Path, content: bytes, corpus: dict[str, Any], message: str
) -> None:
    spec = over(make_spec(), tmp_path / "rows", {"a.jsonl": content})
    if "path" in corpus:
        spec["corpus"] = corpus
    with pytest.raises(SpecError, match=message):
        curate(parse_spec(spec))
    assert not (tmp_path / "out").exists()


def test_a_file_whose_name_looks_like_a_glob_is_that_file(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = over(make_spec(), tmp_path / "rows", {"[1].txt": b"one", "1.txt": b"another"})
    _, directory = run(spec | {"corpus": {"kind": "text", "uri": f"{tmp_path}/rows/[1].txt"}})
    assert [(row["doc_id"], row["text"]) for row in curated(directory)] == [("[1].txt", "one")]


def test_a_saved_data_set_is_read_where_it_lies(make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = [{"text": "one two", "n": 1}, {"text": "", "n": 2}, {"text": None, "n": 3}, {"text": "three", "n": 4}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    spec = make_spec() | {"corpus": {"kind": "hub", "path": str(tmp_path / "saved"), "columns": ["n"]}}
    manifest, directory = run(spec)
    assert [(row["text"], row["n"]) for row in curated(directory)] == [("one two", 1), ("three", 4)]
    assert manifest.quarantined == {"empty_text": 1, "missing_text": 1}


def test_a_document_of_ten_megabytes_is_scored_whole(make_spec: MakeSpec, tmp_path: Path) -> None:
    text = "Sphinx of black quartz, judge my vow. \x00" * 270_000
    spec = over(make_spec(policy={"kind": "loss"}), tmp_path / "rows", {"a.jsonl": as_lines([{"text": text}])})
    manifest, directory = run(spec | {"models": {"reference": {"engine": "bigram", "context": 2048}}})
    assert manifest.totals.text_bytes == len(text) > 10_000_000
    assert manifest.totals.scored_tokens == manifest.totals.tokens - 1
    assert pq.read_table(directory / "curated" / "00000.parquet").column("text")[0].as_py() == text


# ------------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize("output", ["rows", "rows/out"])
def test_an_output_that_the_corpus_would_match_is_refused(make_spec: MakeSpec, tmp_path: Path, output: str) -> None:
    spec = over(make_spec(), tmp_path / "rows", {"a.jsonl": as_lines([{"text": "one two"}])})
    spec["output"] = {"uri": str(tmp_path / output)}
    corpora = [{"kind": "text", "uri": f"{tmp_path}/rows/**"}, {"kind": "hub", "path": f"{tmp_path}/rows"}]
    for corpus in [*corpora, {"kind": "jsonl", "uri": f"{tmp_path}/{output}/*.jsonl"}][: 3 if output == "rows" else 2]:
        with pytest.raises(SpecError, match=r"output\.uri: the corpus .* would match what is written"):
            curate(parse_spec(spec | {"corpus": corpus}))
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["a.jsonl"]


def test_a_folder_that_holds_something_else_is_left_alone(make_spec: MakeSpec, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"has no plan\.json but holds README\.md"):
        curate(parse_spec(make_spec(rows=3)))
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("uri", "message"),
    [("{tmp}/corpus.jsonl/sub", "Not a directory"), ("/proc/nope", "cannot stage a file"), ("bad\0name", "NUL"),
     ("http://127.0.0.1:1/out", "cannot list"), ("nope://out", "not known: nope")],
)  # fmt: skip
def test_an_output_that_cannot_be_written_is_named(make_spec: MakeSpec, tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(CuratorError, match=message):
        curate(parse_spec(make_spec(rows=3, output={"uri": uri.format(tmp=tmp_path)})))
