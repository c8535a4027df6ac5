"""The worker's side of a map over shards: what a stage is, and the actor that holds one.

Nothing here knows Ray: `curator.cluster` makes actors of `StageWorker`, and a test may call one as it is.
"""

import gc
import os
import platform
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

import curator
from curator.errors import ClusterError, CuratorError, EngineDied, ShardError
from curator.hiding import describe

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TRACE = re.compile(r'(traceback: )?Traceback \(|File "|[\^~ ]+$')
TaskContra = TypeVar("TaskContra", contravariant=True)
ResultCo = TypeVar("ResultCo", covariant=True)
Task = TypeVar("Task")


class Stage(Protocol[TaskContra, ResultCo]):
    """Work on one kind of task, picklable; opened once per actor."""

    def open(self) -> None:
        """Start what is expensive to start, such as an engine."""
        ...

    def load(self, task: TaskContra) -> Any:
        """Read a task's input; called ahead of `run`, in another thread."""
        ...

    def run(self, task: TaskContra, inputs: Any, on_tokens: Callable[[int], None]) -> ResultCo:
        """Do the work, publish its files, return something small."""
        ...


@dataclass(frozen=True)
class Failure:
    """Why a task failed on one attempt; travels back from the worker.

    Attributes:
        error: what was raised.
        opening: the stage could not even be opened.
        unfit: the process is not to be trusted with another task, and whoever started it should end it.
        worker: host and process where it failed; empty where that is not known.
    """

    error: CuratorError
    opening: bool = False
    unfit: bool = False
    worker: str = ""


@dataclass(frozen=True)
class ShardFailure(Generic[Task]):
    """A task that exhausted its retries."""

    task: Task
    attempts: int
    failure: Failure


def raise_failures(stage: str, failures: Sequence[ShardFailure[Any]], describe: Callable[[Any], str]) -> None:
    """Raise ShardError if shards failed for good; everything else is published and the job can be resumed."""
    if not failures:
        return
    texts = [str(f.failure.error) for f in failures]
    lines = [f"{stage}: {len(failures)} shards failed; run the same command to resume"]
    lines += [
        f"  {describe(f.task)} ({f.attempts} attempts): {brief(text)}" for f, text in zip(failures, texts, strict=True)
    ]
    trace = next(filter(traced, texts), None)
    raise ShardError("\n".join(lines if trace is None else [*lines, "the first traceback:", trace]))


def brief(text: str) -> str:
    """An error on one line: without its traceback, which stands between what failed and why."""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    start = next((number for number, line in enumerate(lines) if _TRACE.match(line)), None)
    if start is None:
        return " ".join(lines)
    return ": ".join(part for part in (" ".join(lines[:start]), lines[-1]) if part)


def traced(text: str) -> bool:
    """Whether an error's text has a traceback."""
    return any(_TRACE.match(line.strip()) for line in text.splitlines())


class StageWorker:
    """Holds one opened stage. `run` is one thread; `status` answers beside it."""

    def __init__(self, folder: str) -> None:
        """Work in the driver's folder, where it exists: relative paths of a spec then mean the same here."""
        if os.path.isdir(folder):
            os.chdir(folder)
        self._stage: Stage[Any, Any] | None = None
        self._generation = -1
        self._ahead: tuple[Any, Future[Any]] | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._tokens = 0
        self._lock = threading.Lock()

    def versions(self) -> dict[str, str]:
        """See the function of this name."""
        return versions()

    def status(self) -> int:
        """Tokens done on the running task."""
        return self._tokens

    def run(self, generation: int, fetch_stage: Callable[[], Stage[Any, Any]], task: Any, upcoming: Any) -> Any:
        """Do one task, and begin to load the one that will probably come next.

        Args:
            generation: a new number means a new stage, which is fetched and opened first.
            fetch_stage: gives the stage.
            task: what to do.
            upcoming: what to load ahead, or None.

        Returns:
            The stage's result, or a `Failure`: errors travel as values.
        """
        self._tokens = 0
        opening = self._generation != generation
        try:
            if opening:
                self._ahead = self._stage = None  # what the last stage held must be gone before the next one starts
                gc.collect()
                stage = fetch_stage()
                stage.open()
                self._stage, self._generation, opening = stage, generation, False
            assert self._stage is not None
            inputs = self._take_ahead(task)
            if upcoming is not None:
                self._ahead = (upcoming, self._reader.submit(self._stage.load, upcoming))
            return self._stage.run(task, inputs, self._count)
        except CuratorError as error:
            unfit = isinstance(error, EngineDied)
            return Failure(error, opening, unfit, worker_name())
        except Exception as error:  # a bug or a passing fault, such as a broken device: the driver decides on retrying
            wrapped = ClusterError(describe(error, over_rows=not opening))
            wrapped.retryable = True
            return Failure(wrapped, opening, unfit=True, worker=worker_name())

    def _take_ahead(self, task: Any) -> Any:
        assert self._stage is not None
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == task:
            return ahead[1].result()
        return self._stage.load(task)

    def _count(self, tokens: int) -> None:
        with self._lock:
            self._tokens += tokens


def versions() -> dict[str, str]:
    """What must be equal on every machine of a run."""
    return {"curator": curator.__version__, "python": platform.python_version(), "pyarrow": pa.__version__}


def worker_name() -> str:
    """Host and process, for messages."""
    return f"{platform.node()}:{os.getpid()}"
