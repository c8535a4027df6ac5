"""Uploads of small corpora: a raw body in, `upload://ID/FILENAME` out, which a spec may then name as corpus.uri."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from curator import storage
from curator.errors import StorageError
from curator.job_directory import TERMINAL
from service.auth import Principal, Reader, Writer
from service.context import Context, Services
from service.ids import known_form
from service.problems import Problem, responses
from service.store import TRANSITIONS
from service.uploads import (
    FILENAME_PATTERN,
    UPLOAD_ID_PATTERN,
    Receiver,
    Upload,
    delete_upload,
    get_upload,
    list_uploads,
    read_digest,
    receive,
    too_large,
)

router = APIRouter(tags=["uploads"])

_BLOCK_BYTES = 1 << 20
_PAGE_JOBS = 500
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
    },
    "parameters": [
        {
            "name": "Repr-Digest",
            "in": "header",
            "required": False,
            "description": "SHA-256 of the file as `sha-256=:BASE64:` (RFC 9530), a file with another one is refused; "
            "other algorithms are passed over",
            "schema": {"type": "string"},
        }
    ],
}

UploadId = Annotated[
    str,
    PathParameter(json_schema_extra={"pattern": UPLOAD_ID_PATTERN}, description="id of the upload"),
    known_form("upload", UPLOAD_ID_PATTERN),
]


class UploadModel(BaseModel):
    """One uploaded file."""

    id: str
    filename: str
    uri: str = Field(description="how a spec names it, as corpus.uri")
    bytes: int
    sha256: str = Field(description="lowercase hex")
    created_at: str

    @classmethod
    def of(cls, upload: Upload) -> "UploadModel":
        """What a client sees of an upload."""
        return cls(uri=f"upload://{upload.id}/{upload.filename}", **upload.model_dump())


class UploadPage(BaseModel):
    """Some of the uploads, newest first."""

    data: list[UploadModel]
    has_more: bool
    next_cursor: str | None = Field(description="send it as `cursor` for the next page")


@router.post(
    "/uploads", status_code=201, operation_id="create_upload", openapi_extra=_BODY,
    responses=responses(400, 401, 403, 413, 415, 422, 429, 507),
)  # fmt: skip
async def upload_file(
    request: Request,
    response: Response,
    context: Context,
    principal: Writer,
    filename: Annotated[str, Query(pattern=FILENAME_PATTERN, max_length=100, description="name that the file gets")],
) -> UploadModel:
    """Upload one file: its bytes are the body."""
    _check_headers(request, context)
    expected = read_digest(request.headers.get("repr-digest"), request.headers.get("content-digest"))
    receiving = receive(context.settings, principal.tenant, filename, expected)
    receiver = await run_in_threadpool(receiving.__enter__)
    try:
        upload = await _receive(request, receiver)
    except BaseException as error:
        with anyio.CancelScope(shield=True):  # clean up also when the request was cancelled
            await run_in_threadpool(receiving.__exit__, type(error), error, error.__traceback__)
        raise
    await run_in_threadpool(receiving.__exit__, None, None, None)
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    return UploadModel.of(upload)


@router.get("/uploads", operation_id="list_uploads", responses=responses(401, 403, 422, 429))
def show_uploads(
    context: Context,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=1000, description="most uploads of the answer")] = 100,
    cursor: Annotated[str | None, Query(pattern=UPLOAD_ID_PATTERN, description="next_cursor of the last page")] = None,
) -> UploadPage:
    """List uploads, newest first."""
    found = list_uploads(context.settings, principal.tenant, limit + 1, cursor)
    has_more = len(found) > limit
    page = [UploadModel.of(upload) for upload in found[:limit]]
    return UploadPage(data=page, has_more=has_more, next_cursor=page[-1].id if has_more else None)


@router.get("/uploads/{upload_id}", operation_id="get_upload", responses=responses(401, 403, 404, 422, 429))
def show_upload(context: Context, principal: Reader, upload_id: UploadId) -> UploadModel:
    """Look at one upload."""
    return UploadModel.of(get_upload(context.settings, principal.tenant, upload_id))


@router.delete(
    "/uploads/{upload_id}", status_code=204, operation_id="delete_upload",
    responses=responses(401, 403, 404, 409, 422, 429),
)  # fmt: skip
def remove_upload(context: Context, principal: Writer, upload_id: UploadId) -> None:
    """Delete one upload that no job reads which has not ended."""
    delete_upload(context.settings, principal.tenant, upload_id, partial(_in_use, context, principal))


def _check_headers(request: Request, context: Services) -> None:
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/") or request.headers.get("content-encoding", "identity") != "identity":
        detail = "the body is the file itself, neither a form nor encoded; with curl use --data-binary @FILE"
        raise Problem(415, "unsupported_body", detail)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > context.settings.max_upload_bytes:
        raise too_large(context.settings)


async def _receive(request: Request, receiver: Receiver) -> Upload:
    """Hand the body over in large blocks, so that the event loop never waits for the disk."""
    try:
        async for block in _blocks(request):
            await run_in_threadpool(receiver.take, block)
    except ClientDisconnect as error:
        raise Problem(400, "incomplete_body", "the connection ended before the body did; send it again") from error
    return await run_in_threadpool(receiver.keep)


async def _blocks(request: Request) -> AsyncIterator[bytes]:
    held = bytearray()
    async for part in request.stream():
        held += part
        if len(held) >= _BLOCK_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _in_use(context: Services, principal: Principal, file: Path) -> bool:
    """Whether a job of the tenant that has not ended reads this file."""
    alive = [status for status in TRANSITIONS if status not in TERMINAL]
    before: str | None = None
    while jobs := context.store.page(principal.tenant, status=alive, before=before, limit=_PAGE_JOBS):
        if any(_reads(job.spec, file) for job in jobs):
            return True
        before = jobs[-1].id
    return False


def _reads(spec: object, file: Path) -> bool:
    """Whether any text of a spec is this file, a folder above it or a glob that matches it."""
    if isinstance(spec, dict):
        return any(_reads(part, file) for part in spec.values())
    if isinstance(spec, list):
        return any(_reads(part, file) for part in spec)
    if not isinstance(spec, str) or not spec.startswith("/"):
        return False
    if str(file).startswith(spec.rstrip("/") + "/"):
        return True
    try:
        return storage.matches(spec, str(file))
    except (StorageError, ValueError):
        return False
