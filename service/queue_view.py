"""The waiting jobs, remembered for a moment: where a job stands, without counting thousands for every question.

What was read is used for fifty times as long as reading it took: with few waiting jobs that is no time at all, with
twenty thousand about a second. Places may be that old; nothing is decided by them.
"""

import threading
import time
from bisect import bisect_left

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from service.database import reading
from service.tables import jobs

_REST = 50


class QueueView:
    """Ids of each tenant's waiting jobs, oldest first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._read: dict[str, tuple[list[str], float]] = {}

    def place(self, tenant: str, job_id: str) -> int:
        """1 = the next of this tenant's."""
        return bisect_left(self._waiting(tenant), job_id) + 1

    def _waiting(self, tenant: str) -> list[str]:
        ids, until_s = self._read.get(tenant, ([], 0.0))
        if time.monotonic() < until_s:
            return ids
        with self._lock:
            ids, until_s = self._read.get(tenant, ([], 0.0))
            if time.monotonic() >= until_s:
                began_s = time.monotonic()
                query = sa.select(jobs.c.id).where(jobs.c.tenant == tenant, jobs.c.status == "queued")
                with reading(self._engine) as connection:
                    ids = list(connection.execute(query.order_by(jobs.c.id)).scalars())
                now_s = time.monotonic()
                self._read[tenant] = ids, now_s + _REST * (now_s - began_s)
        return ids
