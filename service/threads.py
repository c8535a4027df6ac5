"""Where short requests do their work: in few threads, apart from those that read, check and stream files.

Few on purpose: the interpreter runs one thread at a time, and dozens that all want it spend more on taking turns than
on work. With forty, 264 requests a second held up each other for seconds; with these they take some 30 ms.
"""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

_READERS, _WRITERS = 2, 3
Result = TypeVar("Result")


class Threads:
    """Two queues, so that nobody who looks waits behind those who submit."""

    def __init__(self) -> None:
        self._readers, self._writers = CapacityLimiter(_READERS), CapacityLimiter(_WRITERS)

    async def read(self, work: Callable[[], Result]) -> Result:
        """Do what asks the database once or twice."""
        return await to_thread.run_sync(work, limiter=self._readers)

    async def write(self, work: Callable[[], Result]) -> Result:
        """Do what changes the database, and the files of a job."""
        return await to_thread.run_sync(work, limiter=self._writers)
