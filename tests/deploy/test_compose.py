"""deploy/compose: every profile parses; every container is hardened, limited, watched, pinned and free of secrets."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
COMPOSE = Path(sys.executable).with_name("docker-compose")
PROFILES = {
    "default": {"service"},
    "cluster": {
        "service-cluster", "ray-head", "ray-worker-1", "ray-worker-2", "postgres", "s3", "s3-volume", "bucket",
    },
    "gpu": {"service-gpu", "ray-gpu"},
}  # fmt: skip
ONE_SHOT = {"s3-volume", "bucket"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/compose with secrets of its own."""
    copy = tmp_path_factory.mktemp("compose") / "compose"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run(["sh", "./secrets.sh"], cwd=copy, check=True, capture_output=True, timeout=60)
    return copy


def configuration(folder: Path, *options: str) -> dict[str, Any]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    done = subprocess.run(
        [COMPOSE, *options, "config", "--format", "json"], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def services(folder: Path) -> dict[str, Any]:
    """The services of all profiles, resolved."""
    options = [word for profile in PROFILES for word in ("--profile", profile)]
    found: dict[str, Any] = configuration(folder, *options)["services"]
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_starts_its_own_services(folder: Path, profile: str) -> None:
    assert set(configuration(folder, "--profile", profile)["services"]) == PROFILES[profile]


def test_without_a_profile_the_service_is_alone(folder: Path) -> None:
    assert set(configuration(folder)["services"]) == {"service"}


def test_every_container_is_hardened_limited_and_restarted(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and not service.get("cap_add"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"]), f"{name} runs as {service['user']}"
        assert not service.get("privileged") and not service.get("network_mode", "").startswith("host"), name
        assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name
        if name not in ONE_SHOT:
            assert "stop_grace_period" in service, name


def test_nothing_writes_outside_volumes_and_tmpfs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert all(mount["type"] == "volume" for mount in service.get("volumes", [])), name
        if "token-curator" in service["image"] and name not in ONE_SHOT:  # Ray and PyTorch load libraries from /tmp
            assert any(mount.startswith("/tmp:exec,") for mount in service["tmpfs"]), name


def test_images_are_ours_by_version_or_others_by_digest(services: dict[str, Any]) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None
    for name, service in services.items():
        ours = re.fullmatch(rf"token-curator/(service|worker-cpu|worker-gpu):{re.escape(version[1])}", service["image"])
        assert ours or re.search(r":[^:@]+@sha256:[0-9a-f]{64}$", service["image"]), f"{name}: {service['image']}"


def test_what_is_waited_for_has_a_health_check(services: dict[str, Any]) -> None:
    """Ours have theirs in the image; the others, and Ray's heads, here."""
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert services[other]["healthcheck"]["test"][0] == "CMD", f"{name} waits for {other}"
            else:
                assert how["condition"] == "service_completed_successfully" and other in ONE_SHOT
        if name not in ONE_SHOT and "token-curator" not in service["image"]:
            assert "healthcheck" in service, name


def test_the_service_does_not_wait_for_ray(services: dict[str, Any]) -> None:
    assert not [name for name in services["service-cluster"]["depends_on"] if name.startswith("ray")]


def test_only_services_are_published_and_only_on_this_machine(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert set(published) == {"service", "service-cluster", "service-gpu"}
    assert all(port["host_ip"] == "127.0.0.1" for ports in published.values() for port in ports)


def test_the_cluster_talks_in_private_and_with_a_token(folder: Path) -> None:
    found = configuration(folder, "--profile", "cluster")
    assert found["networks"]["cluster"]["internal"] is True
    for name in PROFILES["cluster"] - {"service-cluster", "s3-volume"}:
        assert set(found["services"][name]["networks"]) == {"cluster"}, name
    tokens = set()
    for name in ("service-cluster", "ray-head", "ray-worker-1", "ray-worker-2"):
        variables = found["services"][name]["environment"]
        assert variables["RAY_AUTH_MODE"] == "token"
        tokens.add(variables["RAY_AUTH_TOKEN"])
    assert len(tokens) == 1 and len(tokens.pop()) >= 32


def test_each_container_gets_only_the_secrets_that_it_needs(folder: Path, services: dict[str, Any]) -> None:
    for name, service in services.items():
        variables = set(service.get("environment") or {})
        assert ("RAY_AUTH_TOKEN" in variables) == (
            name.startswith("ray-") or name in ("service-cluster", "service-gpu")
        )
        assert ("CURATOR_DATABASE_URL" in variables) == (name == "service-cluster")
        assert ("POSTGRES_PASSWORD" in variables) == (name == "postgres")
        assert ("ROOT_SECRET_KEY" in variables) == (name == "s3")


def test_secrets_are_random_private_and_in_no_file_of_the_repository(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "compose"
    shutil.copytree(FOLDER, again, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run(["sh", "./secrets.sh"], cwd=again, check=True, capture_output=True, timeout=60)
    files = sorted((folder / "secrets").iterdir())
    assert len(files) == 5
    for path in files:
        assert path.stat().st_mode & 0o077 == 0, path
        assert path.read_text() != (again / "secrets" / path.name).read_text()
    assert (FOLDER / ".gitignore").read_text().split() == ["secrets/"]
    text = (FOLDER / "compose.yaml").read_text() + (FOLDER / ".env").read_text()
    assert not re.search(r"(?i)(password|secret_key|token)\s*[:=]\s*[^\s$\[{/]", text)


def test_secrets_are_kept_when_asked_for_again(folder: Path) -> None:
    before = {path.name: path.read_text() for path in (folder / "secrets").iterdir()}
    subprocess.run(["sh", "./secrets.sh"], cwd=folder, check=True, capture_output=True, timeout=60)
    assert {path.name: path.read_text() for path in (folder / "secrets").iterdir()} == before
    password = before["postgres.env"].split("=")[1].strip()
    assert f":{password}@postgres/" in before["database.env"]


def test_secrets_that_belong_together_stay_so_and_none_is_empty(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "compose"
    shutil.copytree(folder, again)
    for name in ("database.env", "aws.env"):
        (again / "secrets" / name).unlink()
    subprocess.run(["sh", "./secrets.sh"], cwd=again, check=True, capture_output=True, timeout=60)
    for path in (folder / "secrets").iterdir():
        assert (again / "secrets" / path.name).read_text() == path.read_text(), path.name

    shutil.rmtree(again / "secrets")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").write_text("#!/bin/sh\nexit 1\n")
    (programs / "python3").chmod(0o755)
    without = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "./secrets.sh"], cwd=again, env=without, capture_output=True, timeout=60)
    assert done.returncode != 0 and not list((again / "secrets").iterdir()), "an empty token would be kept for good"
