"""How many workers a cluster has room for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from curator.errors import ClusterError


@dataclass(frozen=True)
class Workers:
    """How many actors to use, and what each one takes."""

    count: int | Literal["auto"] = "auto"
    most: int | None = None
    cpus: int = 1
    gpus: float = 0


def count_workers(workers: Workers, tasks: int, resources: Mapping[str, float]) -> int:
    """How many actors to start: as asked, else as many as the cluster holds; never more than tasks.

    Args:
        workers: what is asked for.
        tasks: how many tasks there are.
        resources: the cluster's CPUs and GPUs, as Ray names them.

    Raises:
        ClusterError: the cluster has less than was asked for, or less than one worker needs.
    """
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
