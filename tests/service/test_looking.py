"""Looking at a job over HTTP: empty before anything is published, the library's answers afterwards, never a 500."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from curator import inspection, parse_spec
from curator.frozen import open_plan
from curator.job import Job
from curator.job_directory import JobDirectory, JobRecord, new_id, now
from curator.pipeline import score, tokenize, weigh
from curator.publish import publish_dataset
from service.app import build_app, make_services
from service.settings import Settings

LOOKS = ("preview", "histograms", "errors", "funnel")
PAYLOAD = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class Here:
    """Runs the stages in this process, one task after the other."""

    def pool(self, workers: Any, tasks: int) -> "Here":
        return self

    def map(self, stage: Any, tasks: Sequence[Any], *, on_result: Callable[[Any], None], **_: Any) -> list[Any]:
        stage.open()
        for task in tasks:
            on_result(stage.run(task, stage.load(task), lambda tokens: None))
        return []


class Desk:
    """A service over a folder of its own, whose jobs nobody starts, and a key of each of two tenants."""

    def __init__(self, folder: Path) -> None:
        self.services = make_services(Settings(data_dir=folder))
        self.client = TestClient(build_app(self.services))  # not entered: no watcher runs
        self.headers = {tenant: self._key(tenant) for tenant in ("mine", "theirs")}
        self.folder = folder

    def _key(self, tenant: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.services.keys.create(tenant, 'test', ['read'])[1]}"}

    def add_job(self, lines: list[bytes] | None, kind: Any = "curate") -> str:
        """A job, with its dataset finished if there are lines."""
        job_id = new_id("job")
        directory = JobDirectory(self.folder / "jobs" / job_id)
        output = str(directory.path / "output")
        corpus = self.folder / f"{job_id}.jsonl"
        spec = {
            "name": "looked at",
            "corpus": {"kind": "jsonl", "uri": str(corpus), "source_field": "source", "id_field": "id"},
            "models": {"reference": {"engine": "bigram"}, "base": {"engine": "bigram", "model": "unigram"}},
            "policy": {"kind": "excess_loss", "keep": 0.6},
            "output": {"uri": output},
            "shard_tokens": 20_000,
        }
        record = JobRecord(
            id=job_id, kind=kind, tenant="mine", name="looked at", spec=spec, output=output, created_at=now()
        )  # fmt: skip
        directory.create(record)
        if lines is not None:
            corpus.write_bytes(b"".join(lines))
            finish(spec)
        assert self.services.discovery.discover() == [job_id]
        return job_id

    def get(self, job_id: str, what: str, tenant: str = "mine", **params: Any) -> Any:
        return self.client.get(f"/v1/jobs/{job_id}/{what}", params=params, headers=self.headers[tenant])


def finish(spec: dict[str, Any]) -> None:
    parsed = parse_spec(spec)
    job, here = Job(parsed, open_plan(parsed)), Here()
    cluster: Any = here
    tokenize(job, cluster)
    for name in parsed.models:
        score(job, cluster, name, [])
    publish_dataset(job, weigh(job, cluster, []))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def finished(desk: Desk, mix_rows: list[dict[str, str]]) -> str:
    rows = [*mix_rows[:40], {"id": PAYLOAD, "source": PAYLOAD, "text": PAYLOAD * 20}]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    return desk.add_job([*lines, b"{nope\n", b'{"id": "e", "text": " "}\n', b'{"text": "\xff"}\n'])


@pytest.fixture(scope="module")
def queued(desk: Desk) -> str:
    return desk.add_job(None)


# ------------------------------------------------------------------------------------------------ answers


def test_a_finished_job_answers_what_the_library_reads(desk: Desk, finished: str) -> None:
    job = inspection.open_job(str(desk.folder / "jobs" / finished / "output"))
    assert job is not None
    expected = {
        "preview": inspection.read_preview(job, select="kept", limit=8),
        "histograms": inspection.read_histograms(job),
        "errors": inspection.read_errors(job),
        "funnel": inspection.read_funnel(job),
    }
    for what, model in expected.items():
        answer = desk.get(finished, what)
        assert answer.status_code == 200 and answer.json() == json.loads(model.model_dump_json())
        assert answer.headers["cache-control"] == "no-store"
    assert len(expected["preview"].documents) == 8
    near = desk.get(finished, "preview", select="near", limit=2, shard=0).json()
    assert near == json.loads(inspection.read_preview(job, select="near", limit=2, shard=0).model_dump_json())
    assert {document["shard"] for document in near["documents"]} == {0}


def test_errors_are_paged_by_their_cursor(desk: Desk, finished: str) -> None:
    first = desk.get(finished, "errors", limit=2).json()
    second = desk.get(finished, "errors", limit=2, cursor=first["next_cursor"]).json()
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)
    assert [fault["reason"] for fault in first["data"] + second["data"]] == ["not_json", "empty_text", "invalid_utf8"]
    assert first["reasons"] == second["reasons"] == {"empty_text": 1, "invalid_utf8": 1, "not_json": 1}


def test_before_anything_is_published_answers_are_empty_and_valid(desk: Desk, queued: str) -> None:
    training = desk.add_job(None, "train_reference")
    for job_id in (queued, training):
        answers = {what: desk.get(job_id, what) for what in LOOKS}
        assert {answer.status_code for answer in answers.values()} == {200}
        assert answers["preview"].json()["documents"] == [] and answers["preview"].json()["note"]
        assert answers["histograms"].json()["score"] == {"edges": [], "scored": [], "kept": []}
        assert answers["errors"].json()["data"] == [] and answers["errors"].json()["has_more"] is False
        assert set(answers["funnel"].json()["documents"].values()) == {0}
        assert desk.get(job_id, "report").json()["type"] == "urn:curator:problem:no_report"
        assert desk.get(job_id, "report").status_code == 404


@pytest.mark.parametrize("content", [b"{", b'{"schema_version": 99}', b'{"schema_version": 1}', b"\xff"])
def test_a_damaged_output_is_a_problem_and_no_crash(desk: Desk, content: bytes) -> None:
    job_id = desk.add_job(None)
    output = desk.folder / "jobs" / job_id / "output"
    output.mkdir()
    (output / "plan.json").write_bytes(content)
    for what in LOOKS:
        answer = desk.get(job_id, what)
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:curator:problem:unreadable_output")


def test_a_damaged_shard_is_a_problem_and_no_crash(desk: Desk, mix_rows: list[dict[str, str]]) -> None:
    job_id = desk.add_job([json.dumps(row).encode() + b"\n" for row in mix_rows[:3]])
    (shard,) = (desk.folder / "jobs" / job_id / "output" / "curated").glob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:-100])
    answer = desk.get(job_id, "preview")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:curator:problem:unreadable_output")
    assert desk.get(job_id, "funnel").status_code == 200


# ------------------------------------------------------------------------------------------------ who and what


@pytest.mark.parametrize("what", [*LOOKS, "report"])
def test_another_tenants_job_does_not_exist(desk: Desk, finished: str, what: str) -> None:
    theirs, nobodys = desk.get(finished, what, "theirs"), desk.get("job_" + "0" * 26, what, "theirs")
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.text.replace(finished, "") == nobodys.text.replace("job_" + "0" * 26, "")
    assert desk.client.get(f"/v1/jobs/{finished}/{what}").status_code == 401


@pytest.mark.parametrize(
    ("what", "params"),
    [
        ("preview", {"select": "best"}),
        ("preview", {"limit": 0}),
        ("preview", {"limit": 51}),
        ("preview", {"shard": -1}),
        ("preview", {"shard": 10**30}),
        ("errors", {"limit": 1001}),
        ("errors", {"limit": 0}),
        ("errors", {"cursor": "1"}),
        ("errors", {"cursor": "1.2\n"}),
        ("errors", {"cursor": "../1.2"}),
    ],
)
def test_parameters_out_of_bounds_are_refused(desk: Desk, finished: str, what: str, params: dict[str, Any]) -> None:
    answer = desk.get(finished, what, **params)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:curator:problem:invalid_request")


def test_the_openapi_document_types_every_answer(desk: Desk) -> None:
    document = desk.client.app.openapi()  # type: ignore[attr-defined]
    for what, model in zip(LOOKS, ("Preview", "Histograms", "Faults", "Funnel"), strict=True):
        answer = document["paths"][f"/v1/jobs/{{job_id}}/{what}"]["get"]["responses"]["200"]
        assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/" + model)
    report = document["paths"]["/v1/jobs/{job_id}/report"]["get"]["responses"]["200"]
    assert list(report["content"]) == ["text/html"]


# ------------------------------------------------------------------------------------------------ the report


class Elements(HTMLParser):
    """Collects scripts, and what a payload from the corpus would have become."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.images = 0
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        self.images += tag == "img"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def test_a_report_may_run_its_own_script_and_nothing_else(desk: Desk, finished: str) -> None:
    answer = desk.get(finished, "report")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    (policy,) = answer.headers.get_list("content-security-policy")
    directives = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert directives["sandbox"] == "allow-scripts" and directives["default-src"] == "'none'"
    assert (directives["style-src"], directives["img-src"]) == ("'unsafe-inline'", "data:")
    elements = Elements(answer.text)
    assert "alert(1)" in answer.text and elements.images == 0  # the payload is there, as text
    (script,) = elements.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.findall(r"'(sha256-[^']+)'", directives["script-src"]) == [f"sha256-{digest}"]
    assert "unsafe" not in directives["script-src"]


def test_payloads_of_the_corpus_travel_as_json(desk: Desk, finished: str) -> None:
    answer = desk.get(finished, "preview", select="all", limit=50)
    assert (
        answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    )
    assert PAYLOAD * 20 in ["".join(document["tokens"]) for document in answer.json()["documents"]]
