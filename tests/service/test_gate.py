"""What every request passes: the way to /login, HEAD, ids of no form, and a database that does not answer."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from curator.job_directory import JobDirectory, JobRecord, new_id, now
from curator.logs import JsonLines
from service.app import build_app, make_services
from service.database import writing
from service.settings import Settings

OPEN_STREAM = {"Accept": "text/event-stream"}


class Office:
    """A service that starts no job, and an admin's client of it."""

    def __init__(self, folder: Path) -> None:
        self.services = make_services(Settings(data_dir=folder))
        app = build_app(self.services)
        key = self.services.keys.create("mine", "test", ["read", "write", "admin"])[1]
        self.anonymous = TestClient(app, follow_redirects=False)  # not entered: no watcher runs
        self.client = TestClient(app, follow_redirects=False, headers={"Authorization": f"Bearer {key}"})

    def add(self) -> tuple[str, JobDirectory]:
        """A job that waits."""
        job_id = new_id("job")
        directory = JobDirectory(self.services.settings.jobs_dir / job_id)
        record = JobRecord(
            id=job_id, kind="curate", tenant="mine", name="test", spec={}, output="/nowhere", created_at=now()
        )  # fmt: skip
        directory.create(record)
        with writing(self.services.store.engine) as connection:
            self.services.store.insert(connection, record)
        return job_id, directory

    def cancel(self, job_id: str) -> None:
        """End it in the database alone, as happens a moment before its event is written."""
        job = self.services.store.job(job_id)
        assert job is not None and self.services.store.move(job, "cancelled")


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path / "data")


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].removeprefix("urn:curator:problem:")


# ------------------------------------------------------------------------------------------------ who asks


@pytest.mark.parametrize("accept", ["text/html", "*/*", "application/json"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_pages_lead_to_the_login_whatever_is_accepted(office: Office, method: str, accept: str) -> None:
    for path in ("/", "/keys", "/jobs/x", "/jobs/x/tokens?a=b"):
        answer = office.anonymous.request(method, path, headers={"Accept": accept})
        assert answer.status_code == 303, path
        assert httpx.URL(answer.headers["location"]).params["next"] == path
    for path in ("/v1/jobs", "/metrics", "/openapi.json", "/nothing", "/jobs", "/jobs/x/y", "/spec"):
        assert office.anonymous.request(method, path, headers={"Accept": accept}).status_code == 401, path


def test_a_database_that_fails_is_told_as_unavailable(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    with writing(office.services.store.engine) as connection:
        connection.execute(sa.text("ALTER TABLE jobs RENAME TO gone"))
    listed = office.client.get("/v1/jobs")
    assert problem(listed) == (503, "unavailable") and listed.headers["retry-after"] == "1"
    told = "the database does not answer at GET /v1/jobs: OperationalError: no such table: jobs"
    assert [JsonLines().format(record) for record in caplog.records if told in JsonLines().format(record)]
    with writing(office.services.store.engine) as connection:
        connection.execute(sa.text("ALTER TABLE keys RENAME TO keys_gone"))
    refused = office.client.get("/v1/jobs")  # fails at asking who this is
    assert problem(refused) == (503, "unavailable") and "SELECT" not in refused.text
    assert office.client.head("/v1/jobs").status_code == 503


# ------------------------------------------------------------------------------------------------ HEAD, ids


def test_head_answers_like_get_without_a_body(office: Office) -> None:
    job_id, _ = office.add()
    for path in ("/livez", "/login", "/static/base.css", "/v1/me", "/v1/jobs", f"/v1/jobs/{job_id}", "/openapi.json"):
        named = {"X-Request-Id": "one"}  # else each gets an id of its own
        got, head = office.client.get(path, headers=named), office.client.head(path, headers=named)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers == got.headers, path
    assert office.client.head(f"/v1/jobs/job_{'0' * 26}").status_code == 404
    assert office.client.head("/v1/jobs:validate").status_code == 405


def test_head_of_a_stream_without_end_ends(office: Office) -> None:
    job_id, _ = office.add()
    head = office.client.head(f"/v1/jobs/{job_id}/events", headers=OPEN_STREAM)
    assert head.status_code == 200 and head.headers["content-type"].startswith("text/event-stream")
    assert head.content == b""


@pytest.mark.parametrize("job_id", ["nope", "job_x", "job_" + "0" * 27, "job_" + "u" * 26, "job_" + "0" * 26 + "%00"])
def test_what_is_no_id_is_not_found(office: Office, job_id: str) -> None:
    for method, path in (
        ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/resume"), ("GET", "/events"), ("GET", "/logs"),
        ("GET", "/shards"), ("GET", "/manifest"),
    ):  # fmt: skip
        assert problem(office.client.request(method, f"/v1/jobs/{job_id}{path}")) == (404, "no_job"), path
    assert problem(office.client.delete("/v1/keys/NOPE")) == (404, "no_key")


def test_the_document_still_says_what_an_id_looks_like(office: Office) -> None:
    paths = office.client.get("/openapi.json").json()["paths"]
    for path, pattern in (
        ("/v1/jobs/{job_id}", r"^job_[0-9a-hjkmnp-tv-z]{26}$"),
        ("/v1/keys/{key_id}", "^[a-z2-7]{8}$"),
    ):
        for operation in paths[path].values():
            assert operation["parameters"][0]["schema"]["pattern"] == pattern


# ------------------------------------------------------------------------------------------------ small things


def test_a_key_needs_no_name_and_no_scopes(office: Office) -> None:
    made = office.client.post("/v1/keys", json={"tenant": "theirs"}).json()
    assert (made["name"], made["scopes"]) == ("key", ["read", "write"])


def test_any_version_is_named_by_a_star(office: Office) -> None:
    job_id, _ = office.add()
    answer = office.client.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": "*"})
    assert (answer.status_code, answer.content) == (304, b"")


def test_a_long_wait_is_a_minutes_wait(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routes.jobs._LONGEST_WAIT_S", 0.2)
    job_id, _ = office.add()
    began_s = time.monotonic()
    assert office.client.get(f"/v1/jobs/{job_id}", params={"wait": 120}).status_code == 200
    assert 0.2 <= time.monotonic() - began_s < 5
    assert office.client.get(f"/v1/jobs/{job_id}", params={"wait": 3601}).status_code == 422


def test_a_spec_that_is_too_large_is_refused(office: Office) -> None:
    for size in (1 << 20, 3 << 20):
        body = b'{"name": "' + b"x" * size + b'"}'
        assert office.client.post("/v1/jobs", content=body).status_code == 413


# ------------------------------------------------------------------------------------------------ events and logs


def stream(office: Office, job_id: str, part: str, after: int = 0) -> httpx.Response:
    """A stream to its end; its text is the data of its events, one a line."""
    answer = office.client.get(f"/v1/jobs/{job_id}/{part}", params={"after": after}, headers=OPEN_STREAM)
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return httpx.Response(answer.status_code, text="\n".join(data))


@pytest.mark.parametrize("part", ["events", "logs"])
def test_next_cursor_is_taken_as_cursor(office: Office, part: str) -> None:
    job_id, directory = office.add()
    directory.log_path.write_text("".join(f"line {number}\n" for number in range(5)))
    for number in range(4):
        directory.append(1, "message", {"text": str(number)})
    found, query = [], {}
    for _ in range(3):
        page: dict[str, Any] = office.client.get(f"/v1/jobs/{job_id}/{part}", params={"limit": 2, **query}).json()
        found += [record["id"] for record in page["data"]]
        query = {"cursor": page["next_cursor"]}
    assert len(found) == 5 and found == sorted(set(found)) and query == {"cursor": None}


def test_a_stream_waits_for_the_event_that_ends_it(office: Office) -> None:
    job_id, directory = office.add()
    office.cancel(job_id)
    late = threading.Timer(0.6, directory.append, (1, "state", {"status": "cancelled"}))
    late.start()
    told = [json.loads(data) for data in stream(office, job_id, "events").text.splitlines()]
    late.join()
    assert [event["data"]["status"] for event in told] == ["queued", "cancelled"]
    assert stream(office, job_id, "events", 2).status_code == 204


def test_a_stream_does_not_wait_for_ever(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routes.events._LAST_EVENT_WITHIN_S", 0.5)
    job_id, _ = office.add()
    office.cancel(job_id)
    began_s = time.monotonic()
    assert stream(office, job_id, "events", 1).status_code == 200
    assert 0.3 < time.monotonic() - began_s < 5


def test_a_last_line_without_its_end_is_given_out_when_the_job_is_over(office: Office) -> None:
    job_id, directory = office.add()
    directory.log_path.write_text("whole\nkilled he")
    url = f"/v1/jobs/{job_id}/logs"
    assert [line["text"] for line in office.client.get(url).json()["data"]] == ["whole"]
    office.cancel(job_id)
    directory.append(1, "state", {"status": "cancelled"})
    both = [{"id": 6, "text": "whole"}, {"id": 15, "text": "killed he"}]
    assert office.client.get(url).json()["data"] == both
    assert [json.loads(data) for data in stream(office, job_id, "logs").text.splitlines()] == both
    assert stream(office, job_id, "logs", 15).status_code == 204
