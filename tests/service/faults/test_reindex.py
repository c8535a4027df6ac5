"""The database is only an index: lost, it is rebuilt from the job directories; and what deleting leaves behind."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
WAITING = {"CURATOR_MAX_RUNNING_JOBS": "0"}
SAME = ("id", "kind", "name", "status", "attempt", "epoch", "output", "created_at", "totals", "quarantined", "error",
        "progress", "spec")  # fmt: skip


def jobs_of(service: Any) -> dict[str, dict[str, Any]]:
    with service.client() as client:
        return {job["id"]: job for job in client.get("/v1/jobs").raise_for_status().json()["data"]}


def lose_database(data_dir: Path) -> None:
    for path in data_dir.glob("service.db*"):
        path.unlink()


def cancelled_job(service: Any, spec: dict[str, Any], **headers: str) -> str:
    job_id = service.submit(spec, **headers)["id"]
    with service.client() as client:
        assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    return str(job_id)


def test_a_lost_database_is_rebuilt_from_the_directories(
    start: Any, job_spec: Any, files_of: Any, until: Callable[..., Any]
) -> None:
    service = start()
    jobs_dir, once = service.data_dir / "jobs", {"Idempotency-Key": "once"}
    completed = service.submit(job_spec(), **once)["id"]
    other = cancelled_job(service, job_spec(name="other"))
    failing = job_spec(corpus={"kind": "jsonl", "uri": job_spec()["corpus"]["uri"], "text_field": "missing"})
    failed = service.submit(failing, **{"Idempotency-Key": "failing"})["id"]
    assert service.wait(completed)["status"] == "completed"
    assert service.wait(failed)["status"] == "failed"
    before, old_key = jobs_of(service), service.key
    service.stop()

    lose_database(service.data_dir)
    damaged = jobs_dir / ("job_" + "0" * 26)
    shutil.copytree(jobs_dir / other, damaged)
    record = (damaged / "job.json").read_text()
    (damaged / "job.json").write_text(record[: len(record) // 2])
    with (jobs_dir / failed / "events.jsonl").open("ab") as log:
        log.write(b'{"id":99,"at":"20')
    (jobs_dir / "notes").mkdir()
    (jobs_dir / "README").write_text("not ours")

    service = start("--reindex")
    assert service.key != old_key
    assert "Reindexed 3 jobs\n" in service.log
    after = jobs_of(service)
    assert after.keys() == before.keys() == {completed, other, failed}
    for job_id, job in before.items():
        assert {name: job[name] for name in SAME} == {name: after[job_id][name] for name in SAME}
    complaints = [line for line in service.log if damaged.name in line]
    assert len(complaints) == 1
    assert "cannot be read and is left out" in complaints[0]
    files_of(completed).check_completed()

    with service.client() as client:
        for _ in range(2):
            again = client.post("/v1/jobs", json=job_spec(), headers=once)
            assert (again.status_code, again.json()["id"]) == (202, completed)
            assert again.headers["Idempotency-Replayed"] == "true"
        assert client.post("/v1/jobs", json=job_spec(name="new"), headers=once).status_code == 422
        assert client.post(f"/v1/jobs/{failed}/cancel").status_code == 409
        assert client.get("/v1/me", headers={"Authorization": f"Bearer {old_key}"}).status_code == 401

    (damaged / "job.json").write_text(record.replace(other, damaged.name))  # mended by hand, it is found by itself
    until(lambda: jobs_of(service).get(damaged.name), 10)
    service.stop()
    lose_database(service.data_dir)
    service = start()  # and without being told to
    until(lambda: len(jobs_of(service)) == 4 or None, 10)
    assert len([line for line in service.log if "is not sound" in line or "cannot be read" in line]) == 0


def test_a_request_that_a_dying_service_did_not_write_down_is_made_good(
    start: Any, job_spec: Any, files_of: Any, until: Callable[..., Any]
) -> None:
    """The database says cancelled, the directory still says queued: were it lost now, the job would run."""
    service = start(**WAITING)
    key, job_id = service.key, cancelled_job(service, job_spec())
    service.kill()
    events = service.data_dir / "jobs" / job_id / "events.jsonl"
    first, second = events.read_bytes().splitlines(keepends=True)
    assert json.loads(second)["data"]["status"] == "cancelled"
    events.write_bytes(first)
    service = start(key=key, **WAITING)
    until(lambda: files_of(job_id).states() == ["queued", "cancelled"] or None, 10)
    files_of(job_id).check_log()


def test_deleting_removes_directory_and_idempotency_key(start: Any, job_spec: Any) -> None:
    service = start(**WAITING)
    once = {"Idempotency-Key": "once"}
    job_id = service.submit(job_spec(), **once)["id"]
    with service.client() as client:
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 409
        client.post(f"/v1/jobs/{job_id}/cancel")
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
        assert [client.request(method, f"/v1/jobs/{job_id}").status_code for method in ("GET", "DELETE")] == [404, 404]
        assert list((service.data_dir / "jobs").iterdir()) == []
        again = client.post("/v1/jobs", json=job_spec(name="another body"), headers=once)
    assert again.status_code == 202
    assert again.json()["id"] != job_id


def test_a_deletion_that_was_cut_short_is_finished(start: Any, job_spec: Any, until: Callable[..., Any]) -> None:
    service = start(**WAITING)
    key, jobs_dir, once = service.key, service.data_dir / "jobs", {"Idempotency-Key": "once"}
    doomed, kept = cancelled_job(service, job_spec(), **once), cancelled_job(service, job_spec())
    service.kill()
    (jobs_dir / doomed).rename(jobs_dir / f".deleted-{doomed}")
    service = start(key=key, **WAITING)
    until(lambda: jobs_of(service).keys() == {kept} or None, 10)
    until(lambda: {path.name for path in jobs_dir.iterdir()} == {kept} or None, 10)
    assert service.submit(job_spec(), **once)["id"] != doomed


def test_old_jobs_are_deleted_after_the_retention_time(start: Any, job_spec: Any, until: Callable[..., Any]) -> None:
    service = start(**WAITING)
    key, jobs_dir = service.key, service.data_dir / "jobs"
    cancelled_job(service, job_spec())
    waiting = service.submit(job_spec())["id"]
    service.kill()
    time.sleep(1)
    service = start(key=key, **WAITING, CURATOR_RETENTION_DAYS=str(1 / 86400))
    until(lambda: jobs_of(service).keys() == {waiting} or None, 10)
    assert [path.name for path in jobs_dir.iterdir()] == [waiting]
