"""How long jobs wait: from their submission, a resume or a driver's death, however often they could not be started."""

import json
import runpy
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from curator.job_directory import JobDirectory
from service.context import Services
from service.database import writing
from service.tables import jobs

_FIGURES = runpy.run_path(str(Path(__file__).with_name("figures.py")))
submit, found, take, value = (_FIGURES[name] for name in ("submit", "found", "take", "value"))
HOUR_S = 3600.0
Open = Callable[..., Services]


def oldest(services: Services) -> float:
    return float(value(services, "queue_oldest_seconds"))


def pass_hours(services: Services, hours: float) -> None:
    """Let everything have been so much earlier."""
    times = (jobs.c.created_at, jobs.c.queued_at, jobs.c.started_at, jobs.c.finished_at, jobs.c.updated_at)
    with writing(services.store.engine) as connection:
        connection.execute(sa.update(jobs).values({each: each - hours * HOUR_S for each in times}))


def fail_to_start(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round in which the driver cannot be started, which is no fault of the job's."""
    with monkeypatch.context() as patched:
        patched.setattr("sys.executable", "/nowhere/python")
        services.watcher._starter._start_after_s = 0.0  # it would not try again so soon
        services.watcher.round()


def test_the_queue_says_how_long_its_oldest_job_waits(open_services: Callable[..., Services]) -> None:
    services = open_services()
    assert value(services, "queue_oldest_seconds") == 0
    submit(services)
    submit(services)
    assert value(services, "jobs", state="queued") == 2
    assert 0 < value(services, "queue_oldest_seconds") < 60
    take(services)
    take(services)
    assert value(services, "queue_oldest_seconds") == 0


def test_a_job_whose_driver_died_waits_since_then(open_services: Open) -> None:
    services = open_services()
    submit(services)
    job = take(services)
    pass_hours(services, 30)  # it ran
    services.watcher.round()
    assert found(services, job.id).status == "queued" and found(services, job.id).attempt == 1
    assert 0 < oldest(services) < 60


def test_attempts_to_start_a_job_do_not_end_its_wait(open_services: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    services = open_services(max_running_jobs=1)
    job = submit(services)
    pass_hours(services, 2)
    fail_to_start(services, monkeypatch)
    assert 2 * HOUR_S < oldest(services) < 2 * HOUR_S + 60
    services.submissions.cancel(found(services, job.id))
    services.watcher.round()
    services.submissions.resume(found(services, job.id))
    assert 0 < oldest(services) < 60
    for hours in (3, 4):
        pass_hours(services, hours)
        fail_to_start(services, monkeypatch)
    now = found(services, job.id)
    assert (now.status, now.attempt) == ("queued", 2)
    assert 7 * HOUR_S < oldest(services) < 7 * HOUR_S + 60


def test_a_database_that_is_rebuilt_knows_since_when_jobs_wait(
    open_services: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the events: `waits` was resumed and then not started, `died` lost its driver."""
    services = open_services(max_running_jobs=1)
    waits = submit(services)
    services.submissions.resume(services.submissions.cancel(waits))
    time.sleep(0.05)
    fail_to_start(services, monkeypatch)

    def queued_at(job: Any) -> list[float]:
        lines = JobDirectory(job.directory).events.path.read_text().splitlines()
        events = [event for event in map(json.loads, lines) if event["data"].get("status") == "queued"]
        return [datetime.fromisoformat(event["at"]).timestamp() for event in events]

    resumed_s, postponed_s = queued_at(waits)[-2:]
    assert resumed_s < postponed_s
    services.discovery.reindex()
    assert services.store.waiting_since() == pytest.approx(resumed_s, abs=1e-3)

    services.submissions.cancel(found(services, waits.id))
    died = submit(services)
    take(services)
    time.sleep(0.05)
    services.watcher._starter._start_after_s = time.monotonic() + 60  # it would be started again at once
    services.watcher.round()
    services.discovery.reindex()
    assert found(services, died.id).status == "queued"
    assert services.store.waiting_since() == pytest.approx(queued_at(died)[-1], abs=1e-3)
