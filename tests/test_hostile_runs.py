"""What users, disks and other runs do to a job: it is interrupted, crowded, moved. It resumes, or says why not."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

import curator
from curator import Manifest, curate, parse_spec, select, storage, verify
from curator.errors import CorpusError, OutputError, ShardError, SpecError, StorageError
from curator.frozen import find_plan, open_plan
from curator.job import Job
from curator.stages.tokenize import TokenizeStage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
MakeSpec = Callable[..., dict[str, Any]]
CURATOR = Path(sys.executable).with_name("curator")
LOSS = {"kind": "loss", "keep": 0.5}


def run(spec: dict[str, Any]) -> Manifest:
    return curate(parse_spec(spec))


def digests(manifest: Manifest) -> list[str]:
    return [shard.sha256 for shard in manifest.shards]


def back_to_tokens(directory: Path) -> None:
    """Undo a finished run to where only its tokens are there."""
    for name in ("manifest.json", "calibration.json", "README.md", "report.html"):
        (directory / name).unlink()
    shutil.rmtree(directory / "curated")
    for scores in directory.glob("*/scores"):
        shutil.rmtree(scores)


def token_shard(directory: Path, number: int) -> Path:
    (path,) = directory.glob(f"*/tokens/*/{number:05d}.parquet")
    return path


# ------------------------------------------------------------------------------------------------ shards that go wrong


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_shards_that_are_missing_are_made_again(make_spec: MakeSpec, tmp_path: Path, packed: bool) -> None:
    """A gzip file is read in one pass: killed in its middle, the next pass makes only what is missing."""
    spec = make_spec(rows=60, shard_tokens=30_000)
    if packed:
        spec["corpus"]["uri"] += ".gz"
        Path(spec["corpus"]["uri"]).write_bytes(gzip.compress((tmp_path / "corpus.jsonl").read_bytes()))
    finished = run(spec)
    back_to_tokens(tmp_path / "out")
    token_shard(tmp_path / "out", 1).unlink()
    token_shard(tmp_path / "out", 3).unlink()
    kept = token_shard(tmp_path / "out", 2).stat().st_mtime_ns
    assert digests(run(spec)) == digests(finished)
    assert verify(str(tmp_path / "out")) == []
    assert token_shard(tmp_path / "out", 2).stat().st_mtime_ns == kept


def test_planning_refuses_what_running_would_and_writes_nothing(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(rows=5)
    plan = find_plan(parse_spec(spec))
    assert not (tmp_path / "out").exists()
    assert open_plan(parse_spec(spec)) == plan == find_plan(parse_spec(spec))
    with pytest.raises(OutputError, match=r"policy\.keep: 0\.6 became 0\.1"):
        find_plan(parse_spec(spec | {"policy": {"kind": "excess_loss", "keep": 0.1}}))


def test_a_damaged_shard_fails_alone_or_is_left_out(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(rows=60, shard_tokens=30_000, run={"retries": 1})
    finished = run(spec)
    back_to_tokens(tmp_path / "out")
    damaged = token_shard(tmp_path / "out", 1)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(ShardError, match=r"shard 00001 \(2 attempts\).*00001\.parquet' cannot be read.*remove it"):
        run(spec)
    others = {f"{shard.number:05d}.parquet" for shard in finished.shards} - {"00001.parquet"}
    (scored,) = (tmp_path / "out").glob("*/scores/*")
    assert {path.name for path in scored.glob("*.parquet")} == others
    lenient = run(spec | {"on_bad_shard": "quarantine"})
    assert [(lost.number, lost.stage) for lost in lenient.lost_shards] == [(1, "score reference")]
    assert {shard.number for shard in lenient.shards} == {int(name[:5]) for name in others}
    assert lenient.totals.rows == 60 - finished.shards[1].rows
    assert verify(str(tmp_path / "out")) == []


def test_a_source_that_changes_during_the_run_is_an_error(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = parse_spec(make_spec(rows=20))
    plan = open_plan(spec)
    job = Job(spec, plan)
    stage = TokenizeStage(job.tokens, spec, plan)
    stage.open()
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(corpus.read_bytes()[:2000])
    with pytest.raises(CorpusError, match=r"'corpus\.jsonl' changed since the plan was frozen"):
        stage.run((plan.shards[0],), None, lambda _: None)
    corpus.unlink()
    with pytest.raises(StorageError, match=r"corpus\.jsonl"):
        stage.run((plan.shards[0],), None, lambda _: None)


# ------------------------------------------------------------------------------------------------ disks and rivals


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_space_resumes_it(make_spec: MakeSpec, small_disk: Path) -> None:
    expected = run(make_spec(rows=200, shard_tokens=30_000))
    spec = make_spec(shard_tokens=30_000, output={"uri": str(small_disk / "out")})
    with pytest.raises(StorageError, match="the disk is full; free some space and run the same command again"):
        run(spec)
    assert list(small_disk.glob("out/*/tokens/*/_receipts/*.json"))
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert digests(run(spec)) == digests(expected)
    assert verify(str(small_disk / "out")) == [] and not (small_disk / "out" / "_staging").exists()


def test_two_runs_of_one_spec_at_once_give_one_dataset(make_spec: MakeSpec, tmp_path: Path) -> None:
    expected = run(make_spec(rows=100, shard_tokens=20_000))
    spec = make_spec(shard_tokens=20_000, output={"uri": str(tmp_path / "both")}, run={"workers": 1})
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(run, [spec, spec])
    assert one == two and digests(one) == digests(expected)
    assert verify(str(tmp_path / "both")) == []


def test_clearing_leaves_alone_what_another_run_is_writing(tmp_path: Path) -> None:
    orphan = tmp_path / "_staging" / "orphan.tmp"
    with storage.staged_file(str(tmp_path)) as staged:
        orphan.write_bytes(b"left by a killed run")
        storage.clear_staging(str(tmp_path))
        assert staged.exists() and not orphan.exists()
        staged.write_bytes(b"done")
        assert storage.publish(staged, str(tmp_path / "final"))
    storage.clear_staging(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def processes_with(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append(f"{path.name} {(path / 'cmdline').read_bytes()!r}")
        except OSError:
            continue  # it ended meanwhile, or is not ours
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")
def test_an_interrupted_run_says_so_and_leaves_no_process(make_spec: MakeSpec, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(make_spec(rows=200, shard_tokens=20_000)))
    mark = uuid.uuid4().hex
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"CURATOR_MARK": mark}
    process = subprocess.Popen(
        [CURATOR, "run", tmp_path / "spec.yaml"], stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not list(tmp_path.glob("out/*/tokens/*/_receipts/*.json")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; run the same command to resume" in said
    deadline_s = time.monotonic() + 10
    while processes_with(mark) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert processes_with(mark) == []


# ------------------------------------------------------------------------------------------------ finished datasets


@pytest.fixture
def finished(make_spec: MakeSpec, tmp_path: Path) -> Path:
    run(make_spec(rows=60, shard_tokens=30_000))
    return tmp_path / "out"


def test_select_refuses_an_output_that_holds_something_else(finished: Path, tmp_path: Path) -> None:
    half = select(str(finished), LOSS, str(tmp_path / "half"))
    assert select(str(finished), LOSS, str(tmp_path / "half")) == half
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "half").rglob("*"))
    with pytest.raises(OutputError, match=r"policy\.keep: 0\.5 became 0\.4"):
        select(str(finished), LOSS | {"keep": 0.4}, str(tmp_path / "half"))
    with pytest.raises(OutputError, match="holds dataset, not weights"):
        select(str(finished), LOSS, str(tmp_path / "half"), weights_only=True)
    with pytest.raises(OutputError, match="is the dataset itself"):
        select(str(finished), LOSS, f"{finished}/")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "half").rglob("*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"holds README\.md"):
        select(str(finished), LOSS, str(tmp_path / "mine"))


def test_a_dataset_of_relative_paths_is_found_from_another_folder_and_after_a_move(
    make_spec: MakeSpec, tmp_path: Path, mix_rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus and a model too; the workers' Ray was started in yet another folder."""
    datasets.Dataset.from_list(mix_rows[:20]).save_to_disk(tmp_path / "saved")
    shutil.copytree(Path(curator.__file__).parent / "scorers" / "bigram_model", tmp_path / "model")
    models = {"reference": {"engine": "bigram", "model": "model"}}
    spec = make_spec(models=models, policy=LOSS, output={"uri": "made/out"}, work="made/work")
    spec["corpus"] = {"kind": "hub", "path": "saved"}
    monkeypatch.chdir(tmp_path)
    run(spec)
    run(spec | {"output": {"uri": "made/whole"}, "work": None})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert digests(select(f"{tmp_path}/made/out", LOSS, "half")) != []
    shutil.move(tmp_path / "made" / "whole", tmp_path / "moved")
    moved = select("../moved", LOSS, "half2")
    assert digests(moved) and verify("half2") == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def test_verify_finds_every_kind_of_tampering(finished: Path, tmp_path: Path) -> None:
    def edit_manifest(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        content["totals"]["kept_tokens"] += 1
        (folder / "manifest.json").write_text(json.dumps(content))

    tampering: dict[str, Callable[[Path], Any]] = {
        r"curated/00001.parquet: sha256": lambda folder: flip(folder / "curated/00001.parquet"),
        r"curated/00000.parquet: sha256": lambda f: swap(f / "curated/00000.parquet", f / "curated/00001.parquet"),
        r"curated/00002.parquet: cannot be read": lambda folder: (folder / "curated/00002.parquet").unlink(),
        r"curated/extra.parquet: is not in": lambda folder: (folder / "curated/extra.parquet").write_bytes(b"x"),
        r"manifest.json: totals.kept_tokens": edit_manifest,
    }
    assert verify(str(finished)) == []
    for i, (message, tamper) in enumerate(tampering.items()):
        copy = tmp_path / f"copy{i}"
        shutil.copytree(finished, copy)
        tamper(copy)
        assert any(problem.startswith(message) for problem in verify(str(copy))), (message, verify(str(copy)))


@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
@pytest.mark.parametrize("content", ["", "[1]", "{", '{"schema_version": 99}', '{"schema_version": 1, "nope": 1}'])
def test_a_damaged_record_is_named(make_spec: MakeSpec, tmp_path: Path, name: str, content: str) -> None:
    spec = parse_spec(make_spec(rows=3))
    open_plan(spec)
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises((OutputError, SpecError), match=name.replace(".", r"\.")):
        curate(spec)
