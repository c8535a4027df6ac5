"""A Ray cluster with token over several hosts, the service beside it, and a client that sends it the smoke job.

The head has no processor to give, so that all work crosses the network; two hosts have one each; the service and its
client have hosts of their own. What is one is the disk, as a shared volume would be.
"""

import json
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil

SMOKE = Path(__file__).parents[2] / "deploy" / "smoke.py"
JOB = ("--rows", "1500", "--shard-tokens", "2000")
EARLY = 30
"""Of about 70 shards."""
AT_WORK = "ray::StageWorker.run"
NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3",
}  # fmt: skip
"""Of the head: who is silent for three checks of two seconds, a second apart, is dead; by default it takes a minute."""
HEARTBEAT_S, STALLED_S = 3, 10
"""Of the service."""


@dataclass
class Cluster:
    """The hosts, and a client that asks from its own."""

    network: Any
    folder: Path
    token: str
    hosts: dict[str, Any] = field(default_factory=dict)
    key: str = ""

    def ray(self, name: str, *options: str, **variables: str) -> subprocess.Popen[bytes]:
        host = self.hosts[name]
        fixed = [f"--node-ip-address={host.address}", "--object-store-memory=104857600", *options]
        return host.start(f"{name}.log", "ray", "start", "--block", *fixed, **variables)

    def join(self, name: str) -> subprocess.Popen[bytes]:
        return self.ray(name, f"--address={self.gcs}", "--num-cpus=1")

    @property
    def gcs(self) -> str:
        return f"{self.hosts['head'].address}:6379"

    @property
    def jobs_api(self) -> str:
        return f"http://{self.hosts['head'].address}:8265"

    @property
    def service(self) -> str:
        return f"http://{self.hosts['service'].address}:8000"

    def ask(self, url: str, key: str = "", **parameters: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with self.hosts["client"].network():
            return httpx.get(url, params=parameters, headers=headers, timeout=30)

    def job(self, job: str, what: str) -> list[dict[str, Any]]:
        answer = self.ask(f"{self.service}/v1/jobs/{job}/{what}", self.key, limit=1000)
        return list(answer.raise_for_status().json()["data"])

    def attempts(self, job: str) -> tuple[int, int]:
        """How often it was begun, and how often somebody took it over."""
        found = self.ask(f"{self.service}/v1/jobs/{job}", self.key).raise_for_status().json()
        return found["attempt"], found["epoch"]

    def digests(self, job: str) -> list[str]:
        return [shard["sha256"] for shard in self.job(job, "shards")]

    def nodes(self) -> list[tuple[str, str]]:
        """Every raylet that there has been, and whether it is alive."""
        with suppress(httpx.TransportError, KeyError, ValueError):
            listed = self.ask(f"{self.jobs_api}/nodes", self.token, view="summary").json()["data"]["summary"]
            return sorted((node["raylet"]["nodeManagerAddress"], node["raylet"]["state"]) for node in listed)
        return []

    def until(self, look: Callable[[], Any], what: str, within_s: float = 120) -> float:
        """Wait for something; how long that took."""
        began_s = time.monotonic()
        while not look():
            assert time.monotonic() < began_s + within_s, f"not within {within_s} s: {what}; {self.network.said()}"
            time.sleep(0.02)
        return time.monotonic() - began_s

    def all_alive(self, count: int) -> None:
        self.until(lambda: [state for _, state in self.nodes()].count("ALIVE") == count, f"{count} nodes")

    def smoke(self, log: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, SMOKE, self.service, *JOB]
        return self.hosts["client"].start(log, *command, CURATOR_API_KEY=self.key)

    def submitted(self, log: str) -> tuple[subprocess.Popen[bytes], str]:
        """Start the smoke job; with its name, as soon as it has one."""
        smoke, told = self.smoke(log), self.network.logs / log
        self.until(lambda: "submitted job_" in told.read_text(), "the job is submitted")
        return smoke, re.findall(r"submitted (job_\w+)", told.read_text())[0]

    def passed(self, smoke: subprocess.Popen[bytes], log: str) -> str:
        """The smoke job has ended well: its name."""
        assert smoke.wait(180) == 0, self.network.said()
        told = (self.network.logs / log).read_text()
        assert told.count("ok ") == 9 and "FAIL" not in told, told
        return str(re.findall(r"submitted (job_\w+)", told)[0])

    def receipts(self, job: str) -> list[Path]:
        """Of every shard that is published, in every stage."""
        return sorted((self.folder / "data" / "jobs" / job).rglob("_receipts/*.json"))

    def early(self, job: str) -> bool:
        """Whether the stage that is under way has most of its shards before it."""
        published = Counter(receipt.parent for receipt in self.receipts(job))
        return any(count <= EARLY for count in published.values())

    def trouble(self, job: str) -> list[str]:
        """What the driver said of attempts that failed."""
        return [line["text"] for line in self.job(job, "logs") if "trying again" in line["text"]]

    def done_by(self, job: str) -> set[str]:
        """The processes that have published a shard, each with its host's name."""
        return {json.loads(receipt.read_text())["worker"] for receipt in self.receipts(job)}

    def stop_at_work(self, name: str, when: Callable[[], bool] = lambda: True) -> psutil.Process:
        """Stop a host's worker while it holds a shard."""
        found: list[psutil.Process] = []

        def look() -> bool:
            for process in self.hosts[name].processes():
                with suppress(psutil.Error):
                    if (process.cmdline() or [""])[0].startswith(AT_WORK):
                        process.send_signal(signal.SIGSTOP)
                        if when():
                            found.append(process)
                            return True
                        process.send_signal(signal.SIGCONT)
            return False

        self.until(look, f"the worker of the {name} host holds a shard")
        return found[0]

    def has_raylet(self, name: str) -> bool:
        """Whether anything of Ray runs on a host."""
        for process in self.hosts[name].processes():
            with suppress(psutil.Error):
                if re.search("raylet|^ray::", (process.cmdline() or [""])[0]):
                    return True
        return False


@contextmanager
def started(hosts: ModuleType, folder: Path) -> Iterator[Cluster]:
    """A head, two hosts that work, a service and a client; `hosts` is the module of that name."""
    (folder / "logs").mkdir()
    secret = folder / "token"
    secret.touch(0o600)
    secret.write_text(secrets.token_hex(32))
    variables = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(secret), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with hosts.network(folder / "logs", **variables) as network:
        found = Cluster(network, folder, secret.read_text())
        found.hosts = {name: network.add(name) for name in ("head", "first", "second", "service", "client")}
        found.ray("head", "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--num-cpus=0", **NOTICE)
        found.hosts["service"].start(
            "service.log", "curator", "serve", "--host", found.hosts["service"].address, "--port", "8000",
            "--data-dir", folder / "data", CURATOR_LAUNCHER="ray", CURATOR_RAY_ADDRESS=found.jobs_api,
            CURATOR_HEARTBEAT_S=str(HEARTBEAT_S), CURATOR_STALLED_S=str(STALLED_S),
        )  # fmt: skip
        found.all_alive(1)
        for name in ("first", "second"):
            found.join(name)
        log = folder / "logs" / "service.log"
        found.until(lambda: "Listening on " in log.read_text(), "the service is up")
        found.key = re.findall(r"API key: (\S+)", log.read_text())[0]
        found.all_alive(3)
        yield found
