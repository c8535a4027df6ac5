"""A cluster of several nodes on this machine, each a raylet with workers and an object store of its own.

Started as a process, as it holds what a machine would hold. Prints a line of JSON for itself and for every line that it
reads, which adds a node: {"address": .., "raylet": PID}. It ends, with all of them, when its input does.
"""

import json
import os
import sys

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  Ray's own spelling
os.environ["RAY_AUTH_MODE"] = "disabled"

from ray.cluster_utils import Cluster

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


def main() -> None:
    cluster = Cluster()
    settings = {"_system_config": QUICK_TO_NOTICE}
    while True:
        node = cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, **settings)
        settings = {}
        raylet = node.all_processes["raylet"][0].process.pid
        print(json.dumps({"address": cluster.address, "raylet": raylet}), flush=True)
        if not sys.stdin.readline():
            break
    cluster.shutdown()


main()
