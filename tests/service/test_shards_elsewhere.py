"""Shards that others send: a proxy in front of the service, or the object store that holds them."""

import hashlib
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest

_DESK = runpy.run_path(str(Path(__file__).with_name("desk.py")))
Desk, problem = _DESK["Desk"], _DESK["problem"]


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    return Desk(tmp_path / "data")


@pytest.fixture
def hosted(desk: Any, make_spec: Callable[..., dict[str, Any]]) -> Any:
    return desk.host(make_spec(rows=60, shard_tokens=20_000))


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
def test_shards_on_s3_are_fetched_there_or_through_the_service(desk: Any, hosted: Any, bucket: Any) -> None:
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
