"""Reading ahead: in order, bounded, many at once where answers are slow, and stopped by an interrupt."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curator import interrupts
from curator.ahead import answers_at_once, files_at_once, read_ahead


@pytest.fixture(params=[1, 2, 32])
def at_once(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_results_come_in_the_order_of_the_items(at_once: int) -> None:
    def late(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(read_ahead(late, range(200), at_once)) == [i * i for i in range(200)]
    assert list(read_ahead(late, [], at_once)) == []


def test_slow_answers_are_waited_for_together() -> None:
    def slow(item: int) -> int:
        time.sleep(0.05)
        return item

    started_s = time.monotonic()
    assert list(read_ahead(slow, range(128), 32)) == list(range(128))
    assert time.monotonic() - started_s < 128 * 0.05 / 4


def test_no_more_is_asked_for_than_a_few_ahead_of_the_reader(at_once: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(10_000):
            taken = item
            yield item

    reader = read_ahead(lambda item: item, items(), at_once)
    assert [next(reader) for _ in range(3)] == [0, 1, 2]
    assert taken < 100
    reader.close()  # type: ignore[attr-defined]


def test_the_error_of_a_call_is_the_readers(at_once: int) -> None:
    def read(item: int) -> int:
        if item == 70:
            raise OSError("item 70 is gone")
        return item

    reader = read_ahead(read, range(10_000), at_once)
    assert [next(reader) for _ in range(70)] == list(range(70))
    with pytest.raises(OSError, match="item 70"):
        next(reader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_interrupt_is_heeded_between_two_results(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        if len(got) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupts, "check", interrupted)
    got = list[int]()
    with pytest.raises(KeyboardInterrupt):
        for item in read_ahead(lambda item: item, range(10_000), at_once):
            got.append(item)
    assert got == list(range(5))


def test_a_local_disk_is_asked_once_at_a_time_and_a_store_often(tmp_path: Path) -> None:
    assert answers_at_once(str(tmp_path)) == 1 < answers_at_once("memory://somewhere") == 32
    assert 1 <= files_at_once(str(tmp_path)) <= 32 == files_at_once("memory://somewhere")
