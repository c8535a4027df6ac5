"""Containers from the images of this project; `make test-images` builds them and runs the tests marked `images`."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Docker = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def docker() -> Docker:
    """Run a docker command; fails the test if that fails. DOCKER names another client, DOCKER_HOST another daemon."""

    def run(*words: str, check: bool = True, within_s: float = 300) -> subprocess.CompletedProcess[str]:
        command = [os.environ.get("DOCKER", "docker"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s)
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done

    run("version")
    return run


@pytest.fixture
def volume(docker: Docker) -> Iterator[str]:
    """A volume that is removed with the test, and all containers that mount it before."""
    name = docker("volume", "create").stdout.strip()
    yield name
    mounted = docker("ps", "--all", "--quiet", "--filter", f"volume={name}").stdout.split()
    if mounted:
        docker("rm", "--force", *mounted)
    docker("volume", "rm", "--force", name)
