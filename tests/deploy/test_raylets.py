"""A Ray cluster of several hosts, as far as one machine has them, does the smoke job; a host falls silent meanwhile.

The hosts are in hosts.py, the cluster in raylets.py. It takes root, `ip` and namespaces. The long form (CURATOR_SOAK)
cuts the service and the head off as well, and lets hosts fall silent at random moments.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone]
HERE = Path(__file__).parent
SOAK = pytest.mark.skipif(not os.environ.get("CURATOR_SOAK"), reason="a long form: make soak")
NOTICED_S, BLIP_S, DEAD_S = 30.0, 2.0, 15.0
SILENCES, SILENCES_PER_JOB = 12, 4


@pytest.fixture(scope="module")
def raylets(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(HERE / "raylets.py")


@pytest.fixture(scope="module")
def cluster(
    raylets: ModuleType, tmp_path_factory: pytest.TempPathFactory, load_script: Callable[[Path], ModuleType]
) -> Iterator[Any]:
    hosts = load_script(HERE / "hosts.py")
    if missing := hosts.why_not():
        pytest.skip(missing)
    with raylets.started(hosts, tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(cluster: Any) -> str:
    """The smoke job of which nobody is disturbed."""
    return cluster.passed(cluster.smoke("undisturbed.log"), "undisturbed.log")


def test_the_smoke_job_is_done_by_both_hosts(cluster: Any, undisturbed: str) -> None:
    assert {worker.partition(":")[0] for worker in cluster.done_by(undisturbed)} == {"first", "second"}


def test_who_has_not_the_token_is_refused(cluster: Any) -> None:
    """By the port of Ray's control store and by the Jobs API, without one and with a wrong one."""
    jobs, client = f"{cluster.jobs_api}/api/jobs/", cluster.hosts["client"]
    wrong = "0" * 64
    assert [cluster.ask(jobs, token).status_code for token in ("", wrong, cluster.token)] == [401, 403, 200]
    for token, mode in (("", "disabled"), (wrong, "token")):
        other = {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": mode, "HOME": str(cluster.folder)}
        refused = client.run("ray", "status", f"--address={cluster.gcs}", **other)
        assert refused.returncode != 0 and "InvalidAuthToken" in refused.stderr, refused
    allowed = client.run("ray", "status", f"--address={cluster.gcs}")
    assert allowed.returncode == 0 and allowed.stdout.count("node_") == 3, allowed


def test_a_host_falls_silent_and_comes_back(cluster: Any, undisturbed: str) -> None:
    """First shortly, which costs nothing; then for long, with a shard in its worker's hands, which it even finishes.

    The other host goes on for five shards and is stopped then, so that the job can only go on by the one that is back.
    """
    network, second = cluster.network, cluster.hosts["second"]
    smoke, job = cluster.submitted("silent.log")

    def of_second() -> set[str]:
        return {worker for worker in cluster.done_by(job) if worker.startswith("second:")}

    cluster.until(of_second, "it has done a shard")
    network.cut_off(second)
    time.sleep(BLIP_S)
    network.put_back(second)
    holding = cluster.stop_at_work("second", lambda: cluster.early(job))
    assert cluster.trouble(job) == []

    network.cut_off(second)
    holding.send_signal(signal.SIGCONT)
    cut_s, published = time.monotonic(), len(cluster.receipts(job))
    cluster.until(lambda: len(cluster.receipts(job)) >= published + 5, "the other goes on")
    other = cluster.stop_at_work("first")
    cluster.until(lambda: cluster.trouble(job), "the driver has noticed", NOTICED_S)
    noticed_s = time.monotonic() - cut_s
    before = of_second()
    network.put_back(second)
    left_s = cluster.until(lambda: not cluster.has_raylet("second"), "its raylet learns that it is dead, and ends")
    cluster.join("second")  # as whatever keeps raylets running would do
    back_s = cluster.until(lambda: of_second() - before, "a new worker there has done a shard")
    assert smoke.poll() is None
    other.send_signal(signal.SIGCONT)

    assert cluster.passed(smoke, "silent.log") == job
    again = cluster.trouble(job)
    assert len(again) == 1 and "the worker died while it held the shard" in again[0], again
    assert cluster.digests(job) == cluster.digests(undisturbed)
    assert [*(cluster.folder / "data").rglob("_staging/*")] == []
    print(f"noticed after {noticed_s:.1f} s; raylet ended after {left_s:.1f} s, at work again {back_s:.1f} s later")


@SOAK
def test_the_service_is_cut_off_from_the_cluster_for_a_while(
    raylets: ModuleType, cluster: Any, undisturbed: str
) -> None:
    """Longer than a job's driver may be silent: it is not taken for dead, and no second one is started."""
    smoke, job = cluster.submitted("service-away.log")
    holding = cluster.stop_at_work("first")
    cluster.network.cut_off(cluster.hosts["service"])
    time.sleep(2 * raylets.STALLED_S)
    cluster.network.put_back(cluster.hosts["service"])
    time.sleep(raylets.HEARTBEAT_S)
    holding.send_signal(signal.SIGCONT)
    assert cluster.passed(smoke, "service-away.log") == job
    assert cluster.trouble(job) == []
    assert cluster.attempts(job) == cluster.attempts(undisturbed)
    assert cluster.digests(job) == cluster.digests(undisturbed)


@SOAK
def test_the_head_is_cut_off_from_everybody_until_all_are_dead_to_it(cluster: Any, undisturbed: str) -> None:
    """The driver lives there: it has no worker left and waits, and goes on with those that come back."""
    smoke, job = cluster.submitted("head-away.log")
    holding = [cluster.stop_at_work("first", lambda: cluster.early(job)), cluster.stop_at_work("second")]
    cluster.network.cut_off(cluster.hosts["head"])
    time.sleep(DEAD_S)
    cluster.network.put_back(cluster.hosts["head"])
    for worker in holding:
        worker.send_signal(signal.SIGCONT)
    for name in ("first", "second"):
        cluster.until(lambda name=name: not cluster.has_raylet(name), "its raylet learns that it is dead, and ends")
    assert smoke.poll() is None  # nobody is left to end it
    for name in ("first", "second"):
        cluster.join(name)
    assert cluster.passed(smoke, "head-away.log") == job
    assert len(cluster.trouble(job)) == 2
    assert cluster.attempts(job) == cluster.attempts(undisturbed)
    assert cluster.digests(job) == cluster.digests(undisturbed)
    cluster.all_alive(3)


def silence(cluster: Any, generator: random.Random, smoke: Any, job: str) -> dict[str, Any] | None:
    """Cut one host off at a random moment, for a moment or until it is dead; it is put back, and joins again."""
    time.sleep(3 * generator.random())
    name, for_s = generator.choice(["first", "second"]), generator.choice([0.5, BLIP_S, DEAD_S])
    published = len(cluster.receipts(job))
    if smoke.poll() is not None:
        return None
    cluster.network.cut_off(cluster.hosts[name])
    time.sleep(for_s)
    cluster.network.put_back(cluster.hosts[name])
    if for_s == DEAD_S:
        cluster.until(lambda: not cluster.has_raylet(name), "its raylet learns that it is dead, and ends")
        cluster.join(name)
        cluster.all_alive(3)
    return {"host": name, "for_s": for_s, "published": published}


@SOAK
def test_hosts_fall_silent_at_random_moments(cluster: Any, undisturbed: str) -> None:
    generator, done = random.Random(7), 0
    while done < SILENCES:
        smoke, job = cluster.submitted(f"silences-{done}.log")
        cluster.until(lambda job=job: cluster.receipts(job), "a shard is done")
        history = []
        while len(history) < SILENCES_PER_JOB and (one := silence(cluster, generator, smoke, job)):
            history.append(one)
        assert cluster.passed(smoke, f"silences-{done}.log") == job
        print(job, history, f"{len(cluster.trouble(job))} tries again")
        assert cluster.digests(job) == cluster.digests(undisturbed), history
        assert cluster.attempts(job) == cluster.attempts(undisturbed), history
        done += max(len(history), 1)
