"""What a local Ray leaves behind when it ends.

A node that is slow to stop is killed by Ray after a second, and then its agents and workers, no longer anybody's
children, go only when they notice: seconds on a busy machine, in which a cancelled job still uses memory and files.
"""

from contextlib import suppress

import psutil

_WAIT_S = 2.0


def family(session: str) -> list[psutil.Process]:
    """This process's children that have `session`, a Ray session's folder, in their command; and all they started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(session in word for word in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def strays(session: str) -> list[psutil.Process]:
    """Scripts of Ray's that have `session` in their command: workers that were being started when the node went."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            is_script = any("/ray/" in word and word.endswith(".py") for word in words)
            if is_script and any(session in word for word in words):  # not a person who reads its logs
                found.append(process)
    return found


def end(processes: list[psutil.Process]) -> None:
    """Kill those that still run, and wait for it, 2 s at most."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=_WAIT_S)
