"""The hosts of hosts.py: apart from each other and from this machine, and gone with whoever made them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest

HERE = Path(__file__).parent
LONG = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("hosts", sys.argv[1])
hosts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hosts)
with hosts.network(pathlib.Path(sys.argv[2])) as network:
    host = network.add("one")
    host.start("sleep.log", "sleep", "600")
    time.sleep(0.5)
    print(*(host.pid for host in network.hosts), *(process.pid for process in host.processes()), flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def hosts(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    module = load_script(HERE / "hosts.py")
    if missing := module.why_not():
        pytest.skip(missing)
    return module


def test_hosts_hear_each_other_until_one_is_cut_off(hosts: ModuleType, tmp_path: Path) -> None:
    before = set(os.listdir("/sys/class/net"))
    with hosts.network(tmp_path) as network:
        one, two = network.add("one"), network.add("two")
        assert one.run("hostname").stdout == "one\n" and one.run("ls", "/tmp/ray").stdout == ""
        with one.network(), socket.create_server(("0.0.0.0", 7000)):
            with two.network():
                socket.create_connection((one.address, 7000), 5).close()
            network.cut_off(one)
            with two.network(), pytest.raises(TimeoutError):
                socket.create_connection((one.address, 7000), 0.5)
            network.put_back(one)
            with two.network():
                socket.create_connection((one.address, 7000), 5).close()
        assert set(os.listdir("/sys/class/net")) == before


def test_nothing_outlives_a_test_that_is_killed(hosts: ModuleType, tmp_path: Path) -> None:
    words = [sys.executable, "-c", LONG, HERE / "hosts.py", tmp_path]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 3 and all(psutil.pid_exists(pid) for pid in pids), pids
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline_s = time.monotonic() + 5
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline_s, pids
        time.sleep(0.05)
