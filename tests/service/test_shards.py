"""Manifest, list and bytes of a job's shards over HTTP: what is published, at every moment, to its tenant alone."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from curator import parse_spec
from curator.frozen import open_plan, write_plan
from curator.job import Job
from curator.job_directory import JobDirectory, JobRecord, new_id, now
from curator.pipeline import freeze_calibration, score, tokenize, weigh
from curator.publish import publish_dataset
from curator.stages.select import SelectStage
from service.app import build_app, make_services
from service.settings import Settings


class Here:
    """Runs the stages in this process, one task after the other; the last one for at most `limit` shards."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def pool(self, workers: Any, tasks: int) -> "Here":
        return self

    def map(self, stage: Any, tasks: Sequence[Any], *, on_result: Callable[[Any], None], **_: Any) -> list[Any]:
        stage.open()
        for task in tasks[: self.limit] if isinstance(stage, SelectStage) else tasks:
            on_result(stage.run(task, stage.load(task), lambda tokens: None))
        return []


class Hosted(NamedTuple):
    """A job as the service knows it, and as the library does."""

    id: str
    job: Job

    def run_until(self, shards: int | None) -> None:
        """Publish up to so many more shards; None finishes the dataset."""
        here: Any = Here(shards)
        tokenize(self.job, here)
        for name in self.job.spec.models:
            score(self.job, here, name, [])
        calibration = weigh(self.job, here, [])
        if shards is None:
            publish_dataset(self.job, calibration)

    def path(self, number: int) -> Path:
        return Path(self.job.curated.uri(number))


class Desk:
    """A service whose jobs nobody starts, and a key of each of two tenants."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.services = make_services(Settings(data_dir=folder, **settings))
        self.client = TestClient(build_app(self.services), follow_redirects=False)  # not entered: no watcher runs
        self.folder = folder
        self.headers = {
            tenant: {"Authorization": f"Bearer {self.services.keys.create(tenant, 'test', ['read'])[1]}"}
            for tenant in ("mine", "theirs")
        }

    def add(self, spec: dict[str, Any], output: str | None = None, kind: Any = "curate") -> str:
        job_id = new_id("job")
        directory = JobDirectory(self.folder / "jobs" / job_id)
        directory.create(
            JobRecord(
                id=job_id, kind=kind, tenant="mine", name="test", spec=spec,
                output=output or spec["output"]["uri"], created_at=now(),
            )
        )  # fmt: skip
        assert self.services.discovery.discover() == [job_id]
        return job_id

    def host(self, spec: dict[str, Any]) -> Hosted:
        parsed = parse_spec(spec)
        return Hosted(self.add(spec), Job(parsed, open_plan(parsed)))

    def get(self, job_id: str, what: str, tenant: str = "mine", headers: dict[str, str] | None = None, **params: Any) -> httpx.Response:  # fmt: skip # noqa: E501
        return self.client.get(  # type: ignore[no-any-return]
            f"/v1/jobs/{job_id}/{what}", params=params, headers=self.headers[tenant] | (headers or {})
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "data")


@pytest.fixture
def hosted(desk: Desk, make_spec: Callable[..., dict[str, Any]]) -> Hosted:
    return desk.host(make_spec(rows=60, shard_tokens=20_000))


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].removeprefix("urn:curator:problem:")


def test_shards_are_listed_and_fetched_while_the_job_runs(desk: Desk, hosted: Hosted) -> None:
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


def test_pages_cover_every_shard_once(desk: Desk, hosted: Hosted) -> None:
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


def test_conditions_and_ranges_reach_the_shard(desk: Desk, hosted: Hosted) -> None:
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


def test_the_manifest_is_partial_until_it_is_the_stored_one(desk: Desk, hosted: Hosted) -> None:
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


def test_weights_alone_are_shards_too(desk: Desk, hosted: Hosted, tmp_path: Path) -> None:
    hosted.run_until(None)
    calibration = hosted.job.read_calibration()
    assert calibration is not None
    plan = hosted.job.plan.model_copy(update={"content": "weights"})
    weights = Job(hosted.job.spec, plan, directory=str(tmp_path / "weights"))
    write_plan(weights.root, plan)
    freeze_calibration(weights, calibration)
    here: Any = Here(2)
    weigh(weights, here, [])
    other = desk.add(hosted.job.spec.model_dump(mode="json"), output=weights.root)
    assert [s["file"] for s in desk.get(other, "shards").json()["data"]] == [
        "weights/00000.parquet", "weights/00001.parquet"
    ]  # fmt: skip
    table = pq.read_table(pa.BufferReader(desk.get(other, "shards/1").content))
    assert table.column_names == ["doc_id", "token_weights"]


def test_what_is_not_there_is_said_to_be_so(desk: Desk, hosted: Hosted, tmp_path: Path) -> None:
    unplanned = desk.add({"name": "x"}, output=str(tmp_path / "nowhere"))
    training = desk.add({}, output=str(tmp_path / "reference"), kind="train_reference")
    for job_id, told in ((unplanned, (409, "not_planned")), (training, (404, "no_dataset"))):
        assert problem(desk.get(job_id, "manifest")) == told
        assert desk.get(job_id, "shards").json()["data"] == []
        assert problem(desk.get(job_id, "shards/0")) == (404, "no_shard")
    for number in ("-1", "100000000", "x", "1e3", "٣"):
        assert problem(desk.get(hosted.id, f"shards/{number}"))[0] == 422
    assert problem(desk.get(new_id("job"), "shards/0")) == (404, "no_job")


def test_another_tenant_sees_nothing(desk: Desk, hosted: Hosted) -> None:
    hosted.run_until(1)
    for what in ("manifest", "shards", "shards/0"):
        assert problem(desk.get(hosted.id, what, "theirs")) == (404, "no_job")
        assert desk.client.get(f"/v1/jobs/{hosted.id}/{what}").status_code == 401
    assert desk.client.head(f"/v1/jobs/{hosted.id}/shards/0").status_code == 401


def test_damage_is_told_and_never_sent(desk: Desk, hosted: Hosted) -> None:
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


def test_a_proxy_is_told_which_file_to_send(tmp_path: Path, make_spec: Callable[..., dict[str, Any]]) -> None:
    desk = Desk(tmp_path / "data", x_accel_prefix="/protected")
    inside = desk.host(make_spec(rows=40, shard_tokens=20_000, output={"uri": str(tmp_path / "data/jobs/x/output")}))
    outside = desk.host(make_spec(rows=40, shard_tokens=20_000, output={"uri": str(tmp_path / "elsewhere")}))
    for hosted in (inside, outside):
        hosted.run_until(1)
    told = desk.get(inside.id, "shards/0")
    assert told.headers["x-accel-redirect"] == "/protected/jobs/x/output/curated/00000.parquet"
    assert told.content == b"" and told.headers["etag"]
    streamed = desk.get(outside.id, "shards/0")
    assert "x-accel-redirect" not in streamed.headers and streamed.content == outside.path(0).read_bytes()


def test_openapi_says_what_a_shard_answers(desk: Desk) -> None:
    paths = desk.client.get("/openapi.json", headers=desk.headers["mine"]).json()["paths"]
    shard = paths["/v1/jobs/{job_id}/shards/{number}"]["get"]
    assert {"200", "206", "304", "307", "404", "409", "412", "416", "503"} <= shard["responses"].keys()
    binary = {"application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}}}
    assert shard["responses"]["200"]["content"] == shard["responses"]["206"]["content"] == binary
    assert "Range" in {parameter["name"] for parameter in shard["parameters"]}
    manifest = paths["/v1/jobs/{job_id}/manifest"]["get"]["responses"]["200"]
    assert "PartialManifest" in json.dumps(manifest)


# ------------------------------------------------------------------------------------------------ object stores


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket on a real S3 server, for this process too."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (names | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}).items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # these remember another server
    files = fsspec.filesystem("s3", use_listings_cache=False)
    files.mkdirs("s3://of-shards", exist_ok=True)
    yield files
    S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.slow
def test_shards_on_s3_are_fetched_there_or_through_the_service(desk: Desk, hosted: Hosted, bucket: Any) -> None:
    hosted.run_until(2)
    bucket.put(hosted.job.root + "/", "s3://of-shards/out/", recursive=True)
    job_id = desk.add(hosted.job.spec.model_dump(mode="json"), output="s3://of-shards/out")
    content = hosted.path(1).read_bytes()

    listed = desk.get(job_id, "shards").json()["data"]
    assert listed[1]["sha256"] == hashlib.sha256(content).hexdigest()
    assert desk.get(job_id, "manifest").json()["complete"] is False

    referred = desk.get(job_id, "shards/1")
    assert referred.status_code == 307 and "Signature" in referred.headers["location"]
    there = httpx.get(referred.headers["location"])
    assert (there.status_code, there.content) == (200, content)
    assert there.headers["content-disposition"] == 'attachment; filename="00001.parquet"'
    rest = httpx.get(referred.headers["location"], headers={"Range": "bytes=100-"})
    assert (rest.status_code, rest.content) == (206, content[100:])

    here = desk.get(job_id, "shards/1", redirect=False)
    assert (here.status_code, here.content) == (200, content)
    part = desk.get(
        job_id, "shards/1", redirect=False, headers={"Range": "bytes=-50", "If-Range": here.headers["etag"]}
    )
    assert (part.status_code, part.content) == (206, content[-50:])
    assert desk.get(job_id, "shards/1", headers={"If-None-Match": here.headers["etag"]}).status_code == 304
    head = desk.client.head(f"/v1/jobs/{job_id}/shards/1", headers=desk.headers["mine"])
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(content)))

    bucket.pipe_file("s3://of-shards/out/curated/00001.parquet", content[:-1])
    assert problem(desk.get(job_id, "shards/1")) == (409, "file_changed")
    bucket.rm_file("s3://of-shards/out/curated/00001.parquet")
    assert problem(desk.get(job_id, "shards/1", redirect=False)) == (404, "file_gone")
    assert [shard["number"] for shard in desk.get(job_id, "shards").json()["data"]] == [0]
