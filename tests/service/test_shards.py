"""Manifest, list and bytes of a job's shards over HTTP: what is published, at every moment, to its tenant alone."""

import hashlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.frozen import write_plan
from curator.job import Job
from curator.job_directory import new_id
from curator.pipeline import freeze_calibration, weigh

_DESK = runpy.run_path(str(Path(__file__).with_name("desk.py")))
Desk, Here, problem = _DESK["Desk"], _DESK["Here"], _DESK["problem"]


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    return Desk(tmp_path / "data")


@pytest.fixture
def hosted(desk: Any, make_spec: Callable[..., dict[str, Any]]) -> Any:
    return desk.host(make_spec(rows=60, shard_tokens=20_000))


def test_shards_are_listed_and_fetched_while_the_job_runs(desk: Any, hosted: Any) -> None:
    assert desk.get(hosted.id, "shards").json() == {"data": [], "has_more": False, "next_cursor": None}
    hosted.run_until(2)
    listed = desk.get(hosted.id, "shards").json()
    assert [shard["number"] for shard in listed["data"]] == [0, 1] and not listed["has_more"]
    for shard in listed["data"]:
        content = hosted.path(shard["number"]).read_bytes()
        answer = desk.client.get(shard["url"], headers=desk.headers["mine"])
        assert answer.content == content and len(content) == shard["bytes"]
        assert shard["sha256"] == hashlib.sha256(content).hexdigest() == answer.headers["etag"].strip('"')
        assert shard["file"] == f"curated/{shard['number']:05d}.parquet"
        table = pq.read_table(pa.BufferReader(answer.content))
        assert (table.num_rows, shard["tokens"]) == (shard["rows"], sum(map(len, table.column("input_ids"))))
    assert problem(desk.get(hosted.id, "shards/2")) == (404, "no_shard")
    hosted.run_until(1)
    assert len(desk.get(hosted.id, "shards").json()["data"]) == 3
    assert desk.get(hosted.id, "shards/2").status_code == 200


def test_pages_cover_every_shard_once(desk: Any, hosted: Any) -> None:
    hosted.run_until(5)
    for limit in (1, 2, 4, 5, 1000):
        numbers, cursor = [], {}
        while True:
            page = desk.get(hosted.id, "shards", limit=limit, **cursor).json()
            numbers += [shard["number"] for shard in page["data"]]
            assert len(page["data"]) <= limit and page["has_more"] == (page["next_cursor"] is not None)
            if not page["has_more"]:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert numbers == [0, 1, 2, 3, 4]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"cursor": "x"}, {"cursor": -1}):
        assert problem(desk.get(hosted.id, "shards", **wrong))[0] == 422


def test_conditions_and_ranges_reach_the_shard(desk: Any, hosted: Any) -> None:
    hosted.run_until(1)
    content, url = hosted.path(0).read_bytes(), f"/v1/jobs/{hosted.id}/shards/0"
    head = desk.client.head(url, headers=desk.headers["mine"])
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(content)), b"")
    etag = head.headers["etag"]
    part = desk.get(hosted.id, "shards/0", headers={"Range": "bytes=4-99", "If-Range": etag})
    assert (part.status_code, part.content) == (206, content[4:100])
    assert desk.get(hosted.id, "shards/0", headers={"If-None-Match": etag}).status_code == 304
    assert problem(desk.get(hosted.id, "shards/0", headers={"If-Match": '"x"'})) == (412, "precondition_failed")
    beyond = desk.get(hosted.id, "shards/0", headers={"Range": "bytes=99999999-"})
    assert problem(beyond) == (416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(content)}"


def test_the_manifest_is_partial_until_it_is_the_stored_one(desk: Any, hosted: Any) -> None:
    hosted.run_until(2)
    partial = desk.get(hosted.id, "manifest")
    assert partial.json()["complete"] is False and len(partial.json()["shards"]) == 2
    assert desk.get(hosted.id, "manifest", headers={"If-None-Match": partial.headers["etag"]}).status_code == 304
    hosted.run_until(None)
    finished = desk.get(hosted.id, "manifest", headers={"If-None-Match": partial.headers["etag"]})
    assert finished.content == Path(hosted.job.root, "manifest.json").read_bytes()
    assert "complete" not in finished.json() and len(finished.json()["shards"]) == len(hosted.job.plan.shards)
    assert {shard["sha256"] for shard in finished.json()["shards"]} == {
        shard["sha256"] for shard in desk.get(hosted.id, "shards", limit=1000).json()["data"]
    }


def test_weights_alone_are_shards_too(desk: Any, hosted: Any, tmp_path: Path) -> None:
    hosted.run_until(None)
    calibration = hosted.job.read_calibration()
    assert calibration is not None
    plan = hosted.job.plan.model_copy(update={"content": "weights"})
    weights = Job(hosted.job.spec, plan, directory=str(tmp_path / "weights"))
    write_plan(weights.root, plan)
    freeze_calibration(weights, calibration)
    here = Here(2)
    weigh(weights, here, [])
    other = desk.add(hosted.job.spec.model_dump(mode="json"), output=weights.root)
    assert [s["file"] for s in desk.get(other, "shards").json()["data"]] == [
        "weights/00000.parquet", "weights/00001.parquet"
    ]  # fmt: skip
    table = pq.read_table(pa.BufferReader(desk.get(other, "shards/1").content))
    assert table.column_names == ["doc_id", "token_weights"]


def test_what_is_not_there_is_said_to_be_so(desk: Any, hosted: Any, tmp_path: Path) -> None:
    unplanned = desk.add({"name": "x"}, output=str(tmp_path / "nowhere"))
    training = desk.add({}, output=str(tmp_path / "reference"), kind="train_reference")
    for job_id, told in ((unplanned, (409, "not_planned")), (training, (404, "no_dataset"))):
        assert problem(desk.get(job_id, "manifest")) == told
        assert desk.get(job_id, "shards").json()["data"] == []
        assert problem(desk.get(job_id, "shards/0")) == (404, "no_shard")
    for number in ("-1", "100000000", "x", "1e3", "٣"):
        assert problem(desk.get(hosted.id, f"shards/{number}"))[0] == 422
    assert problem(desk.get(new_id("job"), "shards/0")) == (404, "no_job")


def test_another_tenant_sees_nothing(desk: Any, hosted: Any) -> None:
    hosted.run_until(1)
    for what in ("manifest", "shards", "shards/0"):
        assert problem(desk.get(hosted.id, what, "theirs")) == (404, "no_job")
        assert desk.client.get(f"/v1/jobs/{hosted.id}/{what}").status_code == 401
    assert desk.client.head(f"/v1/jobs/{hosted.id}/shards/0").status_code == 401


def test_damage_is_told_and_never_sent(desk: Any, hosted: Any) -> None:
    hosted.run_until(3)
    hosted.path(0).write_bytes(hosted.path(0).read_bytes()[:-1])
    changed = bytearray(hosted.path(1).read_bytes())
    changed[1000] ^= 1
    hosted.path(1).write_bytes(changed)
    for number in (0, 1):
        answer = desk.get(hosted.id, f"shards/{number}")
        assert problem(answer) == (409, "file_changed") and "remove it and resume" in answer.json()["detail"]
    hosted.path(0).unlink()
    assert problem(desk.get(hosted.id, "shards/0")) == (404, "file_gone")
    assert [shard["number"] for shard in desk.get(hosted.id, "shards").json()["data"]] == [1, 2]
    Path(hosted.job.root, hosted.job.curated.receipt_file(2)).write_text('{"number": 2}')
    for what in ("shards", "shards/2", "manifest"):
        answer = desk.get(hosted.id, what)
        assert problem(answer) == (409, "unreadable_output") and "00002.json" in answer.json()["detail"]


def test_openapi_says_what_a_shard_answers(desk: Any) -> None:
    paths = desk.client.get("/openapi.json", headers=desk.headers["mine"]).json()["paths"]
    shard = paths["/v1/jobs/{job_id}/shards/{number}"]["get"]
    assert {"200", "206", "304", "307", "404", "409", "412", "416", "503"} <= shard["responses"].keys()
    binary = {"application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}}}
    assert shard["responses"]["200"]["content"] == shard["responses"]["206"]["content"] == binary
    assert "Range" in {parameter["name"] for parameter in shard["parameters"]}
    manifest = paths["/v1/jobs/{job_id}/manifest"]["get"]["responses"]["200"]
    assert "PartialManifest" in json.dumps(manifest)
