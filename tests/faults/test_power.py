"""Power is lost at every moment of a job: from whatever the disk may hold then, the same command finishes as ever.

And what a finished job has written is there for good: nothing of it needs what was not synced.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from curator import verify

pytestmark = pytest.mark.slow
SOAK = bool(os.environ.get("CURATOR_SOAK"))
STATES = 20


@pytest.fixture(scope="module")
def power(load_script: Any) -> ModuleType:
    module: ModuleType = load_script(Path(__file__).with_name("power.py"))
    return module


@pytest.fixture
def operations(bench: Any, power: ModuleType) -> Any:
    """All that the undisturbed job did to its disk."""
    assert bench.undisturbed
    found = power.read_log(bench.log)
    assert len(found) > 100 and sum(operation.kind == power.SYNC for operation in found) > 20
    return found


def test_the_record_tells_what_is_on_the_disk(bench: Any, power: ModuleType, operations: Any) -> None:
    """The replay itself, held against the files: without it the other tests would prove nothing."""
    disk = power.Disk(str(bench.folder / "disk"))
    for operation in operations:
        disk.apply(operation)
    (out,) = [entry.entries["out"] for name, entry in disk.root.entries.items() if name == "made"]
    files = dict(_walk(out, Path()))
    there = {path.relative_to(bench.kept): path.read_bytes() for path in bench.kept.rglob("*") if path.is_file()}
    assert files == there


def _walk(folder: Any, path: Path) -> Any:
    for name, entry in folder.entries.items():
        if hasattr(entry, "entries"):
            yield from _walk(entry, path / name)
        else:
            yield path / name, bytes(entry.content)


def test_a_finished_dataset_outlives_a_power_loss(
    bench: Any, power: ModuleType, operations: Any, tmp_path: Path
) -> None:
    """Of all that was written only what was synced is left: it is the whole dataset."""
    disk = power.Disk(str(bench.folder / "disk"))
    for operation in operations:
        disk.apply(operation)
    power.write(disk.survivors("synced alone", 0), tmp_path / "disk")
    assert verify(str(tmp_path / "disk" / "made" / "out")) == []
    left = {str(path.relative_to(tmp_path / "disk" / "made" / "out")) for path in (tmp_path / "disk").rglob("*.*")}
    assert bench.undisturbed["found"]["files"].keys() <= left


def test_a_job_resumes_from_whatever_a_power_loss_leaves(
    bench: Any, power: ModuleType, operations: Any, tmp_path: Path
) -> None:
    step = 1 if SOAK else max(len(operations) * len(power.KINDS) // (STATES * 2), 1)
    names, tasks = [], []
    for i, (name, state) in enumerate(power.states(operations, str(bench.folder / "disk"), step)):
        power.write({path: content for path, content in state.items()}, tmp_path / str(i))
        names.append(name)
        tasks.append({"state": str(tmp_path / str(i) / "made" / "out")})
    chosen = range(len(tasks)) if SOAK else range(0, len(tasks), max(len(tasks) // STATES, 1))
    outcomes = bench.ask(tasks[i] for i in chosen)
    assert len(outcomes) == len(chosen) >= STATES * 0.8
    bad = {names[i]: bench.complaints(outcome) for i, outcome in zip(chosen, outcomes, strict=True)}
    bad = {name: complaints for name, complaints in bad.items() if complaints}
    assert not bad, "\n".join(f"{name}: {complaints}" for name, complaints in bad.items())
    print(f"{len(outcomes)} states of {len(operations)} operations")
