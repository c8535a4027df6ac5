"""The figures for Prometheus: each is counted once, whatever happens to services."""

import logging
import runpy
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from curator.errors import Superseded
from curator.job_directory import Event, JobDirectory
from service.context import Services
from service.store import Job

ENDED_S = 1_760_000_000.0
DURATION_S = 750.25
TOTALS = {"rows": 90, "tokens": 1000, "kept_tokens": 600, "quarantined_rows": 10}

_FIGURES = runpy.run_path(str(Path(__file__).with_name("figures.py")))
value: Callable[..., float] = _FIGURES["value"]
submit, found, take = _FIGURES["submit"], _FIGURES["found"], _FIGURES["take"]


def sum_of(services: tuple[Services, ...], name: str, **labels: str) -> float:
    return sum(value(each, name, **labels) for each in services)


def write(job: Job, *data: tuple[str, dict[str, Any]], at_s: float = ENDED_S) -> None:
    """Append events as the job's driver would have at some time."""
    log = JobDirectory(job.directory).events
    number, moment = log.last_id(), datetime.fromtimestamp(at_s, UTC).isoformat()
    with log.path.open("a") as file:
        for kind, content in data:
            number += 1
            event = {"id": number, "at": moment, "type": kind, "attempt": 1, "epoch": job.epoch, "data": content}
            file.write(Event.model_validate(event).model_dump_json() + "\n")


def progress(tokens: int, stage: str = "score base", **shards: int) -> tuple[str, dict[str, Any]]:
    before = {"stage": "tokenize", "shards": 9, "tokens": 99, "state": "finished"}  # which no relaunch counts against
    known = {"stages": [before], "shards_done": 1, "shards": 9, "tokens_done": 5, "tokens": 99, "workers": 1}
    return "progress", known | {"stage": stage, "counted": {"tokens": tokens, "shards": shards}}


def complete(job: Job) -> None:
    write(job, ("state", {"status": "validating"}), at_s=ENDED_S - DURATION_S)
    write(job, progress(40, published=2), progress(60, published=1, adopted=1), at_s=ENDED_S - 5)
    write(job, ("state", {"status": "completed", "totals": TOTALS, "quarantined": {"bad": 10}}))


def check_counted_once(*services: Services) -> None:
    assert sum_of(services, "job_duration_seconds_count", state="completed") == 1
    assert sum_of(services, "job_duration_seconds_sum", state="completed") == DURATION_S
    assert sum_of(services, "tokens_total", decision="kept") == 600
    assert sum_of(services, "tokens_total", decision="dropped") == 400
    assert sum_of(services, "documents_total", outcome="published") == 90
    assert sum_of(services, "documents_total", outcome="quarantined") == 10
    assert sum_of(services, "stage_tokens_total", stage="score") == 100
    assert sum_of(services, "shard_commits_total", result="published") == 3
    assert sum_of(services, "shard_commits_total", result="adopted") == 1


# ------------------------------------------------------------------------------------------------ counted once


def test_a_job_that_ended_while_no_service_ran_counts_once_with_its_own_times(
    open_services: Callable[..., Services],
) -> None:
    first = open_services()
    submit(first)
    job = take(first)
    complete(job)
    second = open_services()
    for _ in range(3):
        second.watcher.round()
    assert found(second, job.id).status == "completed"
    finished_at = found(second, job.id).finished_at
    assert finished_at is not None and finished_at.timestamp() == ENDED_S
    check_counted_once(second)
    third = open_services()
    third.watcher.round()
    assert sum_of((third,), "job_duration_seconds_count", state="completed") == 0


def test_two_services_on_one_database_count_a_job_in_one_of_them(open_services: Callable[..., Services]) -> None:
    services = open_services(), open_services()
    submit(services[0])
    complete(take(services[0]))
    for _ in range(2):
        for each in services:
            each.watcher.round()
    check_counted_once(*services)
    assert [value(each, "tokens_total", decision="kept") for each in services] == [600, 0]  # the first to look has it


def test_of_two_services_that_read_the_same_events_at_once_one_counts_them(
    open_services: Callable[..., Services],
) -> None:
    services = open_services(), open_services()
    submit(services[0])
    job = found(services[0], take(services[0]).id)  # what both know when they begin
    write(job, progress(40, published=2))
    barrier, lost = threading.Barrier(2), []

    def follow(each: Services) -> None:
        barrier.wait()
        try:
            each.watcher._follow(job)
        except Superseded:
            lost.append(each)

    threads = [threading.Thread(target=follow, args=(each,)) for each in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 1
    assert sum_of(services, "shard_commits_total", result="published") == 2
    assert sum_of(services, "stage_tokens_total", stage="score") == 40


def test_a_database_that_is_rebuilt_counts_nothing_again(open_services: Callable[..., Services]) -> None:
    first = open_services()
    submit(first)
    complete(take(first))
    first.watcher.round()
    second = open_services()
    assert second.discovery.reindex() == 1
    for _ in range(3):
        second.watcher.round()
    assert sum_of((second,), "job_duration_seconds_count", state="completed") == 0
    assert sum_of((second,), "tokens_total", decision="kept") == 0
    assert value(second, "jobs", state="completed") == 1


def test_a_driver_that_dies_is_counted_and_what_it_had_done_stays_counted(
    open_services: Callable[..., Services],
) -> None:
    services = open_services()
    submit(services)
    job = take(services)
    write(job, progress(40, published=2, retried=1))
    write(job, ("state", {"status": "in_progress"}))
    assert services.watcher._follow(job).status == "in_progress"
    assert value(services, "curations_in_progress") == value(services, "jobs", state="in_progress") == 1
    services.watcher.round()  # its owner has died, and so has its driver
    assert value(services, "curations_in_progress") == 0
    assert found(services, job.id).status == "queued"
    assert value(services, "relaunches_total") == 1
    again = take(services)
    complete(again)
    services.watcher.round()
    assert found(services, job.id).status == "completed"
    assert value(services, "stage_tokens_total", stage="score") == 140
    assert value(services, "shard_commits_total", result="published") == 5
    assert value(services, "shard_commits_total", result="retried") == 1
    assert value(services, "queue_wait_seconds_count") == 1  # the second turn is no wait in the queue
    assert value(services, "job_duration_seconds_count", state="completed") == 1


def test_events_behind_the_end_do_not_end_a_job_again(open_services: Callable[..., Services]) -> None:
    services = open_services()
    submit(services)
    job = take(services)
    complete(job)
    services.watcher.round()
    write(job, ("message", {"text": "a late word"}))
    services.watcher._follow(found(services, job.id))
    check_counted_once(services)


def test_each_change_of_a_jobs_state_is_a_line_of_the_log(
    open_services: Callable[..., Services], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "curator.service")
    services = open_services()
    submit(services)
    job = take(services)
    complete(job)
    services.watcher.round()
    services.watcher.round()
    other = services.submissions.cancel(submit(services))
    services.submissions.resume(other)
    assert [(record.message, record.__dict__["job"], record.__dict__["epoch"]) for record in caplog.records] == [
        (f"job {job.id} is completed", job.id, 2),
        (f"job {other.id} is cancelled, as was asked", other.id, 2),
        (f"job {other.id} is queued, as was asked", other.id, 3),
    ]


def test_a_driver_that_cannot_be_started_is_counted(
    open_services: Callable[..., Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = open_services(max_running_jobs=1)
    job = submit(services)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    services.watcher.round()
    assert value(services, "start_failures_total") == 1
    assert found(services, job.id).status == "queued", "it is no fault of the job's"


def test_a_cluster_that_stays_away_is_asked_less_and_less_often(
    open_services: Callable[..., Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = open_services(max_running_jobs=1)
    job, starter, pauses = submit(services), services.watcher._starter, []

    def start(job: Job) -> None:
        if not there:
            raise ConnectionError("no route to the head")

    monkeypatch.setattr(starter._launcher, "start", start)
    for there in (False, False, False, False, False, True):  # noqa: B007  # `start` looks at it
        starter._start_after_s = 0.0  # the pause is over
        starter.start_waiting()
        pauses.append(round(starter._start_after_s - time.monotonic()))
    assert pauses[:5] == [5, 10, 20, 40, 40] and starter._pause_s == 5
    assert found(services, job.id).status == "validating"
    assert value(services, "start_failures_total") == 5
