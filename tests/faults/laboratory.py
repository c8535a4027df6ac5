"""One job in one process, again and again, under file faults: what the tests of files and of power run beside them.

    LD_PRELOAD=filefaults.so FILEFAULTS_ROOT=... FILEFAULTS_STATE=... python laboratory.py FOLDER < tasks > outcomes

Everything is imported once; each job then runs in a fork, on the real stages but without Ray, which takes a
second instead of ten. A task is a JSON line, {"fault": .., "at": ..} or {"state": FOLDER}; its outcome is another.
`bench.py` asks.
"""

import gc
import json
import mmap
import os
import select
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  Arrow imports it late: here once instead of in every fork

import curator.pipeline
from curator import curate, parse_spec, verify
from curator.errors import CuratorError
from curator.worker import Failure, ShardFailure

FAULTS = {"none": 0, "kill": 1, "eio": 2, "full": 3, "torn": 4}
OPERATIONS = ["?", "open", "create", "write", "sync", "link", "rename", "unlink", "mkdir", "rmdir", "truncate"]
OPERATIONS += ["read", "list"]
_STATE = struct.Struct("=qqiiqii512s")
_LONGEST_S = 60


class HereCluster:
    """Stands in for `curator.cluster.Cluster`: stages run in this process, errors are dealt with by its rules."""

    def __init__(self, retries: int) -> None:
        self.retries = retries

    def pool(self, workers: Any, tasks: int) -> "HereCluster":
        return self

    def map(
        self, stage: Any, tasks: Sequence[Any], *, reporter: Any, tokens_of: Any, on_result: Callable[[Any], None]
    ) -> list[ShardFailure[Any]]:
        stage.open()
        failures = []
        for task in tasks:
            for _ in range(self.retries + 1):
                outcome = _attempt(stage, task)
                if not isinstance(outcome, Failure):
                    on_result(outcome)
                    break
                if not outcome.error.retryable:
                    raise outcome.error
            else:
                failures.append(ShardFailure(task, self.retries + 1, outcome))
        return failures


def _attempt(stage: Any, task: Any) -> Any:
    try:
        return stage.run(task, stage.load(task), lambda tokens: None)
    except CuratorError as error:
        return Failure(error)


@contextmanager
def connect(address: str | None, retries: int = 0) -> Iterator[HereCluster]:
    yield HereCluster(retries)


class Faults:
    """The state that filefaults.c reads."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), _STATE.size)

    def arm(self, fault: str = "none", at: int = 0, *, enabled: bool = True) -> None:
        self.memory[:] = _STATE.pack(0, at, int(enabled), FAULTS[fault], 0, 0, 0, b"")

    def seen(self) -> dict[str, Any]:
        count, _, _, _, injected, operation, _, path = _STATE.unpack(self.memory[:])
        return {
            "count": count,
            "injected": injected,
            "operation": OPERATIONS[operation],
            "path": path.rstrip(b"\0").decode(),
        }


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """The job, as `curator run` would see it end."""
    try:
        curate(parse_spec(spec))
    except CuratorError as error:
        return {"ended": "refused", "error": str(error), "kind": type(error).__name__}
    except BaseException as error:
        return {"ended": "crashed", "error": repr(error), "trace": traceback.format_exc()}
    return {"ended": "done"}


def describe(out: Path) -> dict[str, Any]:
    """Every file under the output by its digest (times apart), and what `verify` says."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    digests = {name: sha256(_without_measures(name, content)).hexdigest() for name, content in files.items()}
    folders = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_dir())
    return {"files": digests, "folders": folders, "problems": verify(str(out))}


def _without_measures(name: str, content: bytes) -> bytes:
    """A receipt says how long it took, and the report repeats that."""
    if name == "report.html":
        return b""
    if "/_receipts/" in name:
        receipt = json.loads(content)
        for measure in ("seconds", "worker", "peak_memory_bytes", "adopted"):
            receipt.pop(measure)
        return json.dumps(receipt).encode()
    return content


def in_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work returns, in a process of its own; `killed` or `hangs` where it does not end by itself."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        code = 1
        try:
            answer = json.dumps(work()).encode()
            with open(writing, "wb") as pipe:
                pipe.write(answer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    content, deadline = b"", time.monotonic() + _LONGEST_S
    with open(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            block = pipe.read(1 << 16)
            if not block:
                break
            content += block
        else:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return {"ended": "hangs"}
    _, status = os.waitpid(process, 0)
    return json.loads(content) if content else {"ended": "killed", "status": status}


def disturb_and_resume(spec: dict[str, Any], out: Path, faults: Faults, task: dict[str, Any]) -> dict[str, Any]:
    """Run with a fault; run the same again without one; then look."""
    shutil.rmtree(out, ignore_errors=True)
    faults.arm(task["fault"], task["at"])
    first = in_fork(lambda: run(spec))
    seen = faults.seen()
    faults.arm(enabled=False)
    left = in_fork(lambda: describe(out)) if first["ended"] == "done" else None
    return task | {"first": first, "left": left, "seen": seen} | resume(spec, out)


def resume(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    then = in_fork(lambda: run(spec))
    return {"then": then, "found": in_fork(lambda: describe(out)) if then["ended"] == "done" else None}


def resume_from(spec: dict[str, Any], out: Path, state: Path) -> dict[str, Any]:
    """Put a disk's state in place and run the same command on it."""
    shutil.rmtree(out, ignore_errors=True)
    if state.is_dir():
        shutil.move(state, out)
    return resume(spec, out)


def main() -> None:
    curator.pipeline.connect = connect  # type: ignore[assignment]
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "spec.json").read_text())
    out = Path(spec["output"]["uri"])
    faults = Faults(os.environ["FILEFAULTS_STATE"])
    faults.arm(enabled=False)
    gc.freeze()  # workers collect garbage between stages, which should not look at all of this
    for line in sys.stdin:
        task = json.loads(line)
        if "state" in task:
            outcome = task | resume_from(spec, out, Path(task["state"]))
        else:
            outcome = disturb_and_resume(spec, out, faults, task)
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
