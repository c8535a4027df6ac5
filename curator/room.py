"""How many workers a cluster has room for."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from curator.errors import ClusterError

GROWS_TO = "CURATOR_GROWS_TO"
"""Variable of an autoscaled cluster's head: what it may grow to, as {"CPU": 40, "GPU": 8}. Ray tells nobody."""


@dataclass(frozen=True)
class Workers:
    """How many actors to use, and what each one takes."""

    count: int | Literal["auto"] = "auto"
    most: int | None = None
    cpus: int = 1
    gpus: float = 0


def grows_to() -> dict[str, float]:
    """What the cluster may grow to, by the environment; nothing if it does not grow.

    Raises:
        ClusterError: the variable is no JSON object of numbers.
    """
    text = os.environ.get(GROWS_TO)
    if not text:
        return {}
    try:
        return {str(name): float(amount) for name, amount in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise ClusterError(f'{GROWS_TO} is {text!r}; write what the cluster may have, as {{"CPU": 40}}') from None


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
