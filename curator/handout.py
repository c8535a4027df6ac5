"""Which task goes to whom: the order of a map over shards, apart from who does the work.

Everyone holds at most one task and has at most one more set aside, which it loads while it works on the first. What is
set aside is not lost with its holder, and at the end nobody waits for it: whoever is free takes it over.

Every step costs the same whatever the number of tasks and of workers.
"""

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

Task = TypeVar("Task")


class Turn(NamedTuple, Generic[Task]):
    """A task, and the how-manieth attempt at it this is."""

    task: Task
    attempt: int


class Handout(Generic[Task]):
    """The tasks that nobody works on."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._queue: deque[Turn[Task]] = deque(Turn(task, 1) for task in tasks)
        self._aside: dict[Hashable, Turn[Task]] = {}

    def __len__(self) -> int:
        return len(self._queue) + len(self._aside)

    def take(self, worker: Hashable) -> tuple[Turn[Task], Task | None]:
        """What this worker does now, and what it should load meanwhile.

        Now: what it has loaded, else the queue's first, else what another has set aside last. Meanwhile: the next of
        the queue, if there is one.
        """
        turn = self._aside.pop(worker, None)
        if turn is None:
            turn = self._queue.popleft() if self._queue else self._aside.popitem()[1]
        if not self._queue:
            return turn, None
        self._aside[worker] = upcoming = self._queue.popleft()
        return turn, upcoming.task

    def put_back(self, turn: Turn[Task]) -> None:
        """Try this again, after everything else."""
        self._queue.append(turn)

    def forget(self, worker: Hashable) -> None:
        """The worker is gone: what it has set aside is the next that anybody takes."""
        turn = self._aside.pop(worker, None)
        if turn is not None:
            self._queue.appendleft(turn)
