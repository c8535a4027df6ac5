"""A thousand actors on two cores: the real pool, the real Ray, and workers that only wait.

Each of these workers is an actor's handle to the driver, and a coroutine in one of two real actors to Ray: a task costs
the driver what it costs with real workers (a remote call, its reference, its answer, its part of every wait and poll),
and the worker nothing. What it answers is a real receipt.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import ray

from curator.cluster import Pool, connect
from curator.manifest import ScoreReceipt
from curator.plan import ShardRef
from curator.progress import Silent
from curator.room import Workers
from curator.worker import versions

_HOSTS = 2
_DAEMONS = ("raylet", "gcs_server")


class Host:
    """A process that is many workers, all of which take `seconds` for a shard."""

    def __init__(self, seconds: float, receipt: ScoreReceipt) -> None:
        self._seconds, self._receipt = seconds, receipt

    async def versions(self) -> dict[str, str]:
        """As a worker."""
        return versions()

    async def status(self) -> int:
        """As a worker, somewhere in its shard."""
        return 1_000_000

    async def run(self, generation: int, fetch_stage: Any, task: ShardRef, upcoming: ShardRef | None) -> ScoreReceipt:
        """Wait, and answer with a receipt."""
        await asyncio.sleep(self._seconds)
        return self._receipt.model_copy(update={"number": task.number})


@dataclass(eq=False)
class Handle:
    """One of a host's workers, as `Pool` sees an actor."""

    host: Any

    @property
    def versions(self) -> Any:
        """The host's."""
        return self.host.versions

    @property
    def status(self) -> Any:
        """The host's."""
        return self.host.status

    @property
    def run(self) -> Any:
        """The host's."""
        return self.host.run


class Crowd(Pool):
    """The pool as it is, but for where its actors come from."""

    def __init__(self, hosts: list[Any]) -> None:
        super().__init__(Workers(), retries=3)
        self._remote = self
        self._hosts = itertools.cycle(hosts)

    def options(self, **_: Any) -> "Crowd":
        """What a worker takes does not matter here."""
        return self

    def remote(self, *_: Any) -> Handle:
        """One more worker."""
        return Handle(next(self._hosts))


@dataclass(frozen=True)
class Nothing:
    """The stage that nobody opens."""

    def open(self) -> None:
        """Never called."""

    def load(self, task: ShardRef) -> None:
        """Never called."""

    def run(self, task: ShardRef, inputs: None, on_tokens: Callable[[int], None]) -> None:
        """Never called."""


def hand_out(shards: list[ShardRef], workers: int, seconds: float, receipt: ScoreReceipt) -> dict[str, float]:
    """Map over all shards; CPU seconds of the driver's process, and of Ray's daemons beside it."""
    with connect("local"):
        groups = {"status": 1000}
        hosts = [
            ray.remote(num_cpus=0, max_concurrency=2 * workers, concurrency_groups=groups)(Host).remote(
                seconds, receipt
            )
            for _ in range(_HOSTS)
        ]
        pool = Crowd(hosts)
        pool.grow(workers)
        done = list[int]()
        before, daemons, started_s = time.process_time(), _daemons_s(), time.monotonic()
        failures = pool.map(
            Nothing(),
            shards,
            reporter=Silent(),
            tokens_of=lambda r: r.tokens,
            on_result=lambda r: done.append(r.number),
        )
        measured = {
            "driver_s": time.process_time() - before, "daemons_s": _daemons_s() - daemons,
            "wall_s": time.monotonic() - started_s,
        }  # fmt: skip
        assert not failures and sorted(done) == [shard.number for shard in shards], "a shard was lost, or done twice"
    return measured


def _daemons_s() -> float:
    children = psutil.Process().children(recursive=True)
    times = [child.cpu_times() for child in children if child.name() in _DAEMONS]
    return sum(one.user + one.system for one in times)
