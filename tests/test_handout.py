"""How many workers there are, and which task goes to whom."""

import random

import pytest

from curator.errors import ClusterError
from curator.handout import Handout, Turn
from curator.room import Workers, count_workers

RESOURCES = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}


def test_as_many_workers_as_fit_and_never_more_than_tasks() -> None:
    assert count_workers(Workers(), 100, RESOURCES) == 8
    assert count_workers(Workers(cpus=3), 100, RESOURCES) == 2
    assert count_workers(Workers(gpus=0.5), 100, RESOURCES) == 4
    assert count_workers(Workers(cpus=0, gpus=2), 100, RESOURCES) == 1
    assert count_workers(Workers(count=5), 100, RESOURCES) == 5
    assert count_workers(Workers(most=3), 100, RESOURCES) == 3
    assert count_workers(Workers(), 1, RESOURCES) == count_workers(Workers(count=5), 1, RESOURCES) == 1


def test_asking_for_more_than_the_cluster_has_is_told() -> None:
    with pytest.raises(ClusterError, match=r"needs 0\.5 GPUs and the cluster has 0; lower models\.\*\.gpus"):
        count_workers(Workers(gpus=0.5), 4, {"CPU": 8.0})
    with pytest.raises(ClusterError, match=r"run\.workers is 1000 and the cluster has room for 8"):
        count_workers(Workers(count=1000), 4, RESOURCES)
    with pytest.raises(ClusterError, match="lower threads_per_worker"):
        count_workers(Workers(cpus=1000), 4, RESOURCES)


def test_everyone_gets_what_it_has_loaded_and_nothing_waits_at_the_end() -> None:
    handout = Handout("abcd")
    assert handout.take("first") == (("a", 1), "b")
    assert handout.take("second") == (("c", 1), "d")
    assert handout.take("first") == (("b", 1), None)
    assert len(handout) == 1
    assert handout.take("first") == (("d", 1), None), "what another has set aside is taken over"
    assert not handout


def test_what_a_lost_worker_has_set_aside_is_next_and_what_failed_comes_last() -> None:
    handout = Handout("abcd")
    turn, _ = handout.take("lost")
    handout.forget("lost")
    handout.forget("nobody")
    handout.put_back(Turn(turn.task, 2))
    assert [handout.take("other")[0] for _ in range(4)] == [("b", 1), ("c", 1), ("d", 1), ("a", 2)]


def test_no_task_is_lost_or_doubled_whoever_comes_and_goes() -> None:
    """Against a plain account of who holds what, for random orders of taking, finishing, failing and vanishing."""
    generator = random.Random(3)
    for _ in range(200):
        tasks, workers = range(generator.randrange(40)), [*range(generator.randrange(1, 6))]
        handout, held, done = Handout(tasks), {}, []
        while handout or held:
            worker = generator.choice(workers)
            if worker not in held:
                if handout:
                    held[worker] = handout.take(worker)[0]
                continue
            turn = held.pop(worker)
            if generator.random() < 0.3:
                handout.put_back(Turn(turn.task, turn.attempt + 1))
                handout.forget(worker)
            else:
                done.append(turn.task)
            assert len(handout) + len(held) + len(done) == len(tasks)
        assert sorted(done) == [*tasks]
