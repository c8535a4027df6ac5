"""`make system` installs packages without starting their daemons, and leaves the machine's own policy as it was."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "system.sh"
THEIRS = "#!/bin/sh\nexit 104\n"

# In apt-get's place: asks the policy as Debian's invoke-rc.d does, and says what it heard.
APT = """#!/bin/sh
[ "$1" = install ] || exit 0
echo "$@" > asked
if [ -x "$POLICY" ]; then "$POLICY" nginx start; echo $? > heard; else echo none > heard; fi
while [ -e hold ]; do sleep 0.05; done
[ ! -e broken ]
"""
TOOLS = ("cat", "chmod", "dirname", "echo", "ln", "mkdir", "rm", "sh", "sleep", "tr")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with the tools of a bare machine, apt-get among them, and a place for its policy."""
    for name in ("bin", "sbin"):
        (tmp_path / name).mkdir()
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    (tmp_path / "bin" / "apt-get").write_text(APT)
    (tmp_path / "bin" / "apt-get").chmod(0o755)
    return tmp_path


def begin(machine: Path) -> subprocess.Popen[str]:
    """The script, on that machine."""
    environment = {"PATH": str(machine / "bin"), "POLICY": str(machine / "sbin" / "policy-rc.d")}
    return subprocess.Popen(
        ["/bin/sh", SCRIPT], cwd=machine, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def install(machine: Path) -> tuple[int, str]:
    """The script's exit status, and what the policy said while packages were installed."""
    process = begin(machine)
    process.communicate(timeout=30)
    return process.returncode, (machine / "heard").read_text().strip()


@pytest.mark.parametrize("fails", [False, True])
def test_no_daemon_may_start_while_packages_are_installed(machine: Path, fails: bool) -> None:
    if fails:
        (machine / "broken").touch()
    assert install(machine) == (int(fails), "101")  # Debian's word for: not allowed
    assert "prometheus" in (machine / "asked").read_text()
    assert list((machine / "sbin").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_policy_goes_also_when_the_script_is_stopped(machine: Path, number: signal.Signals) -> None:
    (machine / "hold").touch()
    process = begin(machine)
    deadline_s = time.monotonic() + 20
    while not (machine / "heard").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(process.pid, number)
    time.sleep(0.2)
    assert (machine / "sbin" / "policy-rc.d").exists()  # as long as packages are being installed
    (machine / "hold").unlink()
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert list((machine / "sbin").iterdir()) == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_policy_that_is_there_stays(machine: Path, fails: bool) -> None:
    if fails:
        (machine / "broken").touch()
    theirs = machine / "sbin" / "policy-rc.d"
    theirs.write_text(THEIRS)
    theirs.chmod(0o755)
    assert install(machine) == (int(fails), "104")
    assert theirs.read_text() == THEIRS and list(theirs.parent.iterdir()) == [theirs]
