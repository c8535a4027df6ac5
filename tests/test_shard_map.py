"""The map over shards with a crew of plain objects, whose machines come and go as a test wants."""

import io
import itertools
import json
import logging
import os
import platform
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from curator import shard_map
from curator.errors import ScorerError, ShardError
from curator.logs import JsonLines, LogReporter
from curator.progress import Silent
from curator.shard_map import Seat, ShardMap, failed
from curator.worker import Failure, ShardFailure, StageWorker, raise_failures


class Crew:
    """Actors on machines; a reference is a number. What runs on a machine that goes down never answers but dies."""

    needs = "1 CPUs"

    def __init__(self, machines: str, spare: str = "") -> None:
        """One seat for each letter, whose actor is on the machine of that name; a new one finds room on a spare."""
        self.down: set[str] = set()
        self.spare = spare
        self.seats = [Seat(actor=[machine]) for machine in machines]
        self.held: dict[int, tuple[Any, Any]] = {}
        self.handed_to_the_dead = 0
        self._numbers = itertools.count()

    def fill(self) -> None:
        for seat in self.seats:
            room = next((machine for machine in self.spare if machine not in self.down), None)
            if seat.actor is None and room is not None and time.monotonic() >= seat.start_s:
                seat.actor = [room]
                self.greet(seat)

    def greet(self, seat: Seat) -> None:
        seat.greeting = self._refer(seat.actor, "greeting")

    def admit(self, seat: Seat) -> bool:
        seat.greeting = None
        if seat.actor[0] in self.down:
            self.vacate(seat)
        return seat.actor is not None

    def run(self, seat: Seat, task: Any, upcoming: Any) -> int:
        self.handed_to_the_dead += seat.actor[0] in self.down
        return self._refer(seat.actor, task)

    def ask(self, seat: Seat) -> int:
        return self._refer(seat.actor, "asked")

    def vacate(self, seat: Seat) -> None:
        seat.actor = seat.greeting = seat.asked = None

    def answered(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        return [*references]

    def answer(self, reference: Any) -> Any:
        actor, asked = self.held.pop(reference)
        if actor[0] in self.down:
            return failed("the worker died while it held the shard")
        return 0 if asked == "asked" else self.work(actor[0], asked)

    def work(self, machine: str, task: Any) -> Any:
        return task

    def _refer(self, actor: Any, asked: Any) -> int:
        number = next(self._numbers)
        self.held[number] = actor, asked
        return number


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_map, "_POLL_S", 0.001)


def drive(crew: Crew, tasks: Sequence[int], retries: int) -> tuple[list[int], list[ShardFailure[int]]]:
    results: list[int] = []
    failures = ShardMap(crew, retries, tasks, Silent(), lambda _: 1, results.append).drive()
    return results, failures


def test_workers_that_were_lost_while_they_had_nothing_to_do_cost_no_task_an_attempt() -> None:
    """One task is left for two machines of four workers; the one that holds it is lost, with three that wait."""

    class Losing(Crew):
        def run(self, seat: Seat, task: Any, upcoming: Any) -> int:
            reference = super().run(seat, task, upcoming)
            self.down = self.down or {seat.actor[0]}
            return reference

    for machines in ("aaaabbbb", "bbbbaaaa", "abababab"):
        crew = Losing(machines)
        assert drive(crew, [7], retries=1) == ([7], []), machines
        assert crew.handed_to_the_dead == 0, machines


def test_a_task_that_always_fails_is_given_up_after_its_attempts_and_the_others_are_done() -> None:
    class Failing(Crew):
        def work(self, machine: str, task: Any) -> Any:
            return Failure(ScorerError("no")) if task == 3 else task

    results, failures = drive(Failing("aab"), range(9), retries=2)
    assert sorted(results) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert [(failure.task, failure.attempts) for failure in failures] == [(3, 3)]


@dataclass(frozen=True)
class Shard:
    number: int


class Breaking:
    """A stage whose first attempt at anything fails."""

    def __init__(self) -> None:
        self.tried: set[Any] = set()

    def open(self) -> None:
        """Nothing to start."""

    def load(self, task: Any) -> None:
        """Nothing to load."""

    def run(self, task: Any, inputs: None, on_tokens: Callable[[int], None]) -> Any:
        if task not in self.tried:
            self.tried.add(task)
            raise ScorerError("no")
        return task


def test_a_failed_attempt_is_told_with_its_shards_and_its_worker() -> None:
    worker, stage = StageWorker("."), Breaking()

    class Failing(Crew):
        def work(self, machine: str, task: Any) -> Any:
            return worker.run(1, lambda: stage, task, None)

    handler = logging.StreamHandler(stream := io.StringIO())
    handler.setFormatter(JsonLines())
    log = logging.getLogger("curator.progress")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        one, pass_over_three = Shard(7), (Shard(2), Shard(3), Shard(4))
        results: list[Any] = []
        ShardMap(Failing("a"), 1, [one, pass_over_three], LogReporter(), lambda _: 1, results.append).drive()
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert results == [one, pass_over_three]
    told = [json.loads(line) for line in stream.getvalue().splitlines() if "attempt" in line]
    where = f"{platform.node()}:{os.getpid()}"
    assert [(line["message"], line["shard"], line["worker"]) for line in told] == [
        (f"shard 00007: attempt 1 of 2 failed, trying again: no (worker {where})", 7, where),
        (f"shard 00002 to 00004: attempt 1 of 2 failed, trying again: no (worker {where})", 2, where),
    ]


TRACED = """\x1b[36mray::StageWorker.run()\x1b[39m (pid=%d)
           ^^^^^^^~~~~ ^^^
  File "site-packages/engine/start.py", line 9, in start
    raise RuntimeError("no device")
RuntimeError: no device
"""


def test_a_traceback_is_told_once_and_each_further_attempt_in_a_line_with_the_cause() -> None:
    """As when no engine starts on any of many machines: their tracebacks differ in what tells processes apart."""

    class Told(Silent):
        said: ClassVar[list[str]] = []

        def say(self, message: str) -> None:
            self.said.append(message)

    class Failing(Crew):
        pids = itertools.count(100)

        def work(self, machine: str, task: Any) -> Any:
            if task == 9:
                return Failure(ScorerError("one line\nand another"))
            return failed(TRACED % next(self.pids)) if task < 4 else task

    crew = Failing("aaaa", spare="bcd")
    failures = ShardMap(crew, 2, range(10), Told(), lambda _: 1, lambda _: None).drive()
    assert sorted(failure.task for failure in failures) == [0, 1, 2, 3, 9]
    traced = [line for line in Told.said if "no device" in line]
    assert len(traced) == 4 * 2 and sum("start.py" in line for line in traced) == 1 and "start.py" in traced[0]
    for line in traced[1:]:
        assert re.fullmatch(
            r"attempt \d of 3 failed, trying again: ray::StageWorker.run\(\) \(pid=1\d\d\): RuntimeError: no device",
            line,
        )
    assert [line for line in Told.said if "another" in line] == [
        f"attempt {number} of 3 failed, trying again: one line and another" for number in (1, 2)
    ]
    with pytest.raises(ShardError) as ended:
        raise_failures("score", failures, lambda task: f"shard {task}")
    said = str(ended.value)
    assert said.count("start.py") == 1 and said.count("RuntimeError: no device") == 4 + 1
    assert len(said.splitlines()) == 1 + 5 + 1 + 5, said


@pytest.mark.parametrize("unfit", [False, True])
def test_a_machine_on_which_no_engine_starts_does_not_use_up_the_attempts_of_shards(unfit: bool) -> None:
    """It fails at once and would take the next shard at once, while the other machine works for a while on each."""

    class Half(Crew):
        def work(self, machine: str, task: Any) -> Any:
            return Failure(ScorerError("no GPU"), opening=True, unfit=unfit) if machine == "b" else task

        def answered(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
            time.sleep(0.001)
            work = {number for number, (actor, asked) in self.held.items() if actor[0] == "a" and asked != "greeting"}
            late = {number for number, (actor, _) in self.held.items() if actor[0] == "b" and not results}
            return [r for r in references if r not in late and (r not in work or chance.random() < 0.1)]

    chance, results = random.Random(1), list[int]()
    crew = Half("ab", spare="b")
    failures = ShardMap(crew, 1, range(20), Silent(), lambda _: 1, results.append).drive()
    assert sorted(results) == [*range(20)] and failures == []


def test_a_stage_that_nobody_can_open_any_more_ends_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    class Once(Crew):
        tried = 0

        def work(self, machine: str, task: Any) -> Any:
            self.tried += 1
            return Failure(ScorerError("gone"), opening=True) if self.tried > 3 else task

    monkeypatch.setattr(shard_map, "_LONGEST_PAUSE_S", 0.01)
    crew = Once("ab", spare="a")
    with pytest.raises(ScorerError, match="gone"):
        drive(crew, range(1_000), retries=3)
    assert 3 + 5 <= crew.tried <= 3 + 7


@pytest.mark.parametrize("seed", range(20))
def test_every_task_is_done_once_whatever_machines_come_and_go(seed: int) -> None:
    chance = random.Random(seed)

    class Unsteady(Crew):
        lost = 0

        def answered(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
            if chance.random() < 0.3:
                self.lost += 1
                self.down = set(chance.sample("abc", chance.randrange(1, 3)))
            return [reference for reference in references if chance.random() < 0.5]

    crew = Unsteady("aabbcc", spare="cba")
    results, failures = drive(crew, range(40), retries=1_000)
    assert sorted(results) == [*range(40)] and failures == []
    assert crew.lost


def test_who_waits_for_a_machine_is_told_once_in_a_while_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Crew):
        polls = 0

        def answered(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
            self.polls += 1
            time.sleep(0.001)
            return [*references] if self.polls > 100 else []

    class Listening(Silent):
        said: ClassVar[list[str]] = []

        def say(self, message: str) -> None:
            self.said.append(message)

    monkeypatch.setattr(shard_map, "_NOTICE_S", 0.01)
    assert ShardMap(Full("a"), 0, [1], Listening(), lambda _: 1, lambda _: None).drive() == []
    assert 1 <= len(Listening.said) < 90 and set(Listening.said) == {
        "no worker is up: waiting for the cluster to have 1 CPUs free on a machine"
    }
