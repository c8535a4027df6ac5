"""Work on shards over Ray actors; the library's only import of ray.

One actor is one opened stage (for scoring: one engine) that pulls shards, loads the next one's input while it works
on the current, and reports tokens as it goes. Plain actors, not Ray Data, because a shard must be published once
whatever is retried or killed (Ray Data's writes duplicate on resubmission and drop errored blocks).

A shard that fails is tried again up to `retries` times, on whichever actor is free; the others go on. Ray restarts no
actor, as calls to one that waits for room would wait with it: a seat whose actor died gets a new one, which is given
a shard once it answers. So a machine that is lost for good costs its seats, and holds no shard. An actor whose engine
died or drifted, or that has been silent for long, is ended and replaced as well.
Errors that no retry can mend (a full disk, a bad tokenizer) end the map at once.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import curator
from curator import remains
from curator.errors import ClusterError
from curator.progress import Reporter
from curator.room import Workers, count_workers, grows_to
from curator.shard_map import Seat, ShardMap, failed, pause_s
from curator.worker import ShardFailure, Stage, StageWorker, brief, versions

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network calls that nobody asked for
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.exceptions

_FAILED_STARTS = 5
"""So many in a row, and twice as many as there are seats, mean that no worker will ever come up."""
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


class Pool:
    """Actors of one kind, which run one stage after another; the crew of `curator.shard_map`."""

    def __init__(self, workers: Workers, retries: int) -> None:
        self._remote = ray.remote(
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"status": 1},
        )(StageWorker)
        variables = {"OMP_NUM_THREADS": str(workers.cpus), "TOKENIZERS_PARALLELISM": "false"} | _ENVIRONMENT
        self._environment = {"env_vars": variables}
        self.workers = workers
        self.needs = f"{workers.cpus} CPUs" + (f" and {workers.gpus:g} GPUs" if workers.gpus else "")
        self.seats: list[Seat] = []
        self._retries = retries
        self._generation = 0
        self._fetch_stage: Callable[[], Any] | None = None
        self._failed_starts = 0

    def grow(self, count: int) -> None:
        """Start actors until there are `count`; they need not be up when this returns."""
        self.seats += [Seat() for _ in range(count - len(self.seats))]
        self.fill()

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
        self._fetch_stage = partial(ray.get, ray.put(stage))  # once per actor: a plan of 100,000 shards takes a second
        return ShardMap(self, self._retries, tasks, reporter, tokens_of, on_result).drive()

    def close(self) -> None:
        """End the actors and free what they hold."""
        for seat in self.seats:
            self.vacate(seat)

    def fill(self) -> None:
        """Start an actor in every empty seat whose time has come."""
        for seat in self.seats:
            if seat.actor is None and time.monotonic() >= seat.start_s:
                seat.actor = self._remote.options(runtime_env=self._environment).remote(os.getcwd())
                self.greet(seat)

    def greet(self, seat: Seat) -> None:
        """Ask an actor for its versions, which shows that it lives, too."""
        seat.greeting = seat.actor.versions.remote()

    def admit(self, seat: Seat) -> bool:
        """Take the answer to a greeting: whether the actor is up; one that is not leaves its seat.

        Raises:
            ClusterError: it has other versions than the driver, or no actor comes up at all.
        """
        try:
            theirs, mine = ray.get(seat.greeting), versions()
        except ray.exceptions.RayError as error:
            self._note_failed_start(seat, error)
            return False
        if theirs != mine:
            raise ClusterError(f"a worker has {theirs}, the driver {mine}; install the same versions everywhere")
        seat.greeting, seat.failed_starts, self._failed_starts = None, 0, 0
        return True

    def _note_failed_start(self, seat: Seat, error: Exception) -> None:
        """Pause, longer each time: what dies while it starts, again and again, must not keep a machine busy."""
        self.vacate(seat)
        seat.failed_starts += 1
        seat.start_s = time.monotonic() + pause_s(seat.failed_starts)
        self._failed_starts += 1
        if self._failed_starts >= max(_FAILED_STARTS, 2 * len(self.seats)):
            raise ClusterError(
                f"{self._failed_starts} workers in a row died before they were up, the last with: {brief(str(error))}; "
                "see Ray's logs on its machine, /tmp/ray/session_latest/logs"
            ) from error

    def run(self, seat: Seat, task: Any, upcoming: Any) -> Any:
        """Hand a task to an actor; the reference to its outcome."""
        return seat.actor.run.remote(self._generation, self._fetch_stage, task, upcoming)

    def ask(self, seat: Seat) -> Any:
        """Ask an actor how far it is."""
        return seat.actor.status.options(concurrency_group="status").remote()

    def vacate(self, seat: Seat) -> None:
        """End the actor, in whatever state it is."""
        if seat.actor is not None:
            ray.kill(seat.actor)
        seat.actor = seat.greeting = seat.asked = None
        seat.tokens = 0

    def answered(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """Wait for the first, and give all that are there."""
        if not references or not ray.wait([*references], num_returns=1, timeout=timeout_s)[0]:
            return []
        return list(ray.wait([*references], num_returns=len(references), timeout=0)[0])

    def answer(self, reference: Any) -> Any:
        """What was answered; a `Failure` if the actor died, or its answer was lost with its machine."""
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # not by its own doing: what it was sent could not be read
            return failed(f"the worker could not take the shard: {error}", opening=True)
        except ray.exceptions.RayError as error:
            return failed(f"the worker died while it held the shard: {brief(str(error))}")


class Cluster:
    """A connection to Ray. Stages that take the same resources share one pool, which spares starting processes."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._pool: Pool | None = None
        self._resources: dict[str, float] = {}

    def pool(self, workers: Workers, tasks: int) -> Pool:
        """Actors for up to `tasks` tasks.

        Counted by the most that the cluster has had: a machine that was lost is no reason to fail, and may come back;
        or, under an autoscaler, by the most that it may have: actors that wait for room are what makes it grow.
        """
        for name, amount in (*ray.cluster_resources().items(), *grows_to().items()):
            self._resources[name] = max(amount, self._resources.get(name, 0))
        count = count_workers(workers, tasks, self._resources)
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
        context = ray.init(address=address, **options)
    except Exception as error:  # Ray raises some as bare Exception, such as that its node took too long to start
        raise ClusterError(f"cannot reach Ray at {address!r}: {error}; check run.address and RAY_ADDRESS") from error
    own = str(context.address_info["session_dir"]) if address == "local" else None
    try:
        yield
    finally:
        left = remains.family(own) if own else []
        try:
            ray.shutdown()
        finally:
            remains.end(left + remains.strays(own) if own else [])
