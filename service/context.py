"""What every endpoint works with: settings, stores, the rate limit; and finding a job for whoever asks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

from service.changes import Changes
from service.keys import KeyStore
from service.metrics import Metrics
from service.problems import Problem
from service.readiness import Readiness
from service.settings import Settings
from service.store import Job, Store
from service.threads import Threads

if TYPE_CHECKING:
    from service.auth import Principal, RateLimit
    from service.discovery import Discovery
    from service.submissions import Submissions
    from service.watcher import Watcher


@dataclass(frozen=True)
class Services:
    """The parts of one running service."""

    settings: Settings
    store: Store
    keys: KeyStore
    submissions: "Submissions"
    discovery: "Discovery"
    watcher: "Watcher"
    changes: Changes
    metrics: Metrics
    readiness: Readiness
    rate_limit: "RateLimit"
    threads: Threads


async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


Context = Annotated[Services, Depends(_services)]


def find_job(context: Services, principal: "Principal", job_id: str) -> Job:
    """The tenant's job; Problem 404 if there is none, which is also the answer for another tenant's."""
    job = context.store.job(job_id, principal.tenant)
    if job is None:
        raise Problem(404, "no_job", f"there is no job {job_id!r}")
    return job
