"""The waiting jobs, remembered for a moment: where a job stands, without counting thousands for every question.

What was read is used for fifty times as long as reading it took: with few waiting jobs that is no time at all, with
twenty thousand about a second. Places may be that old; nothing is decided by them. Whether there is room for one more
is decided by counting, once it is near.
"""

import threading
import time
from bisect import bisect_left

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from service.database import reading
from service.tables import jobs

_REST = 50
_NEAR = 1000


class QueueView:
    """Ids of each tenant's waiting jobs, oldest first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._read: dict[str, tuple[list[str], float]] = {}
        self._counted: dict[str | None, tuple[int, float]] = {}

    def place(self, tenant: str, job_id: str) -> int:
        """1 = the next of this tenant's."""
        return bisect_left(self._waiting(tenant), job_id) + 1

    def count(self, connection: Connection, tenant: str | None, limit: int) -> int:
        """How many wait of a tenant, or of all: counted, but if the limit is far, at times from memory.

        Asked by each submission behind its own insertion, so that memory grows by one with every question.
        """
        number, until_s = self._counted.get(tenant, (limit, 0.0))
        began_s = time.monotonic()
        if began_s < until_s and number < limit - _NEAR:
            number += 1
        else:
            query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.status == "queued")
            query = query if tenant is None else query.where(jobs.c.tenant == tenant)
            number = int(connection.execute(query).scalar_one())
            now_s = time.monotonic()
            until_s = now_s + _REST * (now_s - began_s)
        self._counted[tenant] = number, until_s
        return number

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
