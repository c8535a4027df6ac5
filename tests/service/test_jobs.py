"""A job's life through the API, on both databases: submitted once, followed, listed, looked up again, removed."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from curator import verify

pytestmark = pytest.mark.slow

NOT_STARTED = {"CURATOR_MAX_RUNNING_JOBS": "0", "CURATOR_TENANT_QUEUED_JOBS": "1000"}


@pytest.fixture
def queue_only(start: Callable[..., Any], database: dict[str, str]) -> Any:
    """A service that takes jobs and starts none."""
    return start(**NOT_STARTED, **database)


def test_a_job_from_submission_to_its_dataset(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]], database: dict[str, str]
) -> None:
    service = start(**database)
    with service.client() as client:
        answer = client.post("/v1/jobs", json=job_spec(name="first"))
        assert answer.status_code == 202
        job = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
        assert (job["status"], job["attempt"], job["name"]) == ("queued", 1, "first")
        assert client.get(answer.headers["location"]).json()["id"] == job["id"]  # readable right after its 202

        seen = [job["status"]]
        etag = None
        while seen[-1] != "completed":
            headers = {"If-None-Match": etag} if etag else {}
            told = client.get(f"/v1/jobs/{job['id']}", params={"wait": 30}, headers=headers)
            assert told.status_code in (200, 304), told.text
            if told.status_code == 200:
                etag = told.headers["etag"]
                seen += [told.json()["status"]] if told.json()["status"] != seen[-1] else []
        order = ["queued", "validating", "in_progress", "finalizing", "completed"]
        assert [order.index(status) for status in seen] == sorted(order.index(status) for status in seen)

        done = client.get(f"/v1/jobs/{job['id']}").json()
        assert done["totals"]["rows"] == 200 and done["quarantined"] == {} and done["error"] is None
        assert done["created_at"] < done["started_at"] < done["finished_at"]
        stages = [stage["stage"] for stage in done["progress"]["stages"]]
        assert stages[:3] == ["tokenize", "score reference", "score base"] and stages[-1] == "publish"

        events = client.get(f"/v1/jobs/{job['id']}/events", params={"limit": 1000}).json()["data"]
        assert [event["id"] for event in events] == list(range(1, len(events) + 1))
        states = [event["data"]["status"] for event in events if event["type"] == "state"]
        assert states == order
        lines = client.get(f"/v1/jobs/{job['id']}/logs", params={"limit": 1000}).json()["data"]
        assert any("score reference: done" in line["text"] for line in lines)
    assert Path(done["output"]) == service.data_dir / "jobs" / job["id"] / "output"
    assert verify(done["output"]) == []


def test_a_job_that_cannot_run_fails_with_the_librarys_words(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    service = start()
    job = service.submit(job_spec(corpus={"kind": "jsonl", "uri": str(tmp_path / "nothing-*.jsonl")}))
    failed = service.wait(job["id"])
    assert failed["status"] == "failed"
    assert failed["error"]["type"] == "SpecError" and "nothing-*.jsonl" in failed["error"]["message"]


def test_pages_and_filters_of_the_list(queue_only: Any, job_spec: Callable[..., dict[str, Any]]) -> None:
    ids = [queue_only.submit(job_spec(name=f"job {number} {'%' if number % 2 else '_'}"))["id"] for number in range(7)]
    with queue_only.client() as client:
        client.post(f"/v1/jobs/{ids[3]}/cancel").raise_for_status()
        found, cursor = [], None
        while True:
            page = client.get("/v1/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
            found += [job["id"] for job in page["data"]]
            assert page["has_more"] == (page["next_cursor"] is not None)
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == ids[::-1]

        def listed(**query: Any) -> list[str]:
            return [job["id"] for job in client.get("/v1/jobs", params=query).json()["data"]]

        assert listed(status="cancelled") == [ids[3]]
        assert listed(status=["cancelled", "queued"]) == ids[::-1]
        assert listed(name="%") == [ids[5], ids[3], ids[1]]  # a sign that means something in SQL means itself
        assert listed(name="JOB 2", kind="curate") in ([], [ids[2]])
        assert listed(kind="train_reference") == []
        assert client.get("/v1/jobs", params={"status": "sleeping"}).status_code == 422
        assert client.get("/v1/jobs", params={"cursor": "job_x"}).status_code == 422
        waiting = [client.get(f"/v1/jobs/{job_id}").json()["queue_position"] for job_id in ids]
        assert waiting == [1, 2, 3, None, 4, 5, 6]


def test_a_key_makes_one_job(queue_only: Any, job_spec: Callable[..., dict[str, Any]]) -> None:
    first = queue_only.submit(job_spec(), **{"Idempotency-Key": "one"})
    with queue_only.client() as client:
        again = client.post("/v1/jobs", json=job_spec(), headers={"Idempotency-Key": "one"})
        assert again.status_code == 202 and again.json() == first
        assert again.headers["idempotency-replayed"] == "true"
        other = client.post("/v1/jobs", json=job_spec(name="other"), headers={"Idempotency-Key": "one"})
        assert other.status_code == 422 and other.json()["type"] == "urn:curator:problem:idempotency_key_reused"
        refused = client.post("/v1/jobs", json=job_spec(policy={"kind": "no"}), headers={"Idempotency-Key": "two"})
        assert refused.status_code == 422
        mended = client.post("/v1/jobs", json=job_spec(), headers={"Idempotency-Key": "two"})
        assert mended.status_code == 202  # a refused request has not used its key up
        assert len(client.get("/v1/jobs").json()["data"]) == 2


def test_64_clients_with_50_keys_and_cut_answers_make_50_jobs(
    queue_only: Any, job_spec: Callable[..., dict[str, Any]]
) -> None:
    """Every client sends all 50 keys; two in three answers are not waited for, and sent again until one is 202.

    409: the key's first request is at work; 503: a busy machine's database was slow; both say to ask again.
    """
    body = json.dumps(job_spec()).encode()
    statuses: Counter[int] = Counter()
    lock = threading.Lock()

    def work(number: int) -> None:
        with queue_only.client() as client:
            for key in range(50):
                headers = {"Idempotency-Key": f"key-{(key + number) % 50}", "Content-Type": "application/json"}
                if (key + number) % 3:
                    with suppress(httpx.TimeoutException):
                        client.post("/v1/jobs", content=body, headers=headers, timeout=httpx.Timeout(5, read=0.02))
                until = time.monotonic() + 60
                while (answer := client.post("/v1/jobs", content=body, headers=headers)).status_code != 202:
                    with lock:
                        statuses[answer.status_code] += 1
                    assert answer.status_code in (409, 503) and time.monotonic() < until, (answer.text, statuses)
                    time.sleep(0.1)

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(work, range(64)))
    with queue_only.client() as client:
        assert len(client.get("/v1/jobs", params={"limit": 200}).json()["data"]) == 50
    assert len(list(queue_only.data_dir.glob("jobs/job_*"))) == 50


def test_a_full_queue_says_so_and_keeps_nothing(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]]
) -> None:
    service = start(CURATOR_MAX_RUNNING_JOBS="0", CURATOR_TENANT_QUEUED_JOBS="2", CURATOR_MAX_QUEUED_JOBS="3")
    other = service.new_key("other")
    for _ in range(2):
        service.submit(job_spec())
    with service.client() as client, service.client(other) as second:
        full = client.post("/v1/jobs", json=job_spec(), headers={"Idempotency-Key": "k"})
        assert full.status_code == 429 and "you have 2 jobs waiting" in full.json()["detail"]
        assert int(full.headers["retry-after"]) > 0
        assert second.post("/v1/jobs", json=job_spec()).status_code == 202
        assert "the service has 3" in second.post("/v1/jobs", json=job_spec()).json()["detail"]
        first = client.get("/v1/jobs").json()["data"][0]
        client.post(f"/v1/jobs/{first['id']}/cancel").raise_for_status()
        assert client.post("/v1/jobs", json=job_spec(), headers={"Idempotency-Key": "k"}).status_code == 202


def test_validation_plans_and_measures_and_keeps_nothing(
    shared: Any, job_spec: Callable[..., dict[str, Any]], service_corpus: Path
) -> None:
    with shared.client() as client:
        answer = client.post("/v1/jobs:validate", json=job_spec())
        assert answer.status_code == 200, answer.text
        estimate = answer.json()
        assert estimate["shards"] >= 5 and estimate["disk_bytes"] > service_corpus.stat().st_size
        assert abs(estimate["tokens"] / 500_000 - 1) < 0.5
        assert [model["name"] for model in estimate["models"]] == ["reference", "base"]
        assert all("measured just now" in model["basis"] and model["seconds"] > 0 for model in estimate["models"])
        assert estimate["eta_s"] == pytest.approx(sum(model["seconds"] for model in estimate["models"]))
        quick = client.post("/v1/jobs:validate", params={"plan": False}, json=job_spec()).json()
        assert quick["valid"] and quick["shards"] is None
        wrong = client.post("/v1/jobs:validate", json=job_spec(policy={"kind": "loss", "model": "no"}))
        assert wrong.status_code == 422 and wrong.json()["errors"]
        gone = job_spec(corpus={"kind": "jsonl", "uri": str(service_corpus.with_name("none.jsonl"))})
        unplanned = client.post("/v1/jobs:validate", json=gone)
        assert unplanned.status_code == 422 and "none.jsonl" in unplanned.json()["detail"]
        assert client.get("/v1/jobs").json()["data"] == []
    assert list(shared.data_dir.glob("jobs/*")) == []


def test_waiting_for_a_change_wakes_up_at_once(queue_only: Any, job_spec: Callable[..., dict[str, Any]]) -> None:
    job = queue_only.submit(job_spec())
    with queue_only.client() as client, ThreadPoolExecutor(1) as pool:
        etag = client.get(f"/v1/jobs/{job['id']}").headers["etag"]
        assert client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": etag}).status_code == 304
        started = time.monotonic()
        unchanged = client.get(f"/v1/jobs/{job['id']}", params={"wait": 1}, headers={"If-None-Match": etag})
        assert unchanged.status_code == 304 and time.monotonic() - started >= 1
        waiting = pool.submit(client.get, f"/v1/jobs/{job['id']}", params={"wait": 30})
        time.sleep(0.5)
        started = time.monotonic()
        client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        assert waiting.result().json()["status"] == "cancelled"
        assert time.monotonic() - started < 3


def test_an_output_belongs_to_one_job(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    service = start(**NOT_STARTED)
    other = service.new_key("other")
    taken = tmp_path / "out" / "mine"
    job = service.submit(job_spec(output={"uri": str(taken)}))
    with service.client() as client, service.client(other) as second:
        for place in (taken, taken.parent, taken / "inside"):
            for asking in (client, second):
                refused = asking.post("/v1/jobs", json=job_spec(output={"uri": str(place)}))
                assert refused.status_code == 409 and refused.json()["type"].endswith("output_taken"), refused.text
        beside = job_spec(output={"uri": str(taken) + "-too"})
        assert second.post("/v1/jobs", json=beside).status_code == 202
        client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        again = job_spec(output={"uri": str(taken)})
        assert second.post("/v1/jobs", json=again).status_code == 409
        assert client.post("/v1/jobs", json=again).status_code == 202  # one's own, that nobody works on
