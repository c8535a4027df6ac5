"""Files with a known digest over HTTP (RFC 9110): strong ETags, conditions, byte ranges, and the bytes themselves.

The digest is the ETag, so whoever resumes a download with `If-Range` gets the rest of the same bytes or the whole of
the new ones. Of ranges only single ones are served; several, or malformed ones, give the whole file, as the RFC allows.
Starlette's own FileResponse makes ETags of size and time, knows no If-None-Match and reads 64 KiB at a time.

Invariant: a response holds bytes of one version of the file. When that version goes away in the middle, the
connection is cut before the announced length is reached.
"""

import asyncio
import base64
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from service.problems import Problem, responses
from service.stored_files import OpenFile, StoredFile, sign_link

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAG_LIST = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_RANGE = re.compile(r"(\d*)-(\d*)", re.ASCII)
_DIGITS = 18  # more than any file has; Python refuses to read numbers of thousands of digits
_readers = ThreadPoolExecutor(16, thread_name_prefix="download")  # apart from the endpoints' threads: these may wait


class Span(NamedTuple):
    """Bytes `start` to `stop - 1` of a file."""

    start: int
    stop: int


@dataclass(frozen=True)
class Accelerator:
    """A proxy in front that can send the files of one folder itself.

    Attributes:
        prefix: its internal location for the folder.
        folder: the folder.
    """

    prefix: str
    folder: Path

    def location(self, path: Path) -> str | None:
        """The proxy's name for a file; None when the file is not in the folder."""
        real, folder = path.resolve(), self.folder.resolve()
        if not real.is_relative_to(folder):
            return None
        return f"{self.prefix.rstrip('/')}/{quote(real.relative_to(folder).as_posix())}"


# ------------------------------------------------------------------------------------------------ what to answer


def respond(
    request: Request,
    file: StoredFile,
    *,
    filename: str,
    media_type: str,
    accelerator: Accelerator | None = None,
    redirect: bool = False,
) -> Response:
    """Answer GET or HEAD for a file.

    Args:
        request: its conditions and its range are honoured.
        file: what to send.
        filename: what a browser should call it.
        media_type: what it is.
        accelerator: a proxy that may send it.
        redirect: if the file is on an object store, refer the client to a signed address there.

    Returns:
        200, 206, 304, or 307 to the object store.

    Raises:
        Problem: 404, 409, 412, 416 or 503.
    """
    etag, asked = etag_of(file.sha256), request.headers
    headers = file_headers(file, filename, media_type)
    if is_not_modified(asked, etag):
        return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Cache-Control")})
    span = select_span(asked, etag, file.size_bytes) if request.method == "GET" else None
    if redirect and file.path is None and request.method == "GET":
        file.open().close()
        if link := sign_link(file, headers["Content-Disposition"], media_type):
            return RedirectResponse(link, 307, {"Cache-Control": "no-store"})
    # nginx holds If-Match against an ETag of its own and refuses; these requests are answered here.
    if accelerator is not None and file.path is not None and "if-match" not in asked:
        location = accelerator.location(file.path)
        if location is not None:
            file.open().close()
            return Response(headers={**headers, "X-Accel-Redirect": location})
    return Download(file, span, headers)


def etag_of(sha256: str) -> str:
    """The strong entity tag of a file."""
    return f'"{sha256}"'


def repr_digest(sha256: str) -> str:
    """The digest as RFC 9530 writes it."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def file_headers(file: StoredFile, filename: str, media_type: str) -> dict[str, str]:
    """What every answer says of a file, but for its length."""
    return {
        "Content-Type": media_type,
        "Content-Disposition": content_disposition(filename),
        "ETag": etag_of(file.sha256),
        "Repr-Digest": repr_digest(file.sha256),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
    }


def content_disposition(filename: str) -> str:
    """An attachment's name (RFC 6266): letters that may stand unquoted, and the name itself where it has others."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", filename)
    exact = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{exact}'


def is_not_modified(headers: Headers, etag: str) -> bool:
    """Whether the client has this version already (If-None-Match, compared weakly).

    Raises:
        Problem: 412, the client wants another version (If-Match, compared strongly).
    """
    wanted = headers.getlist("if-match")
    if wanted and etag not in _tags(wanted) and not _is_any(wanted):
        detail = f"If-Match asks for {', '.join(wanted)[:200]}, the file's ETag is {etag}; begin the download again"
        raise Problem(412, "precondition_failed", detail, headers={"ETag": etag})
    known = headers.getlist("if-none-match")
    return _is_any(known) or etag in {tag.removeprefix("W/") for tag in _tags(known)}


def _is_any(values: list[str]) -> bool:
    return [value.strip(" \t") for value in values] == ["*"]


def _tags(values: list[str]) -> set[str]:
    """The entity tags of a header that may stand several times; none if it is malformed."""
    joined = ",".join(values)
    return set(re.findall(_TAG, joined)) if _TAG_LIST.fullmatch(joined) else set()


def select_span(headers: Headers, etag: str, size_bytes: int) -> Span | None:
    """The bytes that a GET asks for; None means the whole file.

    Raises:
        Problem: 416, the file has none of them.
    """
    conditions = headers.getlist("if-range")
    if conditions and [value.strip(" \t") for value in conditions] != [etag]:
        return None
    unit, _, listed = ",".join(headers.getlist("range")).partition("=")
    ranges = [part for part in (part.strip(" \t") for part in listed.split(",")) if part]
    match = _RANGE.fullmatch(ranges[0]) if len(ranges) == 1 and unit.strip(" \t").lower() == "bytes" else None
    if match is None or match[0] == "-":
        return None
    span = _resolve(match[1], match[2], size_bytes)
    if span is not None and span.start >= span.stop:
        detail = f"{ranges[0][:80]!r} is outside of the file, which has {size_bytes} bytes; ask for bytes within it"
        raise Problem(416, "range_not_satisfiable", detail, headers={"Content-Range": f"bytes */{size_bytes}"})
    return span


def _resolve(first: str, last: str, size_bytes: int) -> Span | None:
    """The span of one range, empty if the file has none of it; None if the range means nothing."""
    if not first:
        suffix = _number(last)
        return Span(max(size_bytes - suffix, 0), size_bytes) if size_bytes or not suffix else None
    if last and _number(last) < _number(first):
        return None
    return Span(_number(first), min(_number(last) + 1, size_bytes) if last else size_bytes)


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= _DIGITS else 10**_DIGITS


# ------------------------------------------------------------------------------------------------ sending it


class Download(Response):
    """A file, or a part of it, read in threads one block ahead of the network; memory stays at a few blocks."""

    def __init__(self, file: StoredFile, span: Span | None, headers: Mapping[str, str]) -> None:
        """Answer 200 with the whole file, or 206 with a span of it."""
        self.status_code, self.background = 200 if span is None else 206, None
        self.media_type = headers["Content-Type"]
        self._file, self._span = file, span or Span(0, file.size_bytes)
        length = {"Content-Length": str(self._span.stop - self._span.start)}
        if span is not None:
            length["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{file.size_bytes}"
        self.init_headers({**headers, **length})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open, announce, send, and close, at once when the client goes away."""
        opened = await asyncio.get_running_loop().run_in_executor(_readers, self._file.open)
        gone = asyncio.create_task(_wait_until_gone(receive))
        start, stop = self._span if scope["method"] == "GET" else (0, 0)
        reading: Future[bytes] | None = None
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if start == stop:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            while start < stop and not gone.done():
                reading = reading or _read(opened, start, stop)
                block = await asyncio.wrap_future(reading)
                start += len(block)
                reading = _read(opened, start, stop) if start < stop else None
                await send({"type": "http.response.body", "body": block, "more_body": start < stop})
        finally:
            gone.cancel()
            _close_after(reading, opened)


def _read(opened: OpenFile, start: int, stop: int) -> "Future[bytes]":
    return _readers.submit(opened.read, start, min(stop - start, opened.block_bytes))


def _close_after(reading: "Future[bytes] | None", opened: OpenFile) -> None:
    """Close a file once nothing reads it: another file could get its descriptor's number."""
    if reading is None or reading.cancel():
        opened.close()
    else:
        reading.add_done_callback(lambda _: opened.close())


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def file_responses(media_type: str) -> dict[int | str, dict[str, Any]]:
    """For an endpoint's OpenAPI: what `respond` answers."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    text = {"schema": {"type": "string"}}
    headers = dict.fromkeys(("ETag", "Repr-Digest", "Content-Disposition"), text)
    return {
        200: {"description": "the whole file", "content": content, "headers": headers},
        206: {
            "description": "the bytes asked for",
            "content": content,
            "headers": headers | {"Content-Range": text},
        },
        304: {"description": "the client has this version already", "headers": {"ETag": text}},
        307: {"description": "the file is at the object store, under this address", "headers": {"Location": text}},
        **responses(404, 409, 412, 416, 503),
    }
