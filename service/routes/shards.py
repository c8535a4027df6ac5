"""Fetch a dataset, finished or not: its manifest, the list of its published shards, and each shard's bytes.

Receipts are the source, so a shard can be fetched from the moment it is published, and what is sent is what its
receipt says or nothing. A dataset in the job's output that is not the job's own is no dataset here.
"""

import hashlib
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from curator import storage
from curator.manifest import MANIFEST, CuratedReceipt, Manifest, ShardFolder
from curator.partial import PartialManifest, list_published, partial_manifest, read_shard
from service.auth import Reader
from service.context import Context, find_job
from service.datasets import explained, has_dataset, open_dataset
from service.downloads import Accelerator, etag_of, file_responses, is_not_modified, respond
from service.models import Page
from service.problems import Problem, responses
from service.routes.jobs import JobId
from service.store import Job
from service.stored_files import StoredFile

router = APIRouter(tags=["shards"])

PARQUET = "application/vnd.apache.parquet"
Number = Annotated[int, Path(ge=0, le=99_999_999, description="a shard's number")]
_FOLDERS = ("curated", "weights")  # of a whole dataset, of `curator select --weights-only`
_REFUSALS = responses(401, 403, 404, 409, 422, 429, 503)
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "you have this version already"}}
_CONDITIONS = {"Range": "one range of bytes", "If-Range": "an ETag: the range, if the shard is still this one",
               "If-None-Match": "ETags that you have", "If-Match": "the ETags that you want"}  # fmt: skip
_HEADERS = {
    "parameters": [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in _CONDITIONS.items()
    ]
}


class ShardModel(BaseModel):
    """A published shard."""

    number: int = Field(ge=0)
    file: str = Field(description="path within the dataset, such as curated/00000.parquet")
    url: str = Field(description="path of its bytes on this service")
    bytes: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="its ETag, without the quotes")
    rows: int
    tokens: int
    kept_tokens: int


# ------------------------------------------------------------------------------------------------ manifest


@router.get(
    "/jobs/{job_id}/manifest", operation_id="get_manifest", response_model=Manifest | PartialManifest,
    responses=_NOT_MODIFIED | responses(412) | _REFUSALS,
)  # fmt: skip
def get_manifest(job_id: JobId, request: Request, context: Context, principal: Reader) -> Response:
    """The finished dataset's `manifest.json` as it is stored; before that, what is published (`complete: false`)."""
    job = find_job(context, principal, job_id)
    with explained():
        content = _read_manifest(job)
    etag = etag_of(hashlib.sha256(content).hexdigest())
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if is_not_modified(request.headers, etag):
        return Response(status_code=304, headers=headers)
    return Response(content, 200, headers, "application/json")


def _read_manifest(job: Job) -> bytes:
    if job.kind != "curate":
        raise Problem(404, "no_dataset", f"job {job.id} trains a reference and makes no dataset; see its `output`")
    uri = storage.join(job.output, MANIFEST)
    if has_dataset(job) and storage.exists(uri):
        return storage.read_bytes(uri)
    opened = open_dataset(job)
    if opened is None:
        detail = f"job {job.id} has no dataset yet: it is {job.status} and not planned; ask again when it has begun"
        raise Problem(409, "not_planned", detail)
    return partial_manifest(opened).model_dump_json(indent=1).encode()


# ------------------------------------------------------------------------------------------------ shards


@router.get("/jobs/{job_id}/shards", operation_id="list_shards", responses=_REFUSALS)
def list_shards(
    job_id: JobId,
    context: Context,
    principal: Reader,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[
        int | None, Query(ge=0, le=99_999_999, description="next_cursor of the page before: a shard's number")
    ] = None,
) -> Page[ShardModel]:
    """The shards that are published at this moment, by number; more may follow while the job runs."""
    job = find_job(context, principal, job_id)
    response.headers["Cache-Control"] = "no-store"
    with explained():
        folder, versions = _list_versions(job)
        after = -1 if cursor is None else cursor
        found = list(islice(((n, version) for n, version in versions.items() if n > after), limit + 1))
        shards = [_show(job, folder, number, version) for number, version in found[:limit]]
    more = len(found) > limit
    return Page(data=shards, has_more=more, next_cursor=str(shards[-1].number) if more else None)


def _list_versions(job: Job) -> tuple[ShardFolder, dict[int, str]]:
    folders = [ShardFolder(root=job.output, name=name) for name in _FOLDERS]
    for folder in folders if has_dataset(job) else ():
        if versions := list_published(folder):
            return folder, versions
    return folders[0], {}


def _show(job: Job, folder: ShardFolder, number: int, version: str) -> ShardModel:
    entry = read_shard(folder, number, version).entry
    fields = entry.model_dump(include=set(ShardModel.model_fields) - {"url"})
    return ShardModel(url=f"/v1/jobs/{job.id}/shards/{number}", **fields)


@router.get(
    "/jobs/{job_id}/shards/{number}", operation_id="get_shard", response_class=Response,
    responses=file_responses(PARQUET) | responses(401, 403, 422, 429), openapi_extra=_HEADERS,
)  # fmt: skip
@router.head("/jobs/{job_id}/shards/{number}", operation_id="head_shard", include_in_schema=False)
def get_shard(
    job_id: JobId,
    number: Number,
    request: Request,
    context: Context,
    principal: Reader,
    redirect: Annotated[
        bool, Query(description="refer to a signed address if the shard is on an object store; false sends it here")
    ] = True,
) -> Response:
    """A published shard's bytes: a parquet file whose sha256 is the ETag, whole or a part of it."""
    job = find_job(context, principal, job_id)
    with explained():
        file = _find_shard(job, number)
    settings = context.settings
    return respond(
        request,
        file,
        filename=file.uri.rpartition("/")[2],
        media_type=PARQUET,
        accelerator=Accelerator(settings.x_accel_prefix, settings.data_dir) if settings.x_accel_prefix else None,
        redirect=redirect,
    )


def _find_shard(job: Job, number: int) -> StoredFile:
    for name in _FOLDERS if has_dataset(job) else ():
        folder = ShardFolder(root=job.output, name=name)
        uri = storage.join(folder.root, folder.receipt_file(number))
        if storage.exists(uri):
            path = storage.local_path(uri)
            recorded_ns = None if path is None else path.stat().st_mtime_ns
            receipt = folder.receipt(number, CuratedReceipt)
            return StoredFile(folder.uri(number), receipt.sha256, receipt.bytes, recorded_ns)
    detail = f"shard {number} of job {job.id} is not published (the job is {job.status}); GET .../shards lists those"
    raise Problem(404, "no_shard", f"{detail} that are")
