"""The images, run: read-only, without root, from a submitted job to its shards; and compose, with a worker that dies.

Needs a docker daemon and the images of docker/build.sh (see docs/deployment.md); `make test-images` has both made. What
compose would pull is replaced by tests/deploy/standins.
"""

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.images, pytest.mark.alone]

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "deploy" / "smoke.py"
COMPOSE = ROOT / "deploy" / "compose"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SERVICE, WORKER = f"token-curator/service:{VERSION}", f"token-curator/worker-cpu:{VERSION}"
HARDENED = ("--read-only", "--tmpfs=/tmp:exec,mode=1777,size=1g", "--cap-drop=ALL", "--security-opt=no-new-privileges")
PORT = 18765
Docker = Callable[..., subprocess.CompletedProcess[str]]


def wait_for(check: Callable[[], Any], what: str, within_s: float = 120) -> Any:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {within_s:g} s")


def health(docker: Docker, container: str) -> str:
    return docker("inspect", "--format", "{{.State.Health.Status}}", container).stdout.strip()


def first_key(docker: Docker, container: str) -> str:
    lines = docker("logs", container).stdout.splitlines()
    return next(line.split(": ")[1] for line in lines if line.startswith("API key: "))


@pytest.mark.parametrize("user", ["10001:0", "54321:0"])
def test_the_service_runs_hardened_and_stops_in_time(docker: Docker, volume: str, user: str) -> None:
    options = (*HARDENED, f"--user={user}", f"--volume={volume}:/data", f"--publish=127.0.0.1:{PORT}:8000")
    if user != "10001:0":  # a new volume belongs to the image's user; any other needs its group
        docker("run", "--rm", f"--volume={volume}:/data", SERVICE, "chmod", "2775", "/data")
    container = docker("run", "--detach", *options, "--env=CURATOR_DATA_DIR=/data/own", SERVICE).stdout.strip()
    wait_for(lambda: health(docker, container) == "healthy", "healthy")
    identity = docker("exec", container, "id", "-u").stdout.strip()
    assert identity == user.split(":")[0] != "0"
    assert docker("exec", container, "touch", "/opt/x", check=False).returncode != 0
    done = subprocess.run(
        [sys.executable, SMOKE, f"http://127.0.0.1:{PORT}", "--rows", "60"], timeout=300,
        capture_output=True, text=True, env=os.environ | {"CURATOR_API_KEY": first_key(docker, container)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 9
    left = docker("exec", container, "sh", "-c", "cat /proc/[0-9]*/stat | awk '$3 == \"Z\" && $4 == 1'").stdout
    assert not left, f"process 1 has not reaped {left}"
    started = time.monotonic()
    docker("stop", "--time=20", container)
    assert time.monotonic() - started < 15
    state = json.loads(docker("inspect", "--format", "{{json .State}}", container).stdout)
    assert state["ExitCode"] in (0, 143) and not state["OOMKilled"]


def test_images_say_what_they_are_made_of(docker: Docker) -> None:
    for image in (SERVICE, WORKER):
        about = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
        assert about["User"] == "10001:0" and about["Healthcheck"]["Test"] and about["StopSignal"] == "SIGTERM"
        assert about["Labels"]["org.opencontainers.image.version"] == VERSION
        bill = json.loads(docker("run", "--rm", image, "cat", "/usr/share/doc/token-curator/sbom.json").stdout)
        assert bill["bomFormat"] == "CycloneDX"
        names = {component["name"].lower() for component in bill["components"]}
        listed = docker("run", "--rm", image, "python", "-c", _INSTALLED).stdout.split()
        assert len(listed) > 90 and not {name.lower() for name in listed} - names
        assert any(component.get("purl", "").startswith("pkg:deb/") for component in bill["components"])
        assert ("torch" in names) == (image == WORKER) and "vllm" not in names


_INSTALLED = "import importlib.metadata as m; print(*{d.metadata['Name'] for d in m.distributions()})"


@pytest.fixture(scope="module")
def compose(docker: Docker) -> Iterator[Docker]:
    """The cluster profile with stand-ins, up; all of it is removed afterwards."""
    subprocess.run(["sh", COMPOSE / "secrets.sh"], check=True, capture_output=True)
    program = str(Path(sys.executable).with_name("docker-compose"))
    command = [program, "--project-name=curator-test", "--file=compose.yaml", "--profile=cluster"]
    command.append("--file=../../tests/deploy/standins/compose.yaml")
    environment = os.environ | {
        "POSTGRES_IMAGE": "standin/postgres", "S3_IMAGE": "standin/s3",
        "PUBLISH": f"127.0.0.1:{PORT + 1}", "TMP_SIZE": "1g",
    }  # fmt: skip

    def run(*words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*command, *words], cwd=COMPOSE, env=environment, capture_output=True, text=True, timeout=400, **options
        )
        if check and done.returncode != 0:
            pytest.fail(f"docker compose {' '.join(words)}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done

    try:
        run("up", "--detach")
        yield run
    finally:
        run("down", "--volumes", "--timeout=5", check=False)


def ready() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{PORT + 1}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def cluster_smoke(compose: Docker, *options: str) -> "subprocess.Popen[str]":
    lines = compose("logs", "--no-log-prefix", "service-cluster").stdout.splitlines()
    key = next(line.split(": ")[1] for line in lines if line.startswith("API key: "))
    container = compose("ps", "--quiet", "service-cluster").stdout.strip()
    words = [os.environ.get("DOCKER", "docker"), "exec", "--interactive", f"--env=CURATOR_API_KEY={key}", container]
    with SMOKE.open() as script:
        return subprocess.Popen(
            [*words, "python", "-", "http://127.0.0.1:8000", *options], stdin=script, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def test_the_cluster_does_a_job(compose: Docker) -> None:
    wait_for(ready, "the cluster is ready", 180)
    told, _ = cluster_smoke(compose).communicate(timeout=300)
    assert told.count("ok ") == 9 and "FAIL" not in told, told


def test_ray_wants_its_token(compose: Docker, docker: Docker) -> None:
    wait_for(ready, "the cluster is ready", 180)
    ask = "import urllib.request as r; print(r.urlopen('http://ray-head:8265/api/jobs/').status)"
    service = compose("ps", "--quiet", "service-cluster").stdout.strip()
    refused = docker("exec", service, "python", "-c", ask, check=False)
    assert refused.returncode != 0 and "401" in refused.stderr


def test_a_worker_dies_in_the_middle_of_a_job(compose: Docker, docker: Docker) -> None:
    wait_for(ready, "the cluster is ready", 180)
    smoke = cluster_smoke(compose, "--rows", "2000", "--shard-tokens", "4000")
    victim = compose("ps", "--quiet", "ray-worker-2").stdout.strip()
    wait_for(lambda: "StageWorker" in docker("top", victim).stdout, "an actor is there")
    docker("kill", "--signal=KILL", victim)
    assert smoke.poll() is None, "the job was over before the worker died"
    told, _ = smoke.communicate(timeout=400)
    assert told.count("ok ") == 9 and "FAIL" not in told, told
