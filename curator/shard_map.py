"""Run one stage over all its tasks: who works on what, and what to do about failures.

Nothing here knows Ray: `curator.cluster` is the crew. Invariant: a task is handed only to an actor that has answered,
and leaves this module as one result or one `ShardFailure`, whatever becomes of actors and their machines.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from curator import interrupts, logs
from curator.errors import ClusterError
from curator.handout import Handout, Turn
from curator.progress import Reporter, count_shards
from curator.worker import Failure, ShardFailure, brief, traced

_POLL_S = 0.5
_ASKED_PER_S = 100
"""Workers, how far they are: a thousand of them must not keep the driver busy with that."""
_SILENT_S = 600.0
"""A worker that has said nothing for so long hangs: an engine may keep Python's lock for minutes while it opens."""
_NOTICE_S = 30.0
_FAILED_OPENINGS = 5
"""So many since the last shard was done, and twice as many as the seats concerned: nobody can open the stage."""
_LONGEST_PAUSE_S = 60.0

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(eq=False)
class Seat:
    """A place for one actor. It may sit empty for a while, or wait for room that a lost machine has taken along.

    Attributes:
        actor: who sits there, up or not.
        greeting: what a new actor was asked first; until it has answered it is given nothing.
        failed_starts: how many in a row died before they answered.
        failed_openings: how many in a row could not open the stage.
        start_s: when to start the next one.
        asked: how far it is; the question that is open.
        heard_s: when it last said something.
        tokens: what it said.
    """

    actor: Any = None
    greeting: Any = None
    failed_starts: int = 0
    failed_openings: int = 0
    start_s: float = 0.0
    asked: Any = None
    heard_s: float = 0.0
    tokens: int = 0


class Crew(Protocol):
    """Actors, each in a seat; a reference stands for an answer that an actor owes."""

    seats: list[Seat]
    needs: str

    def fill(self) -> None:
        """Start an actor in every empty seat whose time has come."""
        ...

    def greet(self, seat: Seat) -> None:
        """Ask an actor whether it is up."""
        ...

    def admit(self, seat: Seat) -> bool:
        """Take the answer to a greeting; an actor that is not up leaves its seat."""
        ...

    def run(self, seat: Seat, task: Any, upcoming: Any) -> Any:
        """Hand a task to an actor; the reference to its outcome."""
        ...

    def ask(self, seat: Seat) -> Any:
        """Ask an actor how far it is."""
        ...

    def vacate(self, seat: Seat) -> None:
        """End the actor, in whatever state it is."""
        ...

    def answered(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """Wait for the first, and give all that are there."""
        ...

    def answer(self, reference: Any) -> Any:
        """What was answered; a `Failure` if the answer will never come."""
        ...


class ShardMap(Generic[Task, Result]):
    """One stage over all tasks."""

    def __init__(
        self,
        crew: Crew,
        retries: int,
        tasks: Sequence[Task],
        reporter: Reporter,
        tokens_of: Callable[[Result], int],
        on_result: Callable[[Result], None],
    ) -> None:
        self._crew, self._retries = crew, retries
        self._reporter, self._tokens_of, self._on_result = reporter, tokens_of, on_result
        self._handout = Handout(tasks)
        self._idle: list[Seat] = []
        self._running: dict[Any, tuple[Seat, Turn[Task]]] = {}
        self._failures: list[ShardFailure[Task]] = []
        self._explained: set[str] = set()
        self._tasks_done = self._tokens_done = self._failed_openings = 0
        self._next_poll_s, self._notice_s = 0.0, time.monotonic() + _NOTICE_S

    def drive(self) -> list[ShardFailure[Task]]:
        """Work until every task is done or has failed for good; the latter."""
        for seat in self._crew.seats:
            seat.failed_openings = 0
            if seat.actor is not None and seat.greeting is None:
                self._crew.greet(seat)  # whoever died since the last map must cost no shard an attempt
        while self._handout or self._running:
            interrupts.check()
            self._crew.fill()
            while self._handout and self._idle:
                self._assign(self._idle.pop())
            self._wait()
            self._poll()
            self._say_if_alone()
            tokens = self._tokens_done + sum(seat.tokens for seat, _ in self._running.values())
            self._reporter.update(self._tasks_done, tokens, len(self._running))
        return self._failures

    def _assign(self, seat: Seat) -> None:
        turn, upcoming = self._handout.take(seat)
        self._running[self._crew.run(seat, turn.task, upcoming)] = seat, turn
        seat.heard_s = time.monotonic()

    def _wait(self) -> None:
        """Wait for a result or a new actor, and take all that have come."""
        greetings = {seat.greeting: seat for seat in self._crew.seats if seat.greeting is not None}
        references = [*self._running, *greetings]
        if not references:
            time.sleep(_POLL_S)  # every seat is empty, and none is to be filled yet
        for reference in self._crew.answered(references, _POLL_S):
            if reference in self._running:
                self._collect(reference)
            elif self._crew.admit(greetings[reference]):
                self._idle.append(greetings[reference])

    def _collect(self, reference: Any) -> None:
        seat, turn = self._running.pop(reference)
        seat.asked, seat.tokens = None, 0
        outcome = self._crew.answer(reference)
        if isinstance(outcome, Failure):
            self._dismiss(seat, outcome)
            self._retry(turn, outcome)
            return
        self._idle.append(seat)
        seat.failed_openings = self._failed_openings = 0
        self._tasks_done += 1
        self._tokens_done += self._tokens_of(outcome)
        self._on_result(outcome)

    def _dismiss(self, seat: Seat, failure: Failure) -> None:
        """End an actor that failed, if it may not go on.

        Who cannot even open the stage, on a machine with a broken GPU perhaps, is followed later and later: it would
        use up the attempts of shards that the others can do.
        """
        if failure.opening:
            seat.failed_openings += 1
            self._failed_openings += 1
            seat.start_s = time.monotonic() + pause_s(seat.failed_openings)
        if failure.opening or failure.unfit:
            self._vacate(seat)
        else:
            self._idle.append(seat)

    def _none_can_open(self) -> bool:
        """Whether all who have tried since the last shard was done have failed, again and again."""
        concerned = sum(seat.failed_openings > 0 for seat in self._crew.seats)
        return not self._running and self._failed_openings >= max(_FAILED_OPENINGS, 2 * concerned)

    def _vacate(self, seat: Seat) -> None:
        """End the actor; the seat gets a fresh one as soon as there is room.

        Who waits for a task may have died with it, on the same machine: that must cost no task an attempt.
        """
        self._crew.vacate(seat)
        self._handout.forget(seat)
        for idle in self._idle:
            self._crew.greet(idle)
        self._idle.clear()

    def _retry(self, turn: Turn[Task], failure: Failure) -> None:
        if not failure.error.retryable or (failure.opening and (not self._tasks_done or self._none_can_open())):
            raise failure.error
        if turn.attempt <= self._retries:
            self._tell(turn, failure)
            count_shards(self._reporter, "retried")
            self._handout.put_back(Turn(turn.task, turn.attempt + 1))
        else:
            self._failures.append(ShardFailure(turn.task, turn.attempt, failure))

    def _tell(self, turn: Turn[Task], failure: Failure) -> None:
        """Say which attempt has failed and where: many failures of one machine point to that machine."""
        parts = turn.task if isinstance(turn.task, tuple) else (turn.task,)
        numbers = [part.number for part in parts if hasattr(part, "number")]
        text, cause = str(failure.error), brief(str(failure.error))
        said = f"attempt {turn.attempt} of {self._retries + 1} failed, trying again: {cause}"
        fields: dict[str, Any] = {}
        if numbers:
            last = f" to {numbers[-1]:05d}" if numbers[1:] else ""
            said = f"shard {numbers[0]:05d}{last}: {said}"
            fields["shard"] = numbers[0]
        if failure.worker:
            said += f" (worker {failure.worker})"
            fields["worker"] = failure.worker
        why = text.rstrip().rpartition("\n")[2]
        if traced(text) and why not in self._explained:  # once: every worker of a machine may fail to start alike
            self._explained.add(why)
            said += f"\n{text}"
        with logs.known(**fields):
            self._reporter.say(said)

    def _poll(self) -> None:
        """Ask every busy actor how far it is, without waiting for the answer; the more there are, the less often."""
        now_s = time.monotonic()
        if now_s < self._next_poll_s:
            return
        self._next_poll_s = now_s + max(_POLL_S, len(self._running) / _ASKED_PER_S)
        asked = [seat.asked for seat, _ in self._running.values() if seat.asked is not None]
        answered = set(self._crew.answered(asked, 0))
        for reference, (seat, turn) in list(self._running.items()):
            if seat.asked in answered:
                told = self._crew.answer(seat.asked)
                if not isinstance(told, Failure):  # what became of its task is told by the task's own outcome
                    seat.heard_s, seat.tokens = now_s, told
                seat.asked = None
            if now_s - seat.heard_s > _SILENT_S:
                del self._running[reference]
                self._vacate(seat)
                self._retry(turn, failed(f"the worker has been silent for {_SILENT_S:g} s and was ended"))
            elif seat.asked is None:
                seat.asked = self._crew.ask(seat)

    def _say_if_alone(self) -> None:
        """Tell whoever waits for the job what the job waits for."""
        if self._running or self._idle:
            self._notice_s = time.monotonic() + _NOTICE_S
        elif time.monotonic() > self._notice_s and any(seat.greeting is not None for seat in self._crew.seats):
            self._notice_s += 10 * _NOTICE_S
            self._reporter.say(f"no worker is up: waiting for the cluster to have {self._crew.needs} free on a machine")


def pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row."""
    return min(2.0 ** min(failures, 10) / 4, _LONGEST_PAUSE_S)


def failed(message: str, *, opening: bool = False) -> Failure:
    """An attempt that failed by no fault of the shard's, in a process that is not to be trusted any more."""
    error = ClusterError(message)
    error.retryable = True
    return Failure(error, opening=opening, unfit=True)
