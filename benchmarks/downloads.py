"""Download speed of one stream beside nginx, the service's memory meanwhile, and downloads that are cut and resumed.

    python benchmarks/downloads.py [--gib 1] [--cuts 1000]

A real `curator serve` and, if it is installed, a real nginx (one worker, with sendfile and with buffers of 1 MiB) give
out the same file of random bytes, from the page cache, to the same client over loopback, turn by turn. Then a smaller
shard is fetched again and again, each time cut at a random offset and resumed with Range and If-Range, and its digest
compared.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.client import HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from curator.job_directory import JobDirectory, JobRecord, new_id, now
from curator.manifest import CuratedReceipt, ShardFolder
from curator.report.statistics import ShardStatistics

RESULTS = Path(__file__).parent / "results" / "downloads.json"
ROUNDS = 7
CUT_SHARD_BYTES = 64 << 20
LIMIT_MB_S = 400
NGINX_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{ listen 127.0.0.1:{sendfile}; root {root}; sendfile on; tcp_nopush on; }}
    server {{ listen 127.0.0.1:{buffers}; root {root}; sendfile off; output_buffers 2 1m; }}
}}
"""


class Source(NamedTuple):
    """A file of a server, and the header that opens it."""

    port: int
    path: str
    key: str = ""

    def ask(self, **headers: str) -> tuple[socket.socket, HTTPResponse]:
        """Send a GET; the body is still to be read."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        headers |= {"Host": "localhost", "Connection": "close", "Authorization": f"Bearer {self.key}"}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([f"GET {self.path} HTTP/1.1", *lines, "", ""]).encode())
        response = HTTPResponse(connection)
        response.begin()
        return connection, response


def publish_shards(data_dir: Path, sizes: list[int]) -> tuple[str, ShardFolder]:
    """A job directory with shards of random bytes and sound receipts, as a run leaves them."""
    job_id = new_id("job")
    directory = JobDirectory(data_dir / "jobs" / job_id)
    folder = ShardFolder(root=str(directory.path / "output"), name="curated")
    record = JobRecord(
        id=job_id, kind="curate", tenant="default", name="downloads", spec={}, output=folder.root, created_at=now()
    )
    directory.create(record)
    for number, size_bytes in enumerate(sizes):
        path, digest = Path(folder.uri(number)), hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, size_bytes, 1 << 20):
                block = os.urandom(min(1 << 20, size_bytes - start))
                digest.update(block)
                file.write(block)
        receipt = CuratedReceipt(
            number=number, sha256=digest.hexdigest(), bytes=size_bytes, rows=0, tokens=0, seconds=0, worker="",
            peak_memory_bytes=0, kept_tokens=0, weight_sum=0, statistics=ShardStatistics(),
        )  # fmt: skip
        written = Path(folder.root, folder.receipt_file(number))
        written.parent.mkdir(exist_ok=True)
        written.write_text(receipt.model_dump_json())
    return job_id, folder


@contextmanager
def run_service(data_dir: Path) -> Iterator[tuple[psutil.Process, int, str]]:
    """`curator serve` that starts no jobs; its process, port and API key."""
    command = [str(Path(sys.executable).with_name("curator")), "serve", "--port", "0", "--data-dir", str(data_dir)]
    environment = os.environ | {"CURATOR_MAX_RUNNING_JOBS": "0"}
    with subprocess.Popen(
        [*command, "--reindex"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = dict(line.split(" http" if "http" in line else ": ", 1) for line in _until_listening(process.stdout))
        port = urlsplit("http" + said["Listening on"].strip()).port
        assert port is not None
        yield psutil.Process(process.pid), port, said["API key"].strip()
        process.terminate()


def _until_listening(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith(("API key: ", "Listening on ")):
            yield line
        if line.startswith("Listening on "):
            return
    raise SystemExit("the service did not start")


@contextmanager
def run_nginx(program: str, root: Path, folder: Path) -> Iterator[dict[str, int]]:
    """A real nginx over a folder; its ports, by how it sends."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = {"sendfile": one.getsockname()[1], "buffers": other.getsockname()[1]}
    (folder / "nginx.conf").write_text(NGINX_CONFIG.format(folder=folder, root=root, **ports))
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    with subprocess.Popen([program, "-c", str(folder / "nginx.conf"), *user]) as process:
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", ports["buffers"])).close()
                break
            except OSError:
                time.sleep(0.02)
        yield ports
        process.terminate()


def measure(source: Source, buffer: bytearray) -> float:
    """MB/s of one whole download; nothing is done with the bytes but to count them."""
    started_s = time.perf_counter()
    connection, response = source.ask()
    with connection, response:
        assert response.status == 200, response.status
        expected, total = int(response.headers["Content-Length"]), 0
        while count := response.readinto(buffer):
            total += count
    assert total == expected
    return total / (time.perf_counter() - started_s) / 1e6


def digest_of(source: Source, buffer: bytearray) -> str:
    """What arrives, hashed."""
    connection, response = source.ask()
    digest = hashlib.sha256()
    with connection, response:
        while count := response.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def fetch_cut(source: Source, size_bytes: int, sha256: str, cut: int, body: bytearray) -> bool:
    """Fetch a shard, cut the connection after `cut` bytes, resume; whether the digest is right."""
    got = 0
    for stop in (cut, size_bytes):
        conditions = {"Range": f"bytes={got}-", "If_Range": f'"{sha256}"'} if got else {}
        connection, response = source.ask(**conditions)
        with connection, response:
            if response.status != (206 if got else 200):
                return False
            while got < stop and (count := response.readinto(memoryview(body)[got:stop])):
                got += count
    return got == size_bytes and hashlib.sha256(body).hexdigest() == sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--cuts", type=int, default=1000)
    arguments = parser.parse_args()
    folder, size_bytes = Path(tempfile.mkdtemp()), int(arguments.gib * 2**30)
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    try:
        job_id, shards = publish_shards(folder / "data", [size_bytes, CUT_SHARD_BYTES])
        known = [shards.receipt(number, CuratedReceipt) for number in range(2)]
        with run_service(folder / "data") as (process, port, key):
            ours = [Source(port, f"/v1/jobs/{job_id}/shards/{number}", key) for number in range(2)]
            results = {"bytes": size_bytes, **compare(nginx, ours[0], shards, folder / "nginx", process, known[0])}
            results |= cut_and_resume(ours[1], known[1], arguments.cuts)
    finally:
        shutil.rmtree(folder)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def compare(
    nginx: str | None, ours: Source, shards: ShardFolder, folder: Path, process: psutil.Process, known: CuratedReceipt
) -> dict[str, object]:
    """Turn by turn, ours and both ways of nginx; and the memory of ours."""
    buffer, speeds = bytearray(1 << 20), dict[str, list[float]]()
    memory = [process.memory_info().rss]
    with run_nginx(nginx, Path(shards.root), folder) if nginx else nullcontext({}) as ports:
        sources = {"curator": ours} | {f"nginx, {how}": Source(p, "/" + shards.file(0)) for how, p in ports.items()}
        for source in sources.values():
            assert digest_of(source, buffer) == known.sha256
        for _ in range(ROUNDS):
            for name, source in sources.items():
                speeds.setdefault(name, []).append(measure(source, buffer))
            memory.append(process.memory_info().rss)
    medians = {name: round(statistics.median(values)) for name, values in speeds.items()}
    slowest = {name: round(min(values)) for name, values in speeds.items()}
    ratio = (
        round(medians["curator"] / max(medians[name] for name in medians if name != "curator"), 2) if nginx else None
    )
    print(f"{'one stream':<18}{'median MB/s':>12}{'slowest':>10}")
    for name, median in medians.items():
        print(f"{name:<18}{median:>12,}{slowest[name]:>10,}" + (f"   limit {LIMIT_MB_S}" if name == "curator" else ""))
    print(f"ratio to the faster nginx: {ratio}")
    print(f"memory of the service: {memory[0] / 2**20:.0f} MiB before, at most {max(memory) / 2**20:.0f} MiB after")
    return {
        "mb_per_s": medians, "slowest_mb_per_s": slowest, "ratio_to_nginx": ratio,
        "service_rss_bytes": {"before": memory[0], "largest_after": max(memory)},
    }  # fmt: skip


def cut_and_resume(source: Source, known: CuratedReceipt, cuts: int) -> dict[str, object]:
    """Cut and resume at random offsets, all different."""
    generator, body = random.Random(0), bytearray(known.bytes)
    offsets = generator.sample(range(1, known.bytes), cuts)
    wrong = [cut for cut in offsets if not fetch_cut(source, known.bytes, known.sha256, cut, body)]
    print(f"{cuts} downloads of {known.bytes >> 20} MiB cut at a random offset and resumed: {len(wrong)} digests wrong")
    return {"cuts": cuts, "cut_shard_bytes": known.bytes, "wrong_digests": len(wrong)}


if __name__ == "__main__":
    main()
