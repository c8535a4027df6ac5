"""Every file operation of a job is disturbed in turn: the process is killed there, the disk fails or is full.

Then the same command must finish, with every file equal to those of an undisturbed run and nothing else in the folder;
a failing or full disk must be a clear error, or do no harm. The operations are libc's (see filefaults.c).
"""

import os
import random
from collections import Counter
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
