"""Every file operation of a job is disturbed in turn: the process is killed there, the disk fails or is full.

Then the same command must finish, with every file equal to those of an undisturbed run and nothing else in the folder;
a failing or full disk must be a clear error, or do no harm. The operations are libc's (see filefaults.c).
"""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SOAK = bool(os.environ.get("CURATOR_SOAK"))
POINTS = {"kill": 16, "torn": 4, "eio": 12, "full": 6}
"""How many points of each fault the short form takes; the long form takes all of them."""


@pytest.mark.parametrize("fault", POINTS)
def test_a_job_survives_a_fault_at_any_file_operation(bench: Any, fault: str) -> None:
    operations = bench.undisturbed["seen"]["count"]
    assert operations > 200
    every = range(1, operations + 1)
    points = list(every) if SOAK else sorted(random.Random(fault).sample(every, POINTS[fault]))
    outcomes = bench.ask({"fault": fault, "at": at} for at in points)
    assert len(outcomes) == len(points)
    bad = {f"{o['at']} {o['seen']['operation']} {o['seen']['path']}": bench.complaints(o) for o in outcomes}
    bad = {point: complaints for point, complaints in bad.items() if complaints}
    assert not bad, "\n".join(f"{point}: {complaints}" for point, complaints in bad.items())
    reached = sum(1 for outcome in outcomes if outcome["seen"]["injected"])
    assert reached >= 0.8 * len(points)  # towards the end nothing may be left that a full disk hinders
    kinds = Counter(o["seen"]["operation"] for o in outcomes if o["seen"]["injected"])
    print(f"{fault}: {len(points)} of {operations} points, {reached} reached: {dict(kinds)}")


@pytest.mark.alone
@pytest.mark.skipif(not SOAK, reason="two runs on Ray for each point; the short form kills workers in test_kills.py")
@pytest.mark.parametrize("share", [0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
def test_so_does_a_job_on_ray_whichever_process_is_killed(
    bench: Any, load_script: Callable[[Path], ModuleType], share: float
) -> None:
    """The same operations, now spread over the driver and its workers, which all count together."""
    laboratory = load_script(Path(__file__).with_name("laboratory.py"))
    faults = laboratory.Faults(str(bench.folder / "state"))
    expected, operations = bench.undisturbed["found"], bench.undisturbed["seen"]["count"]
    laboratory.shutil.rmtree(bench.out, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("curator")), "run", str(bench.folder / "spec.json")]
    environment = {name: value for name, value in bench.environment().items() if name != "RAY_ADDRESS"}
    faults.arm("kill", round(operations * share))
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    seen = faults.seen()
    assert seen["injected"] == 1 and first.returncode in (1, -9), first.stderr[-2000:]
    assert "Traceback" not in first.stderr
    faults.arm(enabled=False)
    then = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert then.returncode == 3, then.stderr[-2000:]  # done; one row is bad
    found = laboratory.describe(bench.out)
    assert found["files"] == expected["files"] and found["folders"] == expected["folders"]
    print(f"killed in {seen['operation']} of {seen['path']}: the first run ended with {first.returncode}")
