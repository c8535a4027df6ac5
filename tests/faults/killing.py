"""Who is killed, when, and what must be true afterwards; the client's own record of it, in lines of JSON."""

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from curator import read_manifest, verify

WORKER = "ray::StageWorker"
AT_WORK = f"{WORKER}.run"


@dataclass
class Kill:
    """One SIGKILL: when, whom, at what, and how many shards had been published by then."""

    at_s: float
    pid: int
    doing: str
    published: int


def workers(root: int) -> list[tuple[psutil.Process, str]]:
    """The actors among a process's descendants, and what each of them does."""
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(root).children(recursive=True):
            with suppress(psutil.Error):
                doing = (process.cmdline() or [""])[0]
                if doing.startswith(WORKER):
                    found.append((process, doing))
    return found


def receipts(folder: Path) -> set[Path]:
    """Every shard of every stage that is published in a job's folder."""
    return set(folder.rglob("_receipts/*.json"))


class Killer(threading.Thread):
    """Kills a process's actors at random moments, three of four while they work on a shard, until it has killed enough.

    The pauses are short when an actor has just been killed and long at times, so that two die at once, and so that the
    next ones get far.
    """

    def __init__(self, root: int, kills: int, seed: int, folder: Path) -> None:
        super().__init__(name="killer")
        self._root, self._kills, self._folder = root, kills, folder
        self._generator = random.Random(seed)
        self._over = threading.Event()
        self._started_s = time.monotonic()
        self.history: list[Kill] = []

    def run(self) -> None:
        while len(self.history) < self._kills and not self._over.wait(1.5 * self._generator.random() ** 2):
            busy_only = self._generator.random() < 0.75
            while not self._over.is_set() and not self._kill_one(busy_only):
                time.sleep(0.005)

    def _kill_one(self, busy_only: bool) -> bool:
        found = [(who, doing) for who, doing in workers(self._root) if not busy_only or doing.startswith(AT_WORK)]
        if not found:
            return False
        process, doing = self._generator.choice(found)
        published = len(receipts(self._folder))
        with suppress(psutil.Error):
            process.kill()
            at_s = round(time.monotonic() - self._started_s, 3)
            self.history.append(Kill(at_s, process.pid, doing, published))
            return True
        return False

    def end(self) -> list[Kill]:
        self._over.set()
        self.join()
        return self.history


@contextmanager
def killer(kills: int, seed: int, folder: Path, root: int | None = None) -> Iterator[Killer]:
    thread = Killer(root or os.getpid(), kills, seed, folder)
    thread.start()
    try:
        yield thread
    finally:
        thread.end()


def lose(raylet: int, whole: bool = True) -> None:
    """SIGKILL to a node: to its raylet, and to all that it has started, unless they are to notice by themselves."""
    with suppress(psutil.Error):
        node = psutil.Process(raylet)
        family = [node, *(node.children(recursive=True) if whole else [])]
        for process in family:
            with suppress(psutil.Error):
                process.kill()


def digests(folder: Path) -> list[str]:
    return [shard.sha256 for shard in read_manifest(str(folder)).shards]


def check_dataset(folder: Path, shards: list[str], ids: list[str], bad_rows: int) -> None:
    """No row lost, none doubled, the bytes of an undisturbed run, nothing staged left."""
    manifest = read_manifest(str(folder))
    found = [i for shard in manifest.shards for i in pq.read_table(folder / shard.file)["doc_id"].to_pylist()]
    counted, wanted = Counter(found), Counter(ids)
    assert (counted - wanted, wanted - counted) == (Counter(), Counter())
    assert found == ids
    assert sum(manifest.quarantined.values()) == bad_rows
    assert digests(folder) == shards
    assert verify(str(folder)) == []
    assert list(folder.rglob("_staging")) == []


class History:
    """What has been done so far, over as many sittings as it takes: a line for each job that ended and was checked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            with suppress(json.JSONDecodeError):  # a sitting that was killed may leave half a line
                found.append(json.loads(line))
        return found

    def kills(self) -> int:
        return sum(len(line["kills"]) for line in self.lines())

    def add(self, seed: int, kills: list[Kill], seconds: float, **facts: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = {"seed": seed, "seconds": round(seconds, 1), **facts, "kills": [asdict(kill) for kill in kills]}
        with self._path.open("a") as file:
            file.write("\n" + json.dumps(line) + "\n")


def within(path: Path, kills: int, sitting_s: float, job: Callable[[int], tuple[list[Kill], dict[str, Any]]]) -> int:
    """Run jobs until there have been so many kills, or this sitting is over; returns how many there have been."""
    history, began_s = History(path), time.monotonic()
    while (done := history.kills()) < kills and time.monotonic() - began_s < sitting_s:
        seed, started_s = len(history.lines()), time.monotonic()
        killed, facts = job(seed)
        history.add(seed, killed, time.monotonic() - started_s, **facts)
    return done
