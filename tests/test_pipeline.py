"""The main job end to end: real text, real Ray, the bigram engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from curator import CurationSpec, Manifest, curate, parse_spec, select, verify
from curator.errors import CorpusError, OutputError, SpecError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
MakeSpec = Callable[..., dict[str, Any]]


def run(spec: dict[str, Any]) -> tuple[Manifest, Path]:
    parsed = parse_spec(spec)
    return curate(parsed), Path(parsed.output_root)


def read_curated(directory: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(directory.glob("curated/*.parquet")) for row in pq.read_table(path).to_pylist()]


def shard_digests(manifest: Manifest) -> list[str]:
    return [entry.sha256 for entry in manifest.shards]


@pytest.fixture
def finished(make_spec: MakeSpec) -> tuple[Manifest, Path]:
    return run(make_spec())


def test_every_row_is_published_once_and_aligned(
    finished: tuple[Manifest, Path], mix_rows: list[dict[str, str]]
) -> None:
    manifest, directory = finished
    rows = read_curated(directory)
    assert len(manifest.shards) > 3
    assert [(row["doc_id"], row["source"], row["text"]) for row in rows] == [
        (row["id"], row["source"], row["text"]) for row in mix_rows[:200]
    ]
    for row in rows:
        length = len(row["input_ids"])
        assert {len(row[name]) for name in ("token_bytes", "labels", "token_weights", "logprobs_reference")} == {length}
        assert sum(row["token_bytes"]) == len(row["text"].encode())
        assert row["token_weights"][0] == 0 and np.isnan(row["logprobs_base"][0])
        expected = [i if w else -100 for i, w in zip(row["input_ids"], row["token_weights"], strict=True)]
        assert row["labels"] == expected
    assert verify(str(directory)) == []


def test_the_kept_tokens_are_those_with_the_highest_excess_loss(finished: tuple[Manifest, Path]) -> None:
    manifest, directory = finished
    rows = read_curated(directory)
    excess = np.concatenate([
        np.float32(row["logprobs_reference"]) - np.float32(row["logprobs_base"]) for row in rows
    ])  # fmt: skip
    weights = np.concatenate([row["token_weights"] for row in rows])
    scored = ~np.isnan(excess)
    assert not weights[~scored].any() and set(np.unique(weights)) == {0.0, 1.0}
    kept, dropped = excess[scored & (weights > 0)], excess[scored & (weights == 0)]
    assert np.float16(kept.min()) >= np.float16(dropped.max())
    assert abs(weights.sum() / scored.sum() - 0.6) < 0.001
    assert manifest.totals.kept_tokens == weights.sum() and manifest.totals.scored_tokens == scored.sum()


def test_standard_readers_open_the_result(finished: tuple[Manifest, Path], tmp_path: Path) -> None:
    manifest, directory = finished
    files = str(directory / "curated" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == manifest.totals.rows == 200
    card = (directory / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["configs"][0]["data_files"][0]["path"] == "curated/*.parquet"
    report = (directory / "report.html").read_text()
    assert report.startswith("<!doctype html>") and "://" not in report.split("<style")[0]


def test_one_and_two_workers_give_the_same_bytes(make_spec: MakeSpec, tmp_path: Path) -> None:
    one, _ = run(make_spec(output={"uri": str(tmp_path / "one")}, run={"workers": 1}))
    two, _ = run(make_spec(output={"uri": str(tmp_path / "two")}, run={"workers": 2}))
    assert shard_digests(one) == shard_digests(two)
    assert one.model_dump(exclude={"spec"}) == two.model_dump(exclude={"spec"})


def test_a_finished_job_returns_at_once_and_changes_nothing(make_spec: MakeSpec) -> None:
    manifest, directory = run(make_spec())
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    again, _ = run(make_spec())
    assert again == manifest
    assert before == {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def test_an_output_of_another_spec_is_refused_by_the_field_that_differs(make_spec: MakeSpec) -> None:
    run(make_spec())
    with pytest.raises(OutputError, match=r"policy\.keep: 0\.6 became 0\.5[\s\S]*curator select"):
        run(make_spec(policy={"kind": "excess_loss", "keep": 0.5}))
    with pytest.raises(OutputError, match=r"models\.base\.left_context: 512 became 100"):
        models = {
            "reference": {"engine": "bigram"},
            "base": {"engine": "bigram", "model": "unigram", "left_context": 100},
        }
        run(make_spec(models=models))


def test_a_changed_or_new_source_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    spec["corpus"]["uri"] = str(tmp_path / "*.jsonl")
    run(spec)
    (tmp_path / "new.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(CorpusError, match=r"'new\.jsonl' is new since the plan was frozen"):
        run(spec)
    (tmp_path / "new.jsonl").unlink()
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write('{"text": "x"}\n')
    with pytest.raises(CorpusError, match=r"'corpus\.jsonl' changed since the plan was frozen"):
        run(spec)


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": "loss", "keep": 0.3, "prefer": "highest", "scope": "source"},
        {"kind": "random", "keep": 0.5, "scope": "shard"},
        {"kind": "excess_loss", "keep": 0.25, "scope": "document"},
        {"kind": "keep_all"},
        {"kind": "excess_loss", "keep": 0.6, "soft": {"form": "sigmoid", "temperature": 1.0}},
    ],
    ids=lambda policy: "-".join(str(policy.get(key, "")) for key in ("kind", "scope")),
)
def test_select_gives_what_a_run_with_that_policy_gives(
    make_spec: MakeSpec, tmp_path: Path, policy: dict[str, Any]
) -> None:
    _, directory = run(make_spec())
    before = sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file())
    selected = select(str(directory), policy, str(tmp_path / "selected"))
    assert before == sorted((path, path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file())
    ran, _ = run(make_spec(policy=policy, output={"uri": str(tmp_path / "ran")}))
    assert shard_digests(selected) == shard_digests(ran)
    assert verify(str(tmp_path / "selected")) == []
    rows = read_curated(tmp_path / "selected")
    check_policy(policy, rows, selected)


def check_policy(policy: dict[str, Any], rows: list[dict[str, Any]], manifest: Manifest) -> None:
    """The promise of each policy, from the rows alone."""
    weights = [np.array(row["token_weights"]) for row in rows]
    scored = [len(w) - 1 for w in weights]
    if policy.get("soft"):
        positive = np.concatenate(weights)
        assert abs(positive[positive > 0].mean() - 1) < 1e-6
        return
    kept = [int(w.sum()) for w in weights]
    if policy["kind"] == "keep_all":
        assert kept == scored
    elif policy["scope"] == "document":
        assert kept == [round(policy["keep"] * n) for n in scored]
    else:
        keys = [row["source"] for row in rows] if policy["scope"] == "source" else shard_of_rows(manifest)
        for key in set(keys):
            members = [i for i, k in enumerate(keys) if k == key]
            share = sum(kept[i] for i in members) / sum(scored[i] for i in members)
            assert abs(share - policy["keep"]) < 0.001 + 2 / sum(scored[i] for i in members), key


def shard_of_rows(manifest: Manifest) -> list[int]:
    return [entry.number for entry in manifest.shards for _ in range(entry.rows)]


def test_weights_only_are_aligned_with_the_dataset(make_spec: MakeSpec, tmp_path: Path) -> None:
    _, directory = run(make_spec())
    weights_only = select(str(directory), {"kind": "loss", "keep": 0.5}, str(tmp_path / "w"), weights_only=True)
    full = select(str(directory), {"kind": "loss", "keep": 0.5}, str(tmp_path / "full"))
    assert weights_only.content == "weights" and not (tmp_path / "w" / "curated").exists()
    for entry in full.shards:
        whole = pq.read_table(tmp_path / "full" / entry.file, columns=["doc_id", "token_weights"])
        assert pq.read_table(tmp_path / "w" / "weights" / Path(entry.file).name).equals(whole)
    assert verify(str(tmp_path / "w")) == []


def test_select_needs_the_models_its_policy_names(make_spec: MakeSpec, tmp_path: Path) -> None:
    _, directory = run(make_spec())
    with pytest.raises(SpecError, match="needs a model named 'judge'"):
        select(str(directory), {"kind": "loss", "model": "judge"}, str(tmp_path / "x"))
    with pytest.raises(OutputError, match="holds no finished dataset"):
        select(str(tmp_path / "nothing"), {"kind": "loss"}, str(tmp_path / "x"))
    with pytest.raises(OutputError, match="is the dataset itself"):
        select(str(directory), {"kind": "loss"}, str(directory))


def test_two_outputs_share_one_work_folder(make_spec: MakeSpec, tmp_path: Path) -> None:
    work = str(tmp_path / "work")
    run(make_spec(work=work, output={"uri": str(tmp_path / "a")}))
    scores = {path: path.stat().st_mtime_ns for path in Path(work).rglob("*.parquet")}
    run(make_spec(work=work, output={"uri": str(tmp_path / "b")}, policy={"kind": "loss", "keep": 0.5}))
    assert scores == {path: path.stat().st_mtime_ns for path in Path(work).rglob("*.parquet")}


def test_bad_rows_are_quarantined_with_file_row_and_reason(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(rows=20)
    corpus = tmp_path / "corpus.jsonl"
    good = corpus.read_bytes().splitlines(keepends=True)
    bad = [b'{"text": "\xff"}\n', b"{nope\n", b'{"id": "e", "text": "  "}\n', b'{"id": "s", "text": "a\\ud800"}\n']
    corpus.write_bytes(b"".join(good[:5] + bad + good[5:]))
    manifest, directory = run(spec)
    lines = [json.loads(line) for line in (directory / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["file"], line["row"], line["reason"]) for line in lines] == [
        ("corpus.jsonl", 5, "invalid_utf8"),
        ("corpus.jsonl", 6, "not_json"),
        ("corpus.jsonl", 7, "empty_text"),
        ("corpus.jsonl", 8, "lone_surrogate"),
    ]
    assert manifest.totals.quarantined_rows == 4 and sum(manifest.quarantined.values()) == 4
    assert manifest.totals.rows == 20
    with pytest.raises(CorpusError, match=r"'corpus\.jsonl', row 5: invalid_utf8"):
        run(spec | {"on_bad_row": "fail", "output": {"uri": str(tmp_path / "strict")}})


def test_duplicate_ids_are_kept_and_counted_and_null_ids_are_made(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(rows=3)
    rows = [{"id": "a", "text": "one two"}, {"id": "a", "text": "three"}, {"id": None, "text": "four"}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest, directory = run(spec)
    assert [row["doc_id"] for row in read_curated(directory)] == ["a", "a", "corpus.jsonl:2"]
    assert [row["source"] for row in read_curated(directory)] == ["", "", ""]
    assert manifest.totals.duplicate_ids == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": {"kind": "jsonl", "uri": "nowhere/*.jsonl"}}, r"corpus: .*nowhere/\*\.jsonl"),
        ({"corpus": {"kind": "jsonl", "uri": "memory://x/*.jsonl"}}, "corpus: "),
        ({"output": {"uri": "memory://out"}}, "lives in one process and workers cannot read it"),
        ({"models": {"reference": {"engine": "transformers", "model": "{tmp}"}}, "policy": {"kind": "loss"}},
         r"models\.reference: "),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_work_starts(
    make_spec: MakeSpec, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    spec = json.loads(json.dumps(make_spec(rows=3) | changes).replace("{tmp}", str(tmp_path)))
    with pytest.raises(SpecError, match=message):
        curate(CurationSpec.model_validate(spec))
    assert not (tmp_path / "out").exists()
