"""Whose turn it is: fair between tenants, whatever each of them has queued."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from curator.job_directory import ACTIVE
from service.tables import jobs


def choose_next(connection: Connection, running: int, running_per_tenant: int | None) -> str | None:
    """Id of the job to start: of the tenant with the fewest running, then of the one served longest ago."""
    active = sa.select(jobs.c.tenant, sa.func.count()).where(jobs.c.status.in_(ACTIVE)).group_by(jobs.c.tenant)
    running_of: dict[str, int] = {tenant: number for tenant, number in connection.execute(active)}
    if sum(running_of.values()) >= running:
        return None
    served = sa.select(jobs.c.tenant, sa.func.max(jobs.c.started_at)).group_by(jobs.c.tenant)
    served_at = {tenant: moment or 0.0 for tenant, moment in connection.execute(served)}
    oldest = sa.select(jobs.c.tenant, sa.func.min(jobs.c.id)).where(jobs.c.status == "queued").group_by(jobs.c.tenant)
    turns = [
        (running_of.get(tenant, 0), served_at.get(tenant, 0.0), job_id)
        for tenant, job_id in connection.execute(oldest)
        if running_per_tenant is None or running_of.get(tenant, 0) < running_per_tenant
    ]
    return min(turns)[2] if turns else None
