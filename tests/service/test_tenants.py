"""Two tenants on one service: neither sees, guesses or moves anything of the other's.

The tenants' names begin alike, so that a comparison by prefix would be noticed. Whatever has an id answers for the
other tenant's exactly as for one that does not exist, through every operation of the OpenAPI document.
"""

import json
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

_OPERATIONS = runpy.run_path(str(Path(__file__).with_name("operations.py")))
ABSENT = _OPERATIONS["ABSENT"]
JobSpec = Callable[..., dict[str, Any]]
VARYING = ("date", "content-length", "link", "x-request-id")


@dataclass
class Sides:
    """A tenant with a finished job, a cancelled one and an upload; and another that has nothing."""

    service: Any
    owner: httpx.Client
    other: httpx.Client
    job_id: str
    cancelled_id: str
    upload: dict[str, Any]

    @property
    def ids(self) -> dict[str, str]:
        """The owner's ids, as path parameters."""
        return {"job_id": self.job_id, "upload_id": self.upload["id"], "number": "0"}


@pytest.fixture(scope="module")
def sides(shared: Any, job_spec: JobSpec) -> Iterator[Sides]:
    """Both on one service; the other tenant's key has every scope, which is the hardest case."""
    owners, others = shared.new_key("alpha"), shared.new_key("alphabet", "read", "write", "admin")
    finished = shared.submit(job_spec(name="secret-name"), owners, **{"Idempotency-Key": "k-1"})
    with shared.client(owners) as owner, shared.client(others) as other:
        upload = owner.post("/v1/uploads", params={"filename": "secret.jsonl"}, content=b'{"text": "secret"}\n').json()
        shared.wait(finished["id"], "completed", key=owners)
        cancelled = owner.post("/v1/jobs", json=job_spec(name="secret-name")).json()
        owner.post(f"/v1/jobs/{cancelled['id']}/cancel")
        shared.wait(cancelled["id"], "cancelled", key=owners)
        yield Sides(shared, owner, other, finished["id"], cancelled["id"], upload)


def told(answer: httpx.Response, *ids: str) -> tuple[Any, ...]:
    """All of an answer but the ids that were asked for."""
    text = answer.text
    for found in ids:
        text = text.replace(found, "ID")
    headers = {name: value for name, value in answer.headers.items() if name not in VARYING}
    return answer.status_code, headers, text


def look(sides: Sides) -> str:
    """Everything that the owner can see of what it has."""
    found: list[Any] = [sides.owner.get(url).json() for url in ("/v1/jobs", "/v1/uploads")]
    for job_id in (sides.job_id, sides.cancelled_id):
        parts = ("", "/events", "/logs", "/manifest", "/shards", "/preview", "/histograms", "/funnel", "/errors")
        found += [sides.owner.get(f"/v1/jobs/{job_id}{part}").json() for part in parts]
    shard = sides.owner.get(f"/v1/jobs/{sides.job_id}/shards/0")
    return json.dumps([*found, shard.headers["etag"], len(shard.content)])


# ------------------------------------------------------------------------------------------------ by an id


def test_the_others_ids_are_like_ids_that_do_not_exist(sides: Sides) -> None:
    found = _OPERATIONS["operations"](sides.other.get("/openapi.json").json())
    with_id = [operation for operation in found if "{" in operation.path and not operation.admin]
    assert len(with_id) >= 16
    before, seen = look(sides), 0
    for operation in with_id:
        for job_id in (sides.job_id, sides.cancelled_id):
            theirs = sides.other.request(operation.method, operation.url(sides.ids | {"job_id": job_id}))
            absent = sides.other.request(operation.method, operation.url())
            known = (job_id, sides.upload["id"], ABSENT["job_id"], ABSENT["upload_id"])
            assert told(theirs, *known) == told(absent, *known), operation
            assert theirs.status_code == 404, operation
            assert theirs.json()["type"] in ("urn:curator:problem:no_job", "urn:curator:problem:no_upload")
            assert "secret" not in theirs.text
            seen += 1
    assert seen == 2 * len(with_id)
    assert look(sides) == before


def test_conditions_that_fit_the_others_answer_no_better(sides: Sides) -> None:
    url = f"/v1/jobs/{sides.job_id}"
    job, shard = sides.owner.get(url).headers["etag"], sides.owner.get(f"{url}/shards/0").headers["etag"]
    manifest = sides.owner.get(f"{url}/manifest").headers["etag"]
    asked: list[tuple[str, str, dict[str, str]]] = [
        ("GET", "", {"If-None-Match": job}), ("GET", "?wait=20", {"If-None-Match": job}), ("GET", "?wait=20", {}),
        ("GET", "/manifest", {"If-None-Match": manifest}), ("GET", "/shards/0", {"If-None-Match": shard}),
        ("GET", "/shards/0", {"If-Match": shard}), ("GET", "/shards/0", {"Range": "bytes=0-9"}),
        ("GET", "/shards/0", {"Range": "bytes=0-9", "If-Range": shard}), ("HEAD", "/shards/0", {}),
        ("GET", "/shards/0?redirect=false", {}), ("GET", "/shards/99999999", {}),
        ("GET", "/events", {"Accept": "text/event-stream"}), ("GET", "/logs", {"Accept": "text/event-stream"}),
        ("GET", "/events", {"Accept": "text/event-stream", "Last-Event-ID": "1"}), ("GET", "/logs?after=100000", {}),
    ]  # fmt: skip
    for method, rest, headers in asked:
        theirs = sides.other.request(method, url + rest, headers=headers, timeout=5)
        absent = sides.other.request(method, f"/v1/jobs/{ABSENT['job_id']}{rest}", headers=headers, timeout=5)
        assert theirs.status_code == 404, (method, rest, headers)
        assert told(theirs, sides.job_id) == told(absent, ABSENT["job_id"]), (method, rest, headers)


def test_pages_know_the_others_jobs_as_little(sides: Sides) -> None:
    key = sides.service.new_key("alphabet")
    with httpx.Client(base_url=sides.service.url, headers={"Accept": "text/html"}) as browser:
        browser.post("/login", data={"key": key})
        for rest in ("", "/tokens"):
            theirs, absent = (browser.get(f"/jobs/{job_id}{rest}") for job_id in (sides.job_id, ABSENT["job_id"]))
            assert theirs.status_code == absent.status_code == 404
            assert theirs.text.replace(sides.job_id, "ID") == absent.text.replace(ABSENT["job_id"], "ID")
        for query in ("", "?name=secret", "?before=z", "?status=completed"):
            page = browser.get(f"/{query}").text
            assert sides.job_id not in page and sides.cancelled_id not in page and "secret-name" not in page


# ------------------------------------------------------------------------------------------------ in lists


def test_lists_hold_ones_own_alone(sides: Sides) -> None:
    queries: list[dict[str, Any]] = [
        {}, {"name": "secret"}, {"status": "completed"}, {"kind": "curate"}, {"limit": 1},
        {"cursor": sides.cancelled_id}, {"cursor": "job_zzzzzzzzzzzzzzzzzzzzzzzzzz"}, {"name": "%"}, {"name": "_"},
    ]  # fmt: skip
    for query in queries:
        assert sides.other.get("/v1/jobs", params=query).json() == {"data": [], "has_more": False, "next_cursor": None}
    for query in ({}, {"cursor": sides.upload["id"]}, {"cursor": "upl_zzzzzzzzzzzzzzzzzzzzzzzzzz"}):
        found = sides.other.get("/v1/uploads", params=query).json()
        assert found == {"data": [], "has_more": False, "next_cursor": None}
    assert {job["id"] for job in sides.owner.get("/v1/jobs").json()["data"]} == {sides.job_id, sides.cancelled_id}


def test_figures_name_nobody(sides: Sides) -> None:
    figures = sides.other.get("/metrics").text
    assert 'jobs{state="completed"}' in figures
    assert not any(word in figures for word in (sides.job_id, sides.upload["id"], "alpha", "secret"))


# ------------------------------------------------------------------------------------------------ in a spec


def test_a_spec_cannot_name_what_is_the_others(sides: Sides, job_spec: JobSpec, tmp_path: Path) -> None:
    data = sides.service.data_dir
    link = data.parent / "innocent"  # the root that both may use
    link.symlink_to(data / "jobs" / sides.job_id / "output")
    folder, upload = f"{data}/jobs/{sides.job_id}", sides.upload
    file = next((data / "uploads").glob("*/*/secret.jsonl"))
    places = [
        f"{folder}/output/curated/*.parquet", f"{folder}/output/curated/00000.parquet", f"{folder}/job.json",
        f"{data}/jobs/*/output/curated/*.parquet", f"{data}/jobs/job_*/job.json", f"{link}/curated/*.parquet",
        f"{data.parent}/data/jobs/../jobs/{sides.job_id}/job.json", f"file://{folder}/job.json", str(file),
        f"{data}/uploads/*/*/*.jsonl", f"{data}/uploads/alpha/{upload['id']}/secret.jsonl", upload["uri"],
        f"{data}/service.db", f"{data.parent}/*/jobs/*/job.json", f"{data.parent}/**",
    ]  # fmt: skip
    for place in places:
        wrong = {"corpus": {"kind": "jsonl", "uri": place}}
        refused(sides, job_spec(**wrong))
    writes: list[dict[str, Any]] = [
        {"output": {"kind": "parquet", "uri": f"{folder}/output"}}, {"work": f"{folder}/output"}, {"work": str(link)},
        {"output": {"kind": "parquet", "uri": f"{link}/x"}}, {"output": {"kind": "parquet", "uri": f"{data}/jobs/x"}},
        {"models": {"reference": {"engine": "bigram", "model": folder}, "base": {"engine": "bigram"}}},
        {"tokens": {"tokenizer": f"{folder}/tokenizer.json"}},
    ]  # fmt: skip
    for wrong in writes:
        refused(sides, job_spec(**wrong))


def refused(sides: Sides, spec: dict[str, Any]) -> None:
    """The other tenant's spec is refused, in the words that it would meet if there were no such job or upload."""
    text = json.dumps(spec)
    known = (sides.job_id, sides.upload["id"])
    absent = text.replace(known[0], ABSENT["job_id"]).replace(known[1], ABSENT["upload_id"])
    for url in ("/v1/jobs", "/v1/jobs:validate", "/v1/jobs:validate?plan=false"):
        theirs, nothing = sides.other.post(url, content=text), sides.other.post(url, content=absent)
        assert theirs.status_code == 403, (spec, theirs.text)
        if "innocent" not in text:  # a link has no twin that leads to nothing
            assert told(theirs, *known) == told(nothing, ABSENT["job_id"], ABSENT["upload_id"]), spec
    assert sides.other.get("/v1/jobs").json()["data"] == []


def test_what_is_ones_own_can_be_named(sides: Sides, job_spec: JobSpec) -> None:
    own = f"{sides.service.data_dir}/jobs/{sides.job_id}/output/curated/*.parquet"
    for uri, kind in ((own, "parquet"), (sides.upload["uri"], "jsonl")):
        spec = job_spec(corpus={"kind": kind, "uri": uri})
        assert sides.owner.post("/v1/jobs:validate?plan=false", json=spec).status_code == 200
        assert sides.other.post("/v1/jobs:validate?plan=false", json=spec).status_code == 403


# ------------------------------------------------------------------------------------------------ by influence


def test_idempotency_keys_of_two_tenants_are_two_keys(start: Callable[..., Any], job_spec: JobSpec) -> None:
    service = start(CURATOR_MAX_RUNNING_JOBS="0")
    with service.client(service.new_key("alpha")) as first, service.client(service.new_key("alphabet")) as second:
        headers = {"Idempotency-Key": "the-same"}
        mine = first.post("/v1/jobs", json=job_spec(), headers=headers)
        again = first.post("/v1/jobs", json=job_spec(), headers=headers)
        assert again.headers["idempotency-replayed"] == "true" and again.json()["id"] == mine.json()["id"]
        other = second.post("/v1/jobs", json=job_spec(name="another"), headers=headers)  # another body: no 422
        assert other.status_code == 202 and "idempotency-replayed" not in other.headers
        assert other.json()["id"] != mine.json()["id"] and other.json()["name"] == "another"
        assert first.post("/v1/jobs", json=job_spec(name="another"), headers=headers).status_code == 422
        assert second.post("/v1/jobs", json=job_spec(name="another"), headers=headers).json() == other.json()


def test_one_tenant_uses_up_only_its_own_share(start: Callable[..., Any], job_spec: JobSpec) -> None:
    service = start(
        CURATOR_MAX_RUNNING_JOBS="0", CURATOR_TENANT_QUEUED_JOBS="2", CURATOR_UPLOAD_QUOTA_BYTES="1000"
    )  # fmt: skip
    with service.client(service.new_key("alpha")) as first, service.client(service.new_key("alphabet")) as second:
        assert [first.post("/v1/jobs", json=job_spec()).status_code for _ in range(3)] == [202, 202, 429]
        assert second.post("/v1/jobs", json=job_spec()).status_code == 202
        upload = {"params": {"filename": "a.jsonl"}, "content": b"x" * 800}
        assert [first.post("/v1/uploads", **upload).status_code for _ in range(2)] == [201, 413]  # type: ignore[arg-type]
        mine = second.post("/v1/uploads", **upload)  # type: ignore[arg-type]
        assert mine.status_code == 201
        assert second.delete(f"/v1/uploads/{mine.json()['id']}").status_code == 204
        assert len(first.get("/v1/uploads").json()["data"]) == 1
