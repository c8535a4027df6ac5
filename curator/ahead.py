"""Call a function for many things, a few at a time: object stores answer slowly, but they answer many at once.

Reading a hundred thousand receipts one after the other, at 30 ms each, would take the better part of an hour.

Invariant: results come in the order of the items, and memory holds a few of them, whatever their number.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from curator import interrupts, storage
from curator.places import CONNECTIONS

Item = TypeVar("Item")
Result = TypeVar("Result")


def answers_at_once(root: str) -> int:
    """How many calls to have under way for files there: one on a local disk, where more would only cost time."""
    return 1 if storage.local_path(root) is not None else CONNECTIONS


def files_at_once(root: str) -> int:
    """How many whole files to read at a time, where reading is work: unpacking one leaves Python's lock to others."""
    return max(answers_at_once(root), min(os.cpu_count() or 1, CONNECTIONS))


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
    """Like `map(read, items)`, with calls under way ahead of the reader; an interrupt is heeded between two results.

    Args:
        read: what to call; in other threads where `at_once` is more than 1.
        items: its arguments.
        at_once: how many calls may be under way; results of as many more may wait to be taken.
    """
    if at_once == 1:
        for item in items:
            interrupts.check()
            yield read(item)
        return
    under_way: deque[Future[Result]] = deque()
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="ahead")
    try:
        for item in items:
            interrupts.check()
            under_way.append(threads.submit(read, item))
            if len(under_way) == 2 * at_once:
                yield under_way.popleft().result()
        while under_way:
            interrupts.check()
            yield under_way.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
