"""A job whose output names the dataset of another job: to whoever reads it, that folder is an empty one."""

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curator import parse_spec, storage
from curator.errors import OutputError, StorageError
from curator.frozen import open_plan
from curator.job_directory import JobDirectory, JobRecord, new_id, now
from service.datasets import explained
from service.problems import Problem

_DESK = runpy.run_path(str(Path(__file__).with_name("desk.py")))
LOOKS = ("preview", "histograms", "errors", "funnel")
READS = (*LOOKS, "report", "manifest", "shards", "shards/0")


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    return _DESK["Desk"](tmp_path / "data")


@pytest.fixture
def hosted(desk: Any, make_spec: Callable[..., dict[str, Any]]) -> Any:
    """A finished dataset of the tenant `mine`."""
    hosted = desk.host(make_spec(rows=16, shard_tokens=20_000))
    hosted.run_until(None)
    return hosted


def add_theirs(desk: Any, spec: dict[str, Any], output: str) -> str:
    """A queued job of the tenant `theirs`."""
    job_id = new_id("job")
    record = JobRecord(
        id=job_id, kind="curate", tenant="theirs", name="n", spec=spec | {"output": {"uri": output}}, output=output,
        created_at=now(),
    )  # fmt: skip
    JobDirectory(desk.folder / "jobs" / job_id).create(record)
    assert desk.services.discovery.discover() == [job_id]
    return job_id


def content(hosted: Any) -> dict[str, Any]:
    found: dict[str, Any] = hosted.job.spec.model_dump(mode="json")
    return found


def changed(hosted: Any, what: str) -> dict[str, Any]:
    spec = content(hosted)
    if what == "policy":
        spec["policy"]["keep"] = 0.5
    elif what == "corpus":
        spec["corpus"]["uri"] = str(Path(spec["corpus"]["uri"]).with_name("elsewhere.jsonl"))
    else:
        del spec["models"]["base"]
        spec["policy"] = {"kind": "loss", "model": "reference", "keep": 0.6}
    return spec


@pytest.mark.parametrize("what", ["policy", "corpus", "models"])
def test_the_dataset_of_another_spec_is_not_there(desk: Any, hosted: Any, what: str, tmp_path: Path) -> None:
    spec = changed(hosted, what)
    theirs, empty = add_theirs(desk, spec, hosted.job.root), add_theirs(desk, spec, str(tmp_path / "empty"))
    for read in READS:
        answer, nothing = desk.get(theirs, read, "theirs"), desk.get(empty, read, "theirs")
        expected = 200 if read in (*LOOKS, "shards") else 409 if read == "manifest" else 404
        assert answer.status_code == nothing.status_code == expected, read
        assert answer.text.replace(theirs, "") == nothing.text.replace(empty, ""), read
        assert desk.get(hosted.id, read).status_code == 200, read
    assert desk.get(theirs, "shards", "theirs").json()["data"] == []


def test_the_dashboard_counts_nothing_of_it(desk: Any, hosted: Any, tmp_path: Path) -> None:
    spec = changed(hosted, "policy")
    theirs, empty = add_theirs(desk, spec, hosted.job.root), add_theirs(desk, spec, str(tmp_path / "empty"))
    key = desk.headers["theirs"]["Authorization"].removeprefix("Bearer ")
    desk.client.post("/login", data={"key": key})
    pages = [desk.client.get(f"/jobs/{job_id}") for job_id in (theirs, empty)]
    desk.client.cookies.clear()
    assert [page.status_code for page in pages] == [200, 200]
    shown, expected = (
        page.text.replace(job_id, "").replace(output, "")
        for page, job_id, output in zip(pages, (theirs, empty), (hosted.job.root, str(tmp_path / "empty")), strict=True)
    )
    assert [line for line in shown.split("\n") if "<time" not in line] == [
        line for line in expected.split("\n") if "<time" not in line
    ]


def test_how_to_work_does_not_make_it_another(desk: Any, hosted: Any) -> None:
    spec = content(hosted) | {"name": "another name", "on_bad_shard": "quarantine"}
    same = desk.add(spec | {"run": {"workers": 2}}, output=hosted.job.root)
    assert desk.get(same, "shards").json()["data"]
    assert desk.get(same, "manifest").content == desk.get(hosted.id, "manifest").content


def test_a_folder_that_is_planned_afresh_is_noticed(
    desk: Any, make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    first = desk.host(make_spec(rows=20, shard_tokens=20_000, output={"uri": str(tmp_path / "out")}))
    assert desk.get(first.id, "manifest").status_code == 200
    shutil.rmtree(first.job.root)
    assert desk.get(first.id, "manifest").status_code == 409
    open_plan(parse_spec(changed(first, "policy")))
    assert desk.get(first.id, "manifest").status_code == 409
    shutil.rmtree(first.job.root)
    open_plan(first.job.spec)
    assert desk.get(first.id, "manifest").json()["complete"] is False


# ------------------------------------------------------------------------------------------------ faults


def test_what_cannot_be_read_now_is_503_everywhere(desk: Any, hosted: Any, tmp_path: Path) -> None:
    (tmp_path / "away" / "plan.json").mkdir(parents=True)  # reading it fails, as a store that is away does
    job_id = desk.add(content(hosted), output=str(tmp_path / "away"))
    for read in READS:
        answer = desk.get(job_id, read)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:curator:problem:storage_unavailable"), read
        assert int(answer.headers["retry-after"]) > 0


def test_what_goes_away_while_it_is_read_or_is_damaged_is_409(tmp_path: Path) -> None:
    for read in (lambda: storage.read_bytes(str(tmp_path / "absent")), lambda: (tmp_path / "absent").stat()):
        with pytest.raises(Problem) as gone, explained():
            read()
        assert (gone.value.status, gone.value.code) == (409, "unreadable_output")
    bare = StorageError("damaged")
    bare.__cause__ = OSError("Corrupt snappy compressed data")  # as Arrow says it
    for error in (OutputError("damaged"), StorageError("damaged"), bare):
        with pytest.raises(Problem) as damaged, explained():
            raise error
        assert damaged.value.status == 409


def test_a_store_that_does_not_answer_is_503() -> None:
    away = StorageError("cannot read")
    for cause in (TimeoutError(), ConnectionResetError(104, "reset"), OSError(5, "input/output error")):
        away.__cause__ = cause
        with pytest.raises(Problem) as told, explained():
            raise StorageError("the shard cannot be read") from away
        assert (told.value.status, told.value.code) == (503, "storage_unavailable")
