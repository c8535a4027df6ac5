"""What images are made from: Dockerfiles and scripts that linters pass, and locks that pin every file by its hash."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from packageurl import PackageURL

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*Dockerfile*"))
SCRIPTS = sorted([*DOCKER.glob("*.sh"), *(ROOT / "deploy" / "compose").glob("*.sh")])
LOCKS = sorted((DOCKER / "locks").glob("*.txt"))
TESTED = ("service", "worker-cpu", "torch-cpu")  # held to the versions with which the tests run
BIN = Path(sys.executable).parent


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Name -> version of each line `name==version`."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text, flags=re.MULTILINE)
    return {normal(name): version.split("+")[0] for name, version in found}


def requirement_names(lines: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=!~; ]", line)[0]) for line in lines}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction with its whole argument."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def stage_of(dockerfile: Path, name: str | None) -> list[tuple[str, str]]:
    """The instructions of one stage, after those of the stage that it is made from."""
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current: list[tuple[str, str]] = []
    for instruction, argument in instructions(dockerfile):
        if instruction == "FROM":
            words = argument.split()
            current = []
            stages[words[2] if len(words) > 2 else ""] = (words[0], current)
        current.append((instruction, argument))
    base, own = stages[name or ""]
    return [*(stage_of(dockerfile, base) if base in stages else []), *own]


IMAGES = [
    ("service", DOCKER / "Dockerfile", "service"),
    ("worker-cpu", DOCKER / "Dockerfile", "worker-cpu"),
    ("worker-gpu", DOCKER / "Dockerfile.worker-gpu", None),
]


def test_there_is_something_to_look_at() -> None:
    assert len(DOCKERFILES) == 2 and len(SCRIPTS) >= 4 and len(LOCKS) == 5


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    done = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path) -> None:
    done = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linters_do_find_faults(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp && sudo apt-get install curl\n")
    (tmp_path / "script.sh").write_text("#!/bin/sh\nrm -rf $1/*\n")
    for tool, name in (("hadolint", "Dockerfile"), ("shellcheck", "script.sh")):
        assert subprocess.run([BIN / tool, tmp_path / name], capture_output=True, timeout=60).returncode != 0


@pytest.mark.parametrize("name, dockerfile, stage", IMAGES, ids=[name for name, *_ in IMAGES])
def test_images_run_without_root_and_say_how_they_are(name: str, dockerfile: Path, stage: str | None) -> None:
    last = dict(stage_of(dockerfile, stage))
    assert last["USER"] == "10001:0"
    assert last["HEALTHCHECK"] and "NONE" not in last["HEALTHCHECK"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(last["ENTRYPOINT"])[0].endswith("/dumb-init")  # exec form: process 1 reaps and passes signals on
    labels = " ".join(argument for instruction, argument in stage_of(dockerfile, stage) if instruction == "LABEL")
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert any("sbom.json" in argument for _, argument in stage_of(dockerfile, stage))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_bases_are_pinned_by_digest(path: Path) -> None:
    arguments = [a.split("=", 1) for i, a in instructions(path) if i == "ARG" and "_IMAGE=" in a]
    assert arguments
    for _, image in arguments:
        assert re.search(r"@(sha256:[0-9a-f]{64}|\$\{VLLM_DIGEST\})$", image), image


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_each_line_of_a_lock_is_one_version_with_hashes_and_no_host(path: Path) -> None:
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    assert "://" not in text and "--index" not in text and "--find" not in text
    blocks = [block for block in re.split(r"\n(?=\S)", text.strip()) if block]
    assert blocks
    for block in blocks:
        assert re.match(r"[A-Za-z0-9._-]+==\S+ \\\n( +--hash=sha256:[0-9a-f]{64}( \\\n|$))+$", block), block[:200]


@pytest.mark.parametrize("name", TESTED)
def test_locks_agree_with_requirements_lock(name: str) -> None:
    tested = pins((ROOT / "requirements.lock").read_text())
    locked = pins((DOCKER / "locks" / f"{name}.txt").read_text())
    differing = {package: (version, tested[package]) for package, version in locked.items()
                 if package in tested and tested[package] != version}  # fmt: skip
    assert not differing, f"run docker/lock.py: {differing}"
    assert set(locked) - set(tested) <= {"dumb-init"}


@pytest.mark.parametrize(
    "names, extras",
    [(("service",), ("service", "client", "s3")), (("worker-cpu", "torch-cpu"), ("transformers", "s3"))],
)
def test_locks_hold_what_the_project_requires(names: tuple[str, ...], extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirement_names(project["dependencies"])
    for extra in extras:
        wanted |= requirement_names(project["optional-dependencies"][extra]) - {"token-curator"}
    locked = {package for name in names for package in pins((DOCKER / "locks" / f"{name}.txt").read_text())}
    assert not wanted - locked, f"run docker/lock.py: {wanted - locked} are in no lock"


def test_the_service_image_holds_no_engine() -> None:
    locked = pins((DOCKER / "locks" / "service.txt").read_text())
    assert not {"torch", "vllm", "transformers"} & set(locked)


@pytest.mark.parametrize("path", [path for path in LOCKS if path.stem != "tools"], ids=lambda path: path.stem)
def test_images_ship_nothing_whose_licence_forbids_it(path: Path) -> None:
    """By their metadata, free licences aside: only psycopg, LGPL, in files that can be replaced. No Intel OpenMP.

    dumb-init is free, MIT, and says so in its LICENSE alone.
    """
    excepted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["licences"]["exceptions"]
    locked = set(pins(path.read_text()))
    assert locked & {normal(name) for name in excepted} <= {"psycopg", "psycopg-binary", "dumb-init"}
    assert locked <= {*pins((ROOT / "requirements.lock").read_text()), "dumb-init"}  # whose licences make audit reads


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_another_revision_makes_no_other_layers(path: Path) -> None:
    """A build argument is part of every RUN behind it."""
    lines = instructions(path)
    declared = next(n for n, (_, argument) in enumerate(lines) if argument.startswith("REVISION"))
    assert not [argument for instruction, argument in lines[declared:] if instruction == "RUN"]


def test_gpu_workers_have_the_ray_and_arrow_of_the_others() -> None:
    ours, theirs = (pins((DOCKER / "locks" / f"{name}.txt").read_text()) for name in ("service", "worker-gpu"))
    assert {name: theirs[name] for name in ("ray", "pyarrow")} == {name: ours[name] for name in ("ray", "pyarrow")}
    assert not {"torch", "vllm"} & set(theirs)  # those of vLLM's image stay


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="a list of Debian packages needs Debian")
def test_bills_name_debian_packages_as_scanners_read_them(load_script: Callable[[Path], ModuleType]) -> None:
    """By the reference parser of package URLs, back to what dpkg says; and with the distribution."""
    found = {}
    for component in load_script(DOCKER / "sbom.py").debian_part():
        purl = PackageURL.from_string(component["purl"])
        assert purl.type == "deb" and purl.namespace in ("debian", "ubuntu")
        assert purl.qualifiers["distro"].startswith(f"{purl.namespace}-")
        found[purl.name, purl.version, purl.qualifiers["arch"]] = component["name"], component["version"]
    fields = "${Package} ${Version} ${Architecture}\n"
    said = subprocess.run(["dpkg-query", "-W", "-f", fields], capture_output=True, text=True, check=True).stdout
    assert set(found) == {tuple(line.split()) for line in said.splitlines()}
    assert any("+" in name for name, *_ in found) and all(key[:2] == value for key, value in found.items())


@pytest.fixture
def answers() -> Iterator[int]:
    """The port of a server that is well at /well and /livez, and ill elsewhere."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in ("/well", "/livez") else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def check_health(address: str, **variables: str) -> int:
    command = [sys.executable, DOCKER / "health.py", address]
    return subprocess.run(command, capture_output=True, timeout=30, env=os.environ | variables).returncode


def test_health_check_tells_well_from_ill(answers: int) -> None:
    url = f"http://127.0.0.1:{answers}"
    assert [check_health(f"{url}{path}") for path in ("/well", "/ill")] == [0, 1]
    assert check_health("http://127.0.0.1:1/well") == check_health("http://127.0.0.1:$NO_SUCH_VARIABLE/well") == 1


def test_health_check_of_the_service_follows_its_port(answers: int) -> None:
    """Docker runs these words as they stand: no shell puts variables in."""
    stage = stage_of(DOCKER / "Dockerfile", "service")
    (check,) = (argument for instruction, argument in stage if instruction == "HEALTHCHECK")
    *program, address = json.loads(check.partition("CMD ")[2])
    assert program == ["python", "/usr/local/lib/token-curator/health.py"]
    assert check_health(address, CURATOR_PORT=str(answers)) == 0
    assert check_health(address, CURATOR_PORT="1") == 1
    assert any("CURATOR_PORT=8000" in argument for instruction, argument in stage if instruction == "ENV")
