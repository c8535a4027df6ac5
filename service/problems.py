"""Errors as RFC 9457 problem documents: one shape for every refusal, whoever raises it.

`code` is stable and for programs; `detail` says the problem, the value and the remedy. Nothing here ever holds a
secret or another tenant's data.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

MEDIA_TYPE = "application/problem+json"
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "how to say who asks", "schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}},
}


class FaultModel(BaseModel):
    """One fault of a request."""

    path: str = Field(description="where in the request, such as models.base.engine")
    message: str = Field(description="problem, value and remedy")


class ProblemModel(BaseModel):
    """What every error answers (RFC 9457)."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "title", "status", "detail", "instance"]})

    type: str = Field(description="urn:curator:problem:CODE")
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FaultModel] | None = None


class Problem(HTTPException):
    """A refusal; raised anywhere below an endpoint.

    An HTTPException, as FastAPI takes any other that is raised while it reads a body for a body that cannot be parsed.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.status, self.code = status, code
        self.errors = None if errors is None else [dict(error) for error in errors]


def respond(problem: Problem, path: str) -> Response:
    """The problem document."""
    body: dict[str, Any] = {
        "type": f"urn:curator:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": path,
    }
    if problem.errors is not None:
        body["errors"] = problem.errors
    return JSONResponse(body, problem.status, {"Cache-Control": "no-store", **(problem.headers or {})}, MEDIA_TYPE)


def unexpected() -> Problem:
    """What is answered when the service itself is at fault."""
    return Problem(500, "internal_error", "the service met an unexpected error; its log says more")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For an endpoint's OpenAPI: these statuses answer a problem document."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemModel"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content, "headers": _HEADERS.get(status, {})}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Make every error of the app a problem document."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        return respond(problem, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [
            {"path": ".".join(str(part) for part in fault["loc"][1:]), "message": f"{fault['loc'][0]}: {fault['msg']}"}
            for fault in error.errors()
        ]
        detail = "; ".join(f"{fault['path'] or 'request'}: {fault['message']}" for fault in faults)
        return respond(Problem(422, "invalid_request", detail, errors=faults), request.url.path)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        code, detail, headers = _CODES.get(error.status_code, "http_error"), str(error.detail), error.headers
        if error.status_code == 405:
            headers = {"Allow": ", ".join(_allowed_methods(request))}
            detail = f"{request.method} is not allowed here; use {headers['Allow']}"
        return respond(Problem(error.status_code, code, detail, headers=headers), request.url.path)


def _allowed_methods(request: Request) -> list[str]:
    """Of all routes with this path: the router itself names those of the first one alone."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    found |= {"HEAD"} if "GET" in found else set()
    return sorted(found) or ["GET", "HEAD"]  # static files have a router of their own
