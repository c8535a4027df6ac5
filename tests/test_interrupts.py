"""Ctrl-C ends a run whenever it comes: in a destructor, in a library that swallows it, at any moment of a command."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator import read_manifest
from curator.interrupts import check, heeded, postponed, take
from curator.progress import Silent

CURATOR = Path(sys.executable).with_name("curator")
SOAK = bool(os.environ.get("CURATOR_SOAK"))
INTERRUPTED = 130
pytestmark = pytest.mark.usefixtures("terminal")


class Interrupted:
    """Its destructor is where Ctrl-C arrives."""

    def __init__(self, number: signal.Signals = signal.SIGINT) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_an_interrupt_that_python_ignores_comes_again(number: signal.Signals) -> None:
    gone_on = False
    with pytest.raises(KeyboardInterrupt), heeded(signal.SIGUSR1):
        Interrupted(number)
        gone_on = True
        time.sleep(10)
    assert gone_on, "nothing was lost, so nothing was proven"


def test_an_interrupt_that_a_library_swallows_ends_the_run_at_its_next_check() -> None:
    with pytest.raises(KeyboardInterrupt), heeded():
        check()
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        check()


def test_other_faults_of_destructors_are_shown_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty:
        def __del__(self) -> None:
            raise ValueError("of a destructor")

    shown: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: shown.append(str(ignored.exc_value)))
    with heeded():
        Faulty()
    assert shown == ["of a destructor"]


def test_afterwards_all_is_as_before() -> None:
    numbers = (signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers], sys.unraisablehook
    with suppress(KeyboardInterrupt), heeded(signal.SIGUSR1):
        signal.raise_signal(signal.SIGUSR1)
    assert ([signal.getsignal(number) for number in numbers], sys.unraisablehook) == before
    check()


def test_a_second_one_is_noted_only_where_a_run_heeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next run of this process would end at its first check."""
    monkeypatch.setattr("curator.interrupts._SAME_S", -1.0)
    with pytest.raises(KeyboardInterrupt), postponed():
        signal.raise_signal(signal.SIGINT)
    check()
    with heeded():
        with suppress(KeyboardInterrupt), postponed():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()


def test_what_was_taken_stops_nothing_more_but_another_one_does() -> None:
    with heeded():
        with pytest.raises(KeyboardInterrupt):
            Interrupted()  # Python ignores it, and it would be sent again
            check()
        take()
        time.sleep(0.2)
        check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "the caller's own"])
def test_a_choice_of_the_caller_stands(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with heeded():
        signal.raise_signal(signal.SIGINT)
        check()


def test_in_another_thread_nothing_is_changed() -> None:
    seen: list[Any] = []

    def look() -> None:
        with heeded(signal.SIGUSR1):
            seen.extend([signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler, signal.SIG_DFL]


# ------------------------------------------------------------------------------------------------ with Ray


class Doze:
    """A stage whose tasks take a hundredth of a second, so that the driver is hardly ever at rest."""

    def open(self) -> None:
        pass

    def load(self, task: int) -> int:
        return task

    def run(self, task: int, inputs: int, on_tokens: Callable[[int], None]) -> int:
        time.sleep(0.01)
        return task


@contextmanager
def ctrl_c_after(seconds: float) -> Iterator[None]:
    """Press it in another thread, once; this waits until that has happened."""
    thread = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGINT])
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.slow
def test_a_map_over_shards_ends_at_any_moment(ray_cluster: None) -> None:
    from curator.cluster import Pool, Workers

    moments = random.Random(0)
    for _ in range(200 if SOAK else 25):
        started_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt), heeded():
            pool = Pool(Workers(count=1), retries=0)
            with ctrl_c_after(moments.uniform(0, 1)):
                while True:
                    pool.grow(1)
                    pool.map(Doze(), range(20), reporter=Silent(), tokens_of=int, on_result=lambda _: None)
        pool.close()
        assert time.monotonic() - started_s < 10


# ------------------------------------------------------------------------------------------------ the command


def press(command: list[Any], after_s: float) -> tuple[int, str, bool]:
    """Run a command and press Ctrl-C once: its exit code, what it said, and whether its job had begun by then."""
    spec = yaml.safe_load(Path(command[-1]).read_text())
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
    begun = Path(spec["output"]["uri"]).exists()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said, begun


@pytest.mark.slow
def test_a_command_ends_at_any_moment_and_goes_on_afterwards(
    make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def command(name: str) -> list[Any]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(make_spec(rows=100, shard_tokens=20_000, output={"uri": str(tmp_path / name)})))
        return [CURATOR, "run", path]

    started_s = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True)
    whole_s = time.monotonic() - started_s
    whole = [shard.sha256 for shard in read_manifest(str(tmp_path / "whole")).shards]
    moments = random.Random(0)
    for number in range(60 if SOAK else 3):
        name = f"stopped-{number}"
        code, said, begun = press(command(name), moments.uniform(0.1, 1) * whole_s)
        if (tmp_path / name / "manifest.json").exists():
            continue
        assert code, said
        if begun:  # before that, the signal may have ended Python while it imported the command
            assert code == INTERRUPTED and "interrupted; run the same command to resume" in said, said
    subprocess.run(command(name), check=True, capture_output=True)
    assert [shard.sha256 for shard in read_manifest(str(tmp_path / name)).shards] == whole
