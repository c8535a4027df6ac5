"""A driver whose workers' answers are large, so that they lie in the stores of their machines; one of these is lost.

    python lost_answer.py ADDRESS RAYLET MARKER

Prints what came of the tasks, in JSON.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from curator.cluster import connect
from curator.progress import Silent
from curator.room import Workers


@dataclass(frozen=True)
class Large:
    """Gives each task back with a megabyte; tells when it has one on the machine that will be lost."""

    raylet: int
    marker: str

    def open(self) -> None:
        pass

    def load(self, task: int) -> int:
        return task

    def run(self, task: int, inputs: int, on_tokens: Callable[[int], None]) -> tuple[int, bytes]:
        if os.getppid() == self.raylet:
            Path(self.marker).touch()
        elif not Path(self.marker).exists():
            time.sleep(0.2)
        return task, bytes(1 << 20)


def main(address: str, raylet: int, marker: str) -> None:
    results: list[int] = []
    said: list[str] = []
    lost: list[float] = []

    def take(result: tuple[int, bytes]) -> None:
        """Look away until the answer lies on the other machine, and lose that before fetching it."""
        results.append(result[0])
        if not lost and Path(marker).exists():
            time.sleep(1)
            for process in [*psutil.Process(raylet).children(recursive=True), psutil.Process(raylet)]:
                process.send_signal(signal.SIGKILL)
            lost.append(time.monotonic())

    reporter = Silent()
    reporter.say = said.append  # type: ignore[method-assign]
    with connect(address, retries=1) as cluster:
        failures = cluster.pool(Workers(), 100).map(
            Large(raylet, marker), range(100), reporter=reporter, tokens_of=lambda _: 1, on_result=take
        )
    print(json.dumps({"results": results, "failures": len(failures), "said": said, "lost": len(lost)}))


main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
