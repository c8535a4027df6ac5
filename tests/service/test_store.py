"""Jobs in the database: one winner of every race, fair turns, and limits."""

import threading
from pathlib import Path

import pytest

from curator.job_directory import JobRecord, new_id, now
from service.database import open_database, reading, writing
from service.problems import Problem
from service.settings import Settings
from service.store import Job, Store
from service.submissions import Submissions

LATER = 4e9


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, max_queued_jobs=5, tenant_queued_jobs=3)


@pytest.fixture
def store(settings: Settings) -> Store:
    settings.jobs_dir.mkdir()
    return Store(open_database(settings), settings.jobs_dir)


def add(store: Store, tenant: str = "a") -> Job:
    job_id = new_id("job")
    record = JobRecord(
        id=job_id, kind="curate", tenant=tenant, name="n", spec={}, output="/nowhere", created_at=now()
    )  # fmt: skip
    with writing(store.engine) as connection:
        store.insert(connection, record)
    job = store.job(job_id)
    assert job is not None
    return job


def claim(store: Store, running: int = 100, per_tenant: int | None = None) -> Job | None:
    return store.claim("me", LATER, running, per_tenant)


def end(store: Store, job: Job) -> None:
    assert store.move(job, "failed") is not None


def test_of_many_who_move_a_job_at_once_exactly_one_wins(store: Store) -> None:
    for _ in range(10):
        job, found = add(store), []
        barrier = threading.Barrier(8)

        def race(number: int, job: Job = job, found: list[Job] = found, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            moved = store.move(job, "cancelled" if number % 2 else "validating", epoch=job.epoch + 1)
            if moved is not None:
                found.append(moved)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 1
        assert store.job(job.id) == found[0]
        assert (found[0].epoch, found[0].version) == (job.epoch + 1, job.version + 1)


def test_an_old_look_at_a_job_moves_nothing(store: Store) -> None:
    old = add(store)
    claimed = claim(store)
    assert claimed is not None
    assert store.move(old, "cancelled") is None
    stale = store.move(claimed, "in_progress", epoch=claimed.epoch + 1)
    assert stale is not None
    assert store.move(claimed, "failed") is None
    assert store.job(old.id) == stale


def test_many_claim_and_every_job_is_claimed_once(store: Store) -> None:
    jobs = [add(store) for _ in range(12)]
    claimed: list[Job] = []

    def work() -> None:
        while (job := claim(store)) is not None:
            claimed.append(job)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.id for job in claimed) == [job.id for job in jobs]
    assert {(job.status, job.epoch, job.owner) for job in claimed} == {("validating", 2, "me")}


def test_tenants_take_turns_whoever_submitted_more(store: Store) -> None:
    for tenant in "aaaabbc":
        add(store, tenant)
    order = []
    while (job := claim(store, running=1)) is not None:
        order.append(job.tenant)
        end(store, job)
    assert order == list("abcabaa")


def test_the_tenant_with_fewer_running_jobs_comes_first(store: Store) -> None:
    for tenant in "aaabb":
        add(store, tenant)
    found = [claim(store, running=4) for _ in range(5)]
    assert [job.tenant if job else None for job in found] == ["a", "b", "a", "b", None]


def test_no_tenant_runs_more_than_its_share(store: Store) -> None:
    for tenant in "aaab":
        add(store, tenant)
    first, second, third = (claim(store, per_tenant=1) for _ in range(3))
    assert first is not None
    assert second is not None
    assert ({first.tenant, second.tenant}, third) == ({"a", "b"}, None)
    end(store, first)
    following = claim(store, per_tenant=1)
    assert following is not None
    assert following.tenant == first.tenant == "a"


def test_within_a_tenant_the_oldest_job_comes_first(store: Store) -> None:
    jobs = [add(store) for _ in range(3)]
    assert [job.id for job in (claim(store), claim(store), claim(store)) if job] == [job.id for job in jobs]


def test_a_watcher_that_has_died_is_replaced_by_one_other(store: Store) -> None:
    add(store)
    job = store.claim("dead", 1.0, 1, None)
    assert job is not None
    taken = store.take_over(job, "first", LATER)
    assert taken is not None
    assert (taken.owner, taken.epoch) == ("first", job.epoch)
    assert store.take_over(job, "second", LATER) is None
    store.renew("first", [job.id], LATER + 1)
    assert store.take_over(taken, "second", LATER) is None  # it has just shown that it lives


def test_a_full_queue_refuses_and_leaves_nothing_behind(store: Store, settings: Settings) -> None:
    submissions = Submissions(settings, store)

    def check(tenant: str) -> None:
        with reading(store.engine) as connection:
            submissions._check_room(connection, tenant, more=1)

    for tenant in "aab":
        add(store, tenant)
    check("a")
    add(store, "a")
    with pytest.raises(Problem, match="you have 3 jobs waiting") as refused:
        check("a")
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    check("b")
    add(store, "b")
    with pytest.raises(Problem, match="the service has 5 jobs waiting"):
        check("c")


def test_another_tenants_job_does_not_exist(store: Store) -> None:
    job = add(store, "a")
    assert store.job(job.id, "b") is None
    assert store.page("b") == []
    assert [found.id for found in store.page("a")] == [job.id]


def test_deleting_needs_the_job_as_it_was_seen(store: Store) -> None:
    seen = store.move(add(store), "cancelled")
    assert seen is not None
    resumed = store.move(seen, "queued", epoch=seen.epoch + 1)
    with writing(store.engine) as connection:
        assert not store.delete(connection, seen)
    assert store.job(seen.id) == resumed
