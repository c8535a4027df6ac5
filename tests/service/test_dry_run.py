"""Dry runs: one tenant holds up no other, waiting counts, and nothing of a run outlives it.

The planning process is replaced by small real ones, which sleep, leave children, or say what they were given.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from service import dry_run as module
from service.dry_run import dry_run
from service.problems import Problem
from service.settings import Settings

SLEEP = """
import json, sys, time
time.sleep(json.load(sys.stdin)["seconds"])
print('{"name": "slept"}')
"""
LEAVE = """
import json, subprocess, sys, time
spec = json.load(sys.stdin)
nothing = subprocess.DEVNULL
child = subprocess.Popen(["sleep", "60"], stdin=nothing, stdout=nothing, stderr=nothing)
open(spec["file"], "w").write(str(child.pid))
time.sleep(spec["seconds"])
sys.exit(1)
"""
TELL = """
import json, os, sys
print(json.dumps({"message": " ".join(os.environ)}))
sys.exit(2)
"""
Use = Callable[..., Settings]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Use:
    """Plan with a script, within so many seconds."""

    def begin(script: str, timeout_s: float = 20.0) -> Settings:
        monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-S", "-c", script))
        return Settings(data_dir=tmp_path, validate_timeout_s=timeout_s)

    return begin


async def outcome(settings: Settings, tenant: str, **spec: Any) -> tuple[str, float]:
    """What a dry run answers, and when."""
    began = time.monotonic()
    try:
        answer = (await dry_run(spec, settings, tenant=tenant)).name
    except Problem as problem:
        assert problem.status == 503 and problem.headers and int(problem.headers["Retry-After"]) > 0
        answer = problem.code
    return answer, time.monotonic() - began


@pytest.mark.slow
def test_one_tenant_does_not_hold_up_another(use: Use) -> None:
    settings = use(SLEEP)

    async def all_at_once() -> list[tuple[str, float]]:
        many = [asyncio.create_task(outcome(settings, "many", seconds=1.0)) for _ in range(3)]
        await asyncio.sleep(0.1)
        return [await outcome(settings, "one", seconds=0), *[await task for task in many]]

    one, *many = asyncio.run(all_at_once())
    assert one[0] == "slept" and one[1] < 0.8
    assert [answer for answer, _ in many] == ["slept"] * 3 and many[2][1] > 2.9  # one after the other


def test_waiting_counts_and_is_told_from_planning(use: Use) -> None:
    patient, hurried = use(SLEEP, 1.5), use(SLEEP, 0.5)

    async def all_at_once() -> list[tuple[str, float]]:
        asked = ((patient, "a"), (patient, "b"), (hurried, "a"), (hurried, "c"))  # the first two run
        return await asyncio.gather(*(outcome(settings, tenant, seconds=30) for settings, tenant in asked))

    found = asyncio.run(all_at_once())
    assert [answer for answer, _ in found] == ["plan_timeout", "plan_timeout", "busy", "busy"]
    assert all(0.4 < seconds < 1.2 for _, seconds in found[2:])


def test_too_many_of_one_tenant_are_refused_at_once(use: Use) -> None:
    settings = use(SLEEP)

    async def all_at_once() -> list[tuple[str, float]]:
        return await asyncio.gather(*(outcome(settings, "a", seconds=0.1) for _ in range(6)))

    found = asyncio.run(all_at_once())
    assert [answer for answer, _ in found] == ["slept"] * 4 + ["busy"] * 2
    assert max(seconds for _, seconds in found[4:]) < 0.1


@pytest.mark.parametrize("ending", ["timeout", "cancelled", "crash"])
def test_nothing_outlives_a_dry_run(use: Use, tmp_path: Path, ending: str) -> None:
    settings = use(LEAVE, 1.0 if ending == "timeout" else 20.0)
    file = tmp_path / "child"

    async def end() -> None:
        spec = {"file": str(file), "seconds": 0 if ending == "crash" else 30}
        task = asyncio.create_task(dry_run(spec, settings, tenant="a"))
        while not (file.exists() and file.read_text()):
            await asyncio.sleep(0.02)
        if ending == "cancelled":
            task.cancel()
        with pytest.raises({"timeout": Problem, "cancelled": asyncio.CancelledError, "crash": RuntimeError}[ending]):
            await task

    asyncio.run(end())
    assert is_gone(int(file.read_text()))


def is_gone(pid: int) -> bool:
    """Whether a process has ended, within a second; one that nobody has waited for yet has."""
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_the_services_own_variables_stay_with_it(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATOR_DATABASE_URL", "postgresql://user:secret@host/db")
    with pytest.raises(Problem) as told:
        asyncio.run(dry_run({}, use(TELL)))
    seen = str(told.value.detail).split()
    assert "PATH" in seen and "PATH" in os.environ
    assert not [name for name in seen if name.startswith("CURATOR_")]
