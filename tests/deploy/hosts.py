"""Hosts that one machine can have: each with its own network, processes, name, `/tmp/ray` and `/dev/shm`; one disk.

A host is an `unshare` whose first process reads from us. It ends when we do, however we do, and the kernel takes its
processes, mounts and network with it: nothing has a name outside, and nothing is left behind. The bridge is in a host
of its own, as the machine's firewall may forward nothing between strangers (Docker's does not).
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
_NETWORK = "10.177.0"
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_FIRST_PROCESS = """
set -e
trap "" CHLD                  # nobody else waits for orphans
echo "$1" > /proc/sys/kernel/hostname
mount -t tmpfs -o size=512m tmpfs /tmp/ray
mount -t tmpfs -o size=512m tmpfs /dev/shm
ip link set lo up
echo up
exec cat
"""
_TRY = """
mount -t tmpfs tmpfs /dev/shm
ip link add bridge type bridge
ip link add one type veth peer name two
"""


def why_not() -> str | None:
    """What this machine lacks for hosts, if anything."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"no {program}: install util-linux and iproute2"
    if os.geteuid() != 0:
        return "namespaces with a network between them need root"
    spaces = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
    tried = subprocess.run([*spaces, "sh", "-ec", _TRY], capture_output=True, text=True)
    return f"hosts cannot be made here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Host:
    """One host; `pid` is its first process, as seen from here."""

    name: str
    number: int
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    logs: Path
    pid: int = 0
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{_NETWORK}.{self.number}"

    def command(self, *words: Any) -> list[str]:
        """What runs a command there."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--net", "--pid", "--", *map(str, words)]

    def start(self, log: str, *words: Any, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command there; what it prints goes to a file of this name in `logs`."""
        with (self.logs / log).open("ab") as file:
            self.running.append(
                subprocess.Popen(
                    self.command(*words), stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                    env=self.environment | variables,
                )
            )  # fmt: skip
        return self.running[-1]

    def run(self, *words: Any, within_s: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end. A variable that is empty is not set."""
        environment = {key: value for key, value in (self.environment | variables).items() if value}
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=within_s, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """All that runs there but the first process."""
        found = []
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if process.pid != self.pid and os.readlink(f"/proc/{process.pid}/ns/pid") == space:
                    found.append(process)
        return found

    @contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that this thread opens within are those of the host."""
        with Path("/proc/thread-self/ns/net").open() as mine, Path(f"/proc/{self.pid}/ns/net").open() as theirs:
            _set_network(theirs.fileno())
            try:
                yield
            finally:
                _set_network(mine.fileno())

    def end(self) -> None:
        """SIGKILL to all of it, and wait for that."""
        self.process.kill()  # unshare, whose child is killed with it
        for process in (self.process, *self.running):
            process.wait()


def _set_network(file: int) -> None:
    if _LIBC.setns(file, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@dataclass
class Network:
    """Hosts on one bridge, with these variables in their environment."""

    logs: Path
    variables: dict[str, str]
    stack: ExitStack
    hosts: list[Host] = field(default_factory=list)

    def add(self, name: str) -> Host:
        """Another host; the first one is the switch."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CURATOR_"))}
        kept |= {"PATH": f"{BIN}:{os.environ['PATH']}"} | self.variables
        command = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        process = subprocess.Popen(
            [*command, "sh", "-c", _FIRST_PROCESS, "sh", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        host = Host(name, len(self.hosts) + 1, process, kept, self.logs)
        self.stack.callback(host.end)
        assert process.stdout is not None and process.stdin is not None
        self.stack.callback(process.stdin.close)
        self.stack.callback(process.stdout.close)
        assert process.stdout.readline() == b"up\n", f"{name} did not come up"
        host.pid = psutil.Process(process.pid).children()[0].pid
        self.hosts.append(host)
        if host.number == 1:
            self._switch("link", "add", "bridge", "type", "bridge")
            self._switch("link", "set", "bridge", "up")
        else:
            self._plug_in(host)
        return host

    def _plug_in(self, host: Host) -> None:
        port = f"port{host.number}"
        self._switch("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._switch("link", "set", port, "master", "bridge", "up")
        for words in (["addr", "add", f"{host.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            subprocess.run(host.command("ip", *words), check=True, capture_output=True)

    def _switch(self, *words: str) -> None:
        enter = ["nsenter", f"--target={self.hosts[0].pid}", "--net", "--"]  # its network alone: process ids are ours
        subprocess.run([*enter, "ip", *words], check=True, capture_output=True)

    def cut_off(self, host: Host) -> None:
        """Nothing passes to or from it any more, and nobody is told."""
        self._switch("link", "set", f"port{host.number}", "down")

    def put_back(self, host: Host) -> None:
        self._switch("link", "set", f"port{host.number}", "up")

    def said(self) -> dict[str, str]:
        """All logs, for whoever has to find out what went wrong."""
        return {path.name: path.read_text(errors="replace")[-5000:] for path in self.logs.glob("*.log")}


@contextmanager
def network(logs: Path, **variables: str) -> Iterator[Network]:
    """A switch without hosts; all that is added ends with it."""
    if not Path("/tmp/ray").exists():
        Path("/tmp/ray").mkdir()
        Path("/tmp/ray").chmod(0o777)  # as Ray itself makes it
    with ExitStack() as stack:
        found = Network(logs, variables, stack)
        found.add("switch")
        yield found
