"""Look at a job's dataset while it is made and afterwards: documents, histograms, faults, funnel, report.

Thin over `curator.inspection`, which reads the dataset's own folder: before anything is published the answers are
empty, never errors; and so they are for a dataset that is not the job's own.
"""

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from curator import inspection, storage
from curator.inspection import Faults, Funnel, Histograms, Preview, Selection
from curator.job import Job as CurationJob
from curator.manifest import REPORT
from service.auth import Reader
from service.context import Context, find_job
from service.datasets import explained, has_dataset, open_dataset
from service.problems import Problem, responses
from service.routes.jobs import JobId
from service.store import Job

router = APIRouter(tags=["looking"])

_NO_STORE = {"Cache-Control": "no-store"}
_REFUSALS = responses(401, 403, 404, 409, 422, 429, 503)
_HTML: dict[int | str, dict[str, Any]] = {
    200: {"description": "the report", "content": {"text/html": {"schema": {"type": "string"}}}}
}


@router.get("/jobs/{job_id}/preview", operation_id="preview_job", responses=_REFUSALS)
def preview_job(
    job_id: JobId,
    context: Context,
    principal: Reader,
    response: Response,
    select: Annotated[
        Selection, Query(description="most kept, most dropped, nearest to the cut, or the first")
    ] = "kept",
    limit: Annotated[int, Query(ge=1, le=50, description="most documents")] = 8,
    shard: Annotated[int | None, Query(ge=0, le=10**9, description="look into this shard alone")] = None,
) -> Preview:
    """A few documents, token by token, with every token's weight, score and losses."""
    response.headers.update(_NO_STORE)
    with _opened(find_job(context, principal, job_id)) as job:
        if job is None:
            return Preview(select=select)
        return inspection.read_preview(job, select=select, limit=limit, shard=shard)


@router.get("/jobs/{job_id}/histograms", operation_id="read_histograms", responses=_REFUSALS)
def read_histograms(job_id: JobId, context: Context, principal: Reader, response: Response) -> Histograms:
    """Tokens by score and by loss, with the cut, overall and by source."""
    response.headers.update(_NO_STORE)
    with _opened(find_job(context, principal, job_id)) as job:
        return Histograms() if job is None else inspection.read_histograms(job)


@router.get("/jobs/{job_id}/errors", operation_id="list_errors", responses=_REFUSALS)
def list_errors(
    job_id: JobId,
    context: Context,
    principal: Reader,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[
        str | None, Query(pattern=inspection.POSITION, description="next_cursor of the page before")
    ] = None,
) -> Faults:
    """Lost shards and quarantined rows, with the reasons counted."""
    response.headers.update(_NO_STORE)
    with _opened(find_job(context, principal, job_id)) as job:
        return Faults() if job is None else inspection.read_errors(job, cursor, limit)


@router.get("/jobs/{job_id}/funnel", operation_id="read_funnel", responses=_REFUSALS)
def read_funnel(job_id: JobId, context: Context, principal: Reader, response: Response) -> Funnel:
    """How many documents and tokens were read, quarantined, scored, kept and dropped so far."""
    response.headers.update(_NO_STORE)
    with _opened(find_job(context, principal, job_id)) as job:
        return Funnel() if job is None else inspection.read_funnel(job)


@router.get(
    "/jobs/{job_id}/report", operation_id="get_report", response_class=Response, responses=_HTML | _REFUSALS
)  # fmt: skip
def get_report(job_id: JobId, context: Context, principal: Reader) -> Response:
    """The dataset's report: one HTML page, which browsers keep away from everything else of this service."""
    job = find_job(context, principal, job_id)
    uri = storage.join(job.output, REPORT)
    with explained():
        if not (has_dataset(job) and storage.exists(uri)):
            raise Problem(
                404, "no_report", f"job {job.id} has no report (its status is {job.status}); wait for its end"
            )
        content = storage.read_bytes(uri)
    headers = _NO_STORE | {"Content-Security-Policy": report_policy(), "X-Content-Type-Options": "nosniff"}
    return Response(content, 200, headers, "text/html; charset=utf-8")


@cache
def report_policy() -> str:
    """What a report may do: run the script of this version's reports, in an origin of its own.

    The page says the same of itself, but whoever can write into an output can write another page there.
    """
    script = files("curator.report").joinpath("report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@contextmanager
def _opened(job: Job) -> Iterator[CurationJob | None]:
    """The job as the library sees it; None while there is nothing to look at."""
    with explained():
        yield open_dataset(job)
