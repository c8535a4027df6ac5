"""A local Ray ends with the process that started it, even if its node is slow to stop."""

import subprocess
import sys
import textwrap

import pytest

from curator import remains

pytestmark = pytest.mark.slow

SLOW_TO_STOP = """
    import psutil
    from ray._private.node import Node
    from curator import cluster

    def stop_slowly(node, **how):
        next(process for process in family if process.name() == "raylet").suspend()
        stop(node, **how)

    stop, Node.kill_all_processes = Node.kill_all_processes, stop_slowly
    with cluster.connect("local"):
        family = psutil.Process().children(recursive=True)
    running = [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    print(len(family), [process.cmdline() for process in running])
"""


@pytest.mark.alone
def test_a_node_that_is_slow_to_stop_leaves_no_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SLOW_TO_STOP)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    count, _, running = done.stdout.strip().partition(" ")
    assert int(count) >= 4 and running == "[]", done.stdout  # server of the cluster, raylet, two agents of its


def test_only_children_of_the_session_are_ended() -> None:
    names = ("s_1", "s_2", "/python/ray/worker.py s_2")
    sleepers = [
        subprocess.Popen([sys.executable, "-c", "input()", *name.split()], stdin=subprocess.PIPE) for name in names
    ]
    try:
        assert [process.pid for process in remains.strays("s_2")] == [sleepers[2].pid]
        mine = remains.family("s_1")
        assert [process.pid for process in mine] == [sleepers[0].pid]
        remains.end(mine)
        assert not mine[0].is_running()
        assert sleepers[1].poll() is None
    finally:
        for sleeper in sleepers:
            sleeper.communicate(b"\n")
