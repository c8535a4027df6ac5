"""Submit, list, follow, cancel, resume and delete jobs."""

import asyncio
import hashlib
import json
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from curator.job_directory import JOB_ID_PATTERN, JobDirectory, JobKind, Status
from service.admission import AdmittedSpec, admit, read_json_body
from service.auth import Principal, Reader, Writer
from service.context import Context, Services, find_job
from service.dry_run import dry_run
from service.ids import known_form
from service.models import EstimateModel, JobModel, Page, job_model
from service.openapi import SPEC_BODY
from service.problems import responses
from service.store import Job
from service.uploads import find_upload

router = APIRouter(tags=["jobs"])

JobId = Annotated[
    str, Path(description="a job's id", json_schema_extra={"pattern": JOB_ID_PATTERN}),
    known_form("job", JOB_ID_PATTERN),
]  # fmt: skip
Kind = Annotated[JobKind, Query(description="what the body is: a curation spec, or the spec of train-reference")]
_LEAST_LOOK_S = 5.0
_LONGEST_WAIT_S = 60.0
_LOCATION = {"description": "path of the job", "schema": {"type": "string"}}
_ETAG = {"description": "changes whenever the job does", "schema": {"type": "string"}}
_QUEUED: dict[str, Any] = {"description": "the job, queued", "headers": {"Location": _LOCATION}}
_JOB: dict[str, Any] = {"description": "the job", "headers": {"Location": _LOCATION, "ETag": _ETAG}}


def _admit(context: Services, principal: Principal, body: bytes, kind: JobKind, output: str) -> AdmittedSpec:
    return admit(
        read_json_body(body),
        settings=context.settings,
        tenant=principal.tenant,
        job_output=output,
        owns_job=lambda job_id: context.store.job(job_id, principal.tenant) is not None,
        find_upload=partial(find_upload, context.settings),
        kind=kind,
    )


def _admit_again(context: Services, principal: Principal, job: Job) -> None:
    with suppress(FileNotFoundError):
        if JobDirectory(job.directory).record().cwd is None:
            _admit(context, principal, json.dumps(job.spec).encode(), job.kind, job.output)


def show(context: Services, job: Job) -> JobModel:
    """A job as the API shows it."""
    return job_model(job, context.store.queue_positions([job]).get(job.id))


def _names(header: str, etag: str) -> bool:
    """Whether an If-None-Match names this version; `*` names any."""
    return header.strip() == "*" or etag in header


def _answer(context: Services, job: Job, status: int = 200) -> Response:
    shown = show(context, job)
    body = shown.model_dump_json().encode()
    etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'  # of the content: versions start anew by reindexing
    headers = {"ETag": etag, "Cache-Control": "no-cache, private", "Location": f"/v1/jobs/{job.id}"}
    return Response(body, status, headers, "application/json")


@router.post(
    "/jobs", status_code=202, response_model=JobModel, operation_id="submit_job", openapi_extra=SPEC_BODY,
    responses={202: _QUEUED, **responses(400, 401, 403, 409, 413, 422, 429)},
)  # fmt: skip
async def submit_job(
    request: Request,
    context: Context,
    principal: Writer,
    kind: Kind = "curate",
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$", description="makes repeating safe")
    ] = None,
) -> Response:
    """Queue a job. The body is the spec; `output` may be left out, then the dataset is kept with the job."""
    body = await request.body()

    def submit() -> Response:
        digest = hashlib.sha256(kind.encode() + b"\0" + body).hexdigest()
        answer, replayed = context.submissions.submit(
            principal.tenant, kind,
            lambda output: _admit(context, principal, body, kind, output),
            digest, idempotency_key, lambda job, place: job_model(job, place).model_dump(mode="json"),
        )  # fmt: skip
        headers = {"Location": f"/v1/jobs/{answer['id']}", "Cache-Control": "no-store"}
        return JSONResponse(answer, 202, headers | ({"Idempotency-Replayed": "true"} if replayed else {}))

    return await context.threads.write(submit)


@router.post(
    "/jobs:validate", response_model=EstimateModel, operation_id="validate_job", openapi_extra=SPEC_BODY,
    responses=responses(400, 401, 403, 413, 422, 429, 503),
)  # fmt: skip
async def validate_job(
    request: Request,
    context: Context,
    principal: Reader,
    kind: Kind = "curate",
    plan: Annotated[bool, Query(description="also plan and measure; false checks the spec alone, at once")] = True,
) -> EstimateModel:
    """Check a spec and say what the job would take. Nothing is kept."""
    body = await request.body()
    output = str(context.settings.jobs_dir / "job_validate" / "output")
    admitted = await run_in_threadpool(_admit, context, principal, body, kind, output)
    if kind != "curate":
        return EstimateModel(name=admitted.name, warnings=["the time of a training run is not estimated"])
    if not plan:
        return EstimateModel(name=admitted.name)
    return await dry_run(admitted.content, context.settings, tenant=principal.tenant)


@router.get("/jobs", operation_id="list_jobs", responses=responses(401, 403, 422, 429))
def list_jobs(
    context: Context,
    principal: Reader,
    status: Annotated[list[Status], Query(description="any of these")] = [],  # noqa: B006
    kind: Annotated[JobKind | None, Query()] = None,
    name: Annotated[str | None, Query(max_length=200, description="a part of the name")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=JOB_ID_PATTERN, description="next_cursor of the page before")] = None,
) -> Page[JobModel]:
    """Your jobs, newest first."""
    if name is not None and "\0" in name:
        return Page(data=[], has_more=False)
    found = context.store.page(
        principal.tenant, status=status, kind=kind, name=name, before=cursor, limit=limit + 1
    )  # fmt: skip
    places = context.store.queue_positions(found[:limit])
    shown = [job_model(job, places.get(job.id)) for job in found[:limit]]
    more = len(found) > limit
    return Page(data=shown, has_more=more, next_cursor=shown[-1].id if more else None)


@router.get(
    "/jobs/{job_id}", response_model=JobModel, operation_id="get_job",
    responses={200: _JOB, 304: {"description": "not changed"}, **responses(401, 403, 404, 422, 429)},
)  # fmt: skip
async def get_job(
    job_id: JobId,
    request: Request,
    context: Context,
    principal: Reader,
    wait: Annotated[float, Query(ge=0, le=3600, description="seconds to wait for a change, at most 60 at once")] = 0,
    if_none_match: Annotated[str | None, Header(description="the ETag that you have")] = None,
) -> Response:
    """A job. With `wait`, answers when it has changed (from what If-None-Match names), or has ended, or time is up."""
    deadline = asyncio.get_running_loop().time() + min(wait, _LONGEST_WAIT_S)

    def look() -> tuple[Job, Response]:
        job = find_job(context, principal, job_id)
        return job, _answer(context, job)

    with context.changes.of(job_id) as changed:
        job, answer = await context.threads.read(look)
        known = if_none_match or (answer.headers["etag"] if wait else "")
        while not job.terminal and _names(known, answer.headers["etag"]):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or await request.is_disconnected():
                break
            with suppress(TimeoutError):  # another service may have changed it
                await asyncio.wait_for(changed.wait(), min(left, _LEAST_LOOK_S))
            changed.clear()
            job, answer = await context.threads.read(look)
    if if_none_match is not None and _names(if_none_match, answer.headers["etag"]):
        return Response(status_code=304, headers={"ETag": answer.headers["etag"], "Cache-Control": "no-cache, private"})
    return answer


@router.post(
    "/jobs/{job_id}/cancel", status_code=202, response_model=JobModel, operation_id="cancel_job",
    responses={202: _JOB, **responses(401, 403, 404, 409, 422, 429)},
)  # fmt: skip
def cancel_job(job_id: JobId, context: Context, principal: Writer) -> Response:
    """Stop a job; what it has published stays. Asking twice is the same as asking once."""
    job = context.submissions.cancel(find_job(context, principal, job_id))
    context.changes.tell(job_id)
    return _answer(context, job, 202)


@router.post(
    "/jobs/{job_id}/resume", status_code=202, response_model=JobModel, operation_id="resume_job",
    responses={202: _JOB, **responses(401, 403, 404, 409, 422, 429)},
)  # fmt: skip
def resume_job(job_id: JobId, context: Context, principal: Writer) -> Response:
    """Queue a cancelled or failed job again, as a new attempt that goes on from what is published."""
    job = find_job(context, principal, job_id)
    if job.terminal:  # what the operator allows may have changed since; a job of `curator run` was never asked
        _admit_again(context, principal, job)
    job = context.submissions.resume(job)
    context.changes.tell(job_id)
    return _answer(context, job, 202)


@router.delete(
    "/jobs/{job_id}", status_code=204, operation_id="delete_job", responses=responses(401, 403, 404, 409, 422, 429)
)
def delete_job(job_id: JobId, context: Context, principal: Writer) -> Response:
    """Remove an ended job with its directory; a dataset elsewhere (`output.uri`) stays."""
    context.submissions.delete(find_job(context, principal, job_id))
    context.changes.tell(job_id)
    return Response(status_code=204)
