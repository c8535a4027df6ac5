"""Work on shards over Ray actors; the library's only import of ray.

One actor is one opened stage (for scoring: one engine) that pulls shards, loads the next one's input while it works
on the current, and reports tokens as it goes. Plain actors, not Ray Data, because a shard must be published once
whatever is retried or killed (Ray Data's writes duplicate on resubmission and drop errored blocks).

A shard that fails is tried again up to `retries` times, on whichever actor is free; the others go on. An actor that
dies is restarted by Ray; one whose engine died or drifted says so and is made to leave, so that it starts afresh.
Errors that no retry can mend (a full disk, a bad tokenizer) end the map at once.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import curator
from curator import interrupts
from curator.errors import ClusterError
from curator.progress import Reporter
from curator.worker import Failure, ShardFailure, Stage, StageWorker, versions

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network calls that nobody asked for
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.exceptions

_POLL_S = 0.5
_ASKED_PER_S = 100  # workers, how far they are: a thousand of them must not keep the driver busy with that
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",  # freed columns go back to the system: a worker's peak is a shard's, not a sum
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "OMP_WAIT_POLICY": "passive",
}
_OBJECT_STORE_BYTES = 128 << 20

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """How many actors to use, and what each one takes."""

    count: int | Literal["auto"] = "auto"
    most: int | None = None
    cpus: int = 1
    gpus: float = 0


class Pool:
    """Actors of one kind, which run one stage after another."""

    def __init__(self, workers: Workers, retries: int) -> None:
        self._remote = ray.remote(
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=-1,
            max_task_retries=0,
            concurrency_groups={"status": 1},
        )(StageWorker)
        variables = {"OMP_NUM_THREADS": str(workers.cpus), "TOKENIZERS_PARALLELISM": "false"} | _ENVIRONMENT
        self._environment = {"env_vars": variables}
        self.workers = workers
        self._actors: list[Any] = []
        self._retries = retries
        self._generation = 0

    def grow(self, count: int) -> None:
        """Start actors until there are `count`, and check that they run the driver's versions."""
        missing = range(count - len(self._actors))
        started = [self._remote.options(runtime_env=self._environment).remote(os.getcwd()) for _ in missing]
        self._actors += started
        mine = versions()
        for theirs in ray.get([actor.versions.remote() for actor in started]):
            if theirs != mine:
                raise ClusterError(f"a worker has {theirs}, the driver {mine}; install the same versions everywhere")

    def map(
        self,
        stage: Stage[Task, Result],
        tasks: Sequence[Task],
        *,
        reporter: Reporter,
        tokens_of: Callable[[Result], int],
        on_result: Callable[[Result], None],
    ) -> list[ShardFailure[Task]]:
        """Run a stage over all tasks, in any order; results arrive as they are ready.

        Args:
            stage: what to run; pickled to every actor.
            tasks: picklable and comparable; one is the unit of retry.
            reporter: hears of tokens and shards done.
            tokens_of: a result's tokens, for progress.
            on_result: called in the driver for every finished task.

        Returns:
            The tasks that failed on every attempt.

        Raises:
            CuratorError: an error that no retry can mend.
        """
        self._generation += 1
        return _Run(self._actors, self._generation, self._retries, stage, tasks, reporter, tokens_of, on_result).drive()

    def close(self) -> None:
        """End the actors and free what they hold."""
        for actor in self._actors:
            ray.kill(actor)


class _Run(Generic[Task, Result]):
    """One `Pool.map`: the queue, who works on what, and what to do about failures."""

    def __init__(
        self,
        actors: list[Any],
        generation: int,
        retries: int,
        stage: Stage[Task, Result],
        tasks: Sequence[Task],
        reporter: Reporter,
        tokens_of: Callable[[Result], int],
        on_result: Callable[[Result], None],
    ) -> None:
        self.generation, self.retries, self.stage = generation, retries, stage
        self.reporter, self.tokens_of, self.on_result = reporter, tokens_of, on_result
        self.queue: deque[tuple[Task, int]] = deque((task, 1) for task in tasks)
        self.fetch_stage = partial(ray.get, ray.put(stage))  # once per actor: a plan of 100,000 shards takes a second
        self.idle = list(actors)
        self.running: dict[Any, tuple[Any, Task, int]] = {}
        self.leaving: dict[Any, Any] = {}
        self.status: dict[Any, Any] = {}
        self.live_tokens: dict[Any, int] = {}
        self.hints: dict[Any, tuple[Task, int]] = {}  # by actor, what it loads ahead; not in the queue
        self.next_poll_s = 0.0
        self.failures: list[ShardFailure[Task]] = []
        self.tasks_done = self.tokens_done = 0

    def drive(self) -> list[ShardFailure[Task]]:
        while self.queue or self.hints or self.running or self.leaving:
            interrupts.check()
            while (self.queue or self.hints) and self.idle:
                self._assign(self.idle.pop(0))
            ready, _ = ray.wait([*self.running, *self.leaving], num_returns=1, timeout=_POLL_S)
            for reference in ready:
                if reference in self.leaving:  # it is gone, and what it is given next waits for the fresh process
                    self.idle.append(self.leaving.pop(reference))
                else:
                    self._collect(reference)
            self._poll()
            tokens = self.tokens_done + sum(self.live_tokens.values())
            self.reporter.update(self.tasks_done, tokens, len(self.running))
        return self.failures

    def _assign(self, actor: Any) -> None:
        """Give an actor the shard that it has loaded ahead, else the queue's first, else one that another loads."""
        own = self.hints.pop(actor, None)
        task, attempt = own or (self.queue.popleft() if self.queue else self.hints.popitem()[1])
        upcoming = self.hints.setdefault(actor, self.queue.popleft())[0] if self.queue else None
        reference = actor.run.remote(self.generation, self.fetch_stage, task, upcoming)
        self.running[reference] = (actor, task, attempt)

    def _collect(self, reference: Any) -> None:
        actor, task, attempt = self.running.pop(reference)
        self.live_tokens.pop(actor, None)
        self.status.pop(actor, None)
        outcome = self._outcome(reference)
        if isinstance(outcome, Failure) and outcome.unfit:
            self.leaving[actor.leave.remote()] = actor
        else:
            self.idle.append(actor)
        if not isinstance(outcome, Failure):
            self.tasks_done += 1
            self.tokens_done += self.tokens_of(outcome)
            self.on_result(outcome)
        elif not outcome.error.retryable or (outcome.opening and not self.tasks_done):
            raise outcome.error
        elif attempt <= self.retries:
            self.reporter.say(f"attempt {attempt} of {self.retries + 1} failed, trying again: {outcome.error}")
            self.queue.append((task, attempt + 1))
        else:
            self.failures.append(ShardFailure(task, attempt, outcome))

    def _outcome(self, reference: Any) -> Any:
        """What an actor said of its task: a result or a failure; its death is one."""
        try:
            return ray.get(reference)
        except ray.exceptions.RayActorError as error:
            died = ClusterError(f"the worker died while it held the shard: {error}".strip())
            died.retryable = True
            return Failure(died, "")

    def _poll(self) -> None:
        """Ask every busy actor how far it is, without waiting for the answer; the more there are, the less often."""
        now_s = time.monotonic()
        if now_s < self.next_poll_s:
            return
        self.next_poll_s = now_s + max(_POLL_S, len(self.running) / _ASKED_PER_S)
        asked = [reference for reference in self.status.values() if reference is not None]
        answered = set(ray.wait(asked, num_returns=len(asked), timeout=0)[0]) if asked else set()
        for actor, _, _ in self.running.values():
            asked_of = self.status.get(actor)
            if asked_of is None:
                self.status[actor] = actor.status.options(concurrency_group="status").remote()
            elif asked_of in answered:
                self.status[actor] = None
                try:
                    self.live_tokens[actor] = ray.get(asked_of)
                except ray.exceptions.RayActorError:
                    self.live_tokens[actor] = 0


class Cluster:
    """A connection to Ray. Stages that take the same resources share one pool, which spares starting processes."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._pool: Pool | None = None

    def pool(self, workers: Workers, tasks: int) -> Pool:
        """Actors for up to `tasks` tasks."""
        count = count_workers(workers, tasks)
        if self._pool is None or self._pool.workers != workers:
            self.close()
            self._pool = Pool(workers, self._retries)
        self._pool.grow(count)
        return self._pool

    def close(self) -> None:
        """End the actors."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


@contextmanager
def connect(address: str | None, retries: int = 0) -> Iterator[Cluster]:
    """Join the cluster at `address` (or `RAY_ADDRESS`), or start a local one that ends with this process.

    A process that has joined a cluster already stays with it. A cluster elsewhere gets this package by `runtime_env`,
    so that workers run the same code.
    """
    cluster = Cluster(retries)
    with _joined(address):
        try:
            yield cluster
        finally:
            cluster.close()


@contextmanager
def _joined(address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    else:
        options["runtime_env"] = {"py_modules": [os.path.dirname(curator.__file__)]}
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises some as bare Exception, such as that its node took too long to start
        raise ClusterError(f"cannot reach Ray at {address!r}: {error}; check run.address and RAY_ADDRESS") from error
    try:
        yield
    finally:
        ray.shutdown()


def count_workers(workers: Workers, tasks: int) -> int:
    """How many actors to start: as asked, else as many as the cluster holds; never more than tasks."""
    resources = ray.cluster_resources()
    fits = int(resources.get("CPU", 1) // workers.cpus) if workers.cpus else tasks
    if workers.gpus:
        gpus = resources.get("GPU", 0)
        if gpus < workers.gpus:
            raise ClusterError(
                f"a worker needs {workers.gpus:g} GPUs and the cluster has {gpus:g}; lower models.*.gpus"
            )
        fits = min(fits, int(gpus / workers.gpus))
    if fits < 1:
        have = resources.get("CPU", 0)
        raise ClusterError(f"a worker needs {workers.cpus} CPUs and the cluster has {have:g}; lower threads_per_worker")
    wanted = min(fits, workers.most or fits) if workers.count == "auto" else workers.count
    if wanted > fits:
        raise ClusterError(f"run.workers is {wanted} and the cluster has room for {fits}; lower it or use auto")
    return max(1, min(wanted, tasks))
