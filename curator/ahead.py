"""Call a function for many things, a few at a time: object stores answer slowly, but they answer many at once.

Reading a hundred thousand receipts one after the other, at 30 ms each, would take the better part of an hour.

Invariant: results come in the order of the items, and memory holds a few of them, whatever their number.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from curator import interrupts, storage

_THREADS = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], root: str) -> Iterator[Result]:
    """Like `map(read, items)`, with calls under way ahead of the reader; an interrupt is heeded between two results.

    Args:
        read: what to call; in other threads, unless `root` is on a local disk, where that would only cost time.
        items: its arguments.
        root: where it reads.
    """
    if storage.local_path(root) is not None:
        for item in items:
            interrupts.check()
            yield read(item)
        return
    under_way: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ahead") as threads:
        for item in items:
            interrupts.check()
            under_way.append(threads.submit(read, item))
            if len(under_way) == 2 * _THREADS:
                yield under_way.popleft().result()
        while under_way:
            interrupts.check()
            yield under_way.popleft().result()
