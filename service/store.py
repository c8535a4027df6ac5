"""Jobs in the database: every query on them, and the one way in which they change.

A job changes only by compare-and-set on (status, epoch): whoever loses is told so and looks again. Every query that
serves a request names the tenant, so that another tenant's job does not exist for it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from curator.job_directory import ACTIVE, TERMINAL, JobKind, JobRecord, Status
from service.database import lock_for_transaction, reading, writing
from service.queue_view import QueueView
from service.tables import idempotency, jobs
from service.turns import choose_next

_ASKED_AT_ONCE = 500
_CLAIM_LOCK = 0x636C6169
_ONE_JOB = sa.select(jobs).where(jobs.c.id == sa.bindparam("asked_id"))  # made once: these are asked all the time
_TENANTS_JOB = _ONE_JOB.where(jobs.c.tenant == sa.bindparam("asked_tenant"))

TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    "queued": frozenset({"validating", "cancelling", "cancelled"}),
    "validating": frozenset({"in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled", "queued"}),
    "in_progress": frozenset({"finalizing", "completed", "failed", "cancelling", "cancelled", "queued"}),
    "finalizing": frozenset({"completed", "failed", "cancelling", "cancelled", "queued"}),
    "cancelling": frozenset({"cancelled", "completed"}),
    "completed": frozenset(),
    "cancelled": frozenset({"queued"}),
    "failed": frozenset({"queued"}),
}
"""Where a job may go. Back to `queued` from an active state: its driver died, and it is started again."""


@dataclass(frozen=True)
class Job:
    """One job, as a request sees it."""

    id: str
    tenant: str
    kind: JobKind
    name: str
    status: Status
    epoch: int
    attempt: int
    version: int
    spec: dict[str, Any]
    output: str
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    progress: dict[str, Any] | None
    totals: dict[str, Any] | None
    quarantined: dict[str, int] | None
    error: dict[str, Any] | None
    owner: str | None
    lease_until: float | None
    relaunches: int
    event_offset: int
    directory: Path

    @property
    def terminal(self) -> bool:
        """Whether it has ended, for now: it may still be resumed."""
        return self.status in TERMINAL


class Store:
    """The jobs' table."""

    def __init__(self, engine: Engine, jobs_dir: Path) -> None:
        self.engine = engine
        self._jobs_dir = jobs_dir
        self._queue = QueueView(engine)

    # -------------------------------------------------------------------------------------------- reading

    def job(self, job_id: str, tenant: str | None = None) -> Job | None:
        """One job; None also when it is another tenant's. Without a tenant, for the service's own work, any."""
        with reading(self.engine) as connection:
            query = _ONE_JOB if tenant is None else _TENANTS_JOB
            row = connection.execute(query, {"asked_id": job_id, "asked_tenant": tenant}).one_or_none()
        return None if row is None else self._job(row)

    def page(
        self,
        tenant: str,
        *,
        status: Sequence[str] = (),
        kind: str | None = None,
        name: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """A tenant's jobs, newest first; `name` is a part of the name, `before` the id to go on from."""
        query = sa.select(jobs).where(jobs.c.tenant == tenant).order_by(jobs.c.id.desc()).limit(limit)
        if status:
            query = query.where(jobs.c.status.in_(status))
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        if name is not None:
            query = query.where(jobs.c.name.icontains(name, autoescape=True))
        if before is not None:
            query = query.where(jobs.c.id < before)
        with reading(self.engine) as connection:
            return [self._job(row) for row in connection.execute(query)]

    def in_states(self, states: Sequence[str] | frozenset[Status]) -> list[Job]:
        """Every tenant's jobs in these states, oldest first; for the service's own work."""
        query = sa.select(jobs).where(jobs.c.status.in_(states)).order_by(jobs.c.id)
        with reading(self.engine) as connection:
            return [self._job(row) for row in connection.execute(query)]

    def ended_before(self, moment: float, limit: int) -> list[Job]:
        """Jobs that ended before a moment in seconds since 1970, oldest first."""
        query = sa.select(jobs).where(jobs.c.status.in_(TERMINAL), jobs.c.updated_at < moment)
        with reading(self.engine) as connection:
            return [self._job(row) for row in connection.execute(query.order_by(jobs.c.id).limit(limit))]

    def outputs_in_use(self, tenant: str, but: str) -> list[str]:
        """Outputs of other tenants' jobs and of those that have not ended, but for places under `but`."""
        others = (jobs.c.tenant != tenant) | jobs.c.status.not_in(TERMINAL)
        elsewhere = ~jobs.c.output.startswith(but.rstrip("/") + "/", autoescape=True)
        with reading(self.engine) as connection:
            return list(connection.execute(sa.select(jobs.c.output).where(others, elsewhere)).scalars())

    def present(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are jobs here."""
        found: set[str] = set()
        with reading(self.engine) as connection:
            for start in range(0, len(ids), _ASKED_AT_ONCE):
                query = sa.select(jobs.c.id).where(jobs.c.id.in_(ids[start : start + _ASKED_AT_ONCE]))
                found.update(connection.execute(query).scalars())
        return found

    def at_rest(self, after: str, limit: int) -> list[tuple[str, int]]:
        """Ids and epochs of the next jobs that nobody works on: they wait, or have ended."""
        query = sa.select(jobs.c.id, jobs.c.epoch).where(jobs.c.status.not_in(ACTIVE), jobs.c.id > after)
        query = query.order_by(jobs.c.id).limit(limit)
        with reading(self.engine) as connection:
            return [(job_id, int(epoch)) for job_id, epoch in connection.execute(query)]

    def any_waits(self) -> bool:
        """Whether a job is queued."""
        with reading(self.engine) as connection:
            return (
                connection.execute(sa.select(jobs.c.id).where(jobs.c.status == "queued").limit(1)).first() is not None
            )

    def waiting_since(self) -> float | None:
        """When the job that waits longest began to wait, in seconds since 1970: attempts to start it end no wait."""
        query = sa.select(sa.func.min(jobs.c.queued_at)).where(jobs.c.status == "queued")
        with reading(self.engine) as connection:
            found = connection.execute(query).scalar_one()
        return None if found is None else float(found)

    def waiting(self, connection: Connection, tenant: str | None, limit: int) -> int:
        """How many jobs wait, of a tenant or of all, for a decision by this limit."""
        return self._queue.count(connection, tenant, limit)

    def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are of each kind in each state."""
        query = sa.select(jobs.c.kind, jobs.c.status, sa.func.count()).group_by(jobs.c.kind, jobs.c.status)
        with reading(self.engine) as connection:
            return {(kind, status): int(number) for kind, status, number in connection.execute(query)}

    def queue_positions(self, found: Sequence[Job]) -> dict[str, int]:
        """Places of those jobs of one tenant that wait, among all of its own; what others do is not to be seen."""
        return {job.id: self._queue.place(job.tenant, job.id) for job in found if job.status == "queued"}

    # -------------------------------------------------------------------------------------------- writing

    def insert(self, connection: Connection, record: JobRecord, **known: Any) -> Job:
        """Add a job that has a directory; `known` are columns that a rebuild has read from its events."""
        created = datetime.fromisoformat(record.created_at).timestamp()
        values: dict[str, Any] = {
            **record.model_dump(include={"id", "tenant", "kind", "name", "spec", "output", "epoch", "attempt"}),
            "status": "queued", "created_at": created, "queued_at": created, "updated_at": created,
        }  # fmt: skip
        return self._job(connection.execute(jobs.insert().values(values | known).returning(*jobs.c)).one())

    def move(self, job: Job, to: Status, **changes: Any) -> Job | None:
        """Compare-and-set: change a job's state if its state and epoch are still those of `job`.

        Returns:
            The job as it is now, or None if somebody else has changed it first.
        """
        assert to in TRANSITIONS[job.status] or to == job.status, f"{job.id}: {job.status} -> {to}"
        return self._set(job, to, changes)

    def adopt(self, job: Job, to: Status, **changes: Any) -> Job | None:
        """Compare-and-set to what the job's directory says, whatever that is, of an owner who did not ask here."""
        return self._set(job, to, changes)

    def _set(self, job: Job, to: Status, changes: dict[str, Any]) -> Job | None:
        moment = time.time()
        changes = {"status": to, "updated_at": moment, "version": jobs.c.version + 1} | changes
        if to in TERMINAL:  # when its driver says that it ended, however much later a service reads that
            changes |= {"finished_at": changes.get("finished_at") or moment, "owner": None, "lease_until": None}
        same = [jobs.c.id == job.id, jobs.c.status == job.status, jobs.c.epoch == job.epoch]
        if "event_offset" in changes:  # of two services that read the same events, one has read them
            same.append(jobs.c.event_offset == job.event_offset)
        update = jobs.update().where(*same).values(changes).returning(*jobs.c)
        with writing(self.engine) as connection:
            row = connection.execute(update).one_or_none()
        return None if row is None else self._job(row)

    def renew(self, owner: str, ids: Sequence[str], lease_until: float) -> None:
        """Keep the leases that this service holds; says nothing to readers."""
        update = jobs.update().where(jobs.c.owner == owner, jobs.c.id.in_(ids)).values(lease_until=lease_until)
        with writing(self.engine) as connection:
            connection.execute(update)

    def take_over(self, job: Job, owner: str, lease_until: float) -> Job | None:
        """Become the service that watches an active job, whose watcher has died; None if another was faster.

        Its lease is compared, too: a watcher that renews it in this moment keeps the job.
        """
        same = sa.and_(
            jobs.c.owner.is_not_distinct_from(job.owner), jobs.c.lease_until.is_not_distinct_from(job.lease_until)
        )
        update = (
            jobs.update()
            .where(jobs.c.id == job.id, jobs.c.status == job.status, jobs.c.epoch == job.epoch, same)
            .values(owner=owner, lease_until=lease_until)
            .returning(*jobs.c)
        )
        with writing(self.engine) as connection:
            row = connection.execute(update).one_or_none()
        return None if row is None else self._job(row)

    def delete(self, connection: Connection, job: Job) -> bool:
        """Forget an ended job and its idempotency keys; False if it has changed in the meantime."""
        same = (jobs.c.id == job.id) & (jobs.c.status == job.status) & (jobs.c.epoch == job.epoch)
        deleted = connection.execute(jobs.delete().where(same)).rowcount == 1
        if deleted:
            self.forget(connection, job.id)
        return deleted

    def forget(self, connection: Connection, job_id: str) -> None:
        """Forget a job in whatever state, and its idempotency keys."""
        connection.execute(jobs.delete().where(jobs.c.id == job_id))
        connection.execute(idempotency.delete().where(idempotency.c.job_id == job_id))

    def claim(self, owner: str, lease_until: float, running: int, running_per_tenant: int | None) -> Job | None:
        """Take the next job in fair turns: of the tenant with the fewest running, then the one served longest ago.

        Args:
            owner: this service.
            lease_until: until when it holds the job without renewing.
            running: how many jobs may run at once.
            running_per_tenant: how many of one tenant.

        Returns:
            The job, now `validating` with a new epoch; None if nothing waits or there is no room.
        """
        with writing(self.engine) as connection:
            lock_for_transaction(connection, _CLAIM_LOCK)
            job_id = choose_next(connection, running, running_per_tenant)
            if job_id is None:
                return None
            moment = time.time()
            update = (
                jobs.update()
                .where(jobs.c.id == job_id, jobs.c.status == "queued")
                .values(
                    status="validating", epoch=jobs.c.epoch + 1, version=jobs.c.version + 1, owner=owner,
                    lease_until=lease_until, updated_at=moment, started_at=moment,
                )
                .returning(*jobs.c)
            )  # fmt: skip
            row = connection.execute(update).one_or_none()
        return None if row is None else self._job(row)

    def _job(self, row: Any) -> Job:
        values = dict(row._mapping)
        for name in ("created_at", "queued_at", "started_at", "finished_at", "updated_at"):
            values[name] = None if values[name] is None else datetime.fromtimestamp(values[name], UTC)
        return Job(**values, directory=self._jobs_dir / row.id)
