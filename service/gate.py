"""What every request passes, before any endpoint: who is asking, how large the body may be, and safe headers.

Invariant: without a valid key only the paths below are served; anything else, existing or not, is 401 (for a browser's
page: the way to /login), so that nothing can be learned of what there is.

HEAD is answered here too, from what GET answers, unless a route serves it itself.
"""

import logging
import time
from functools import partial
from urllib.parse import quote

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curator.hiding import describe
from service.auth import answers_at_once, authenticate
from service.context import Services
from service.metrics import Metrics
from service.observe import answered
from service.problems import Problem, respond, unexpected
from service.routes.pages import router as pages

_OPEN = ("/livez", "/readyz", "/login")
_STATIC = "/static/"
_UPLOADS = "/v1/uploads"
_MAX_BODY_BYTES = 2 << 20
_NO_DATABASE = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)  # the last: no connection is free
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_TEXTS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_HEADERS = tuple((name.encode(), text.encode()) for name, text in _TEXTS.items())
_log = logging.getLogger("curator.service")


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, services: Services, metrics: Metrics) -> None:
        self._app, self._services, self._metrics = app, services, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD" and not any(_serves(route, scope) for route in scope["app"].routes):
            scope, send = {**scope, "method": "GET"}, _Bodiless(send)
        request = Request(scope, receive)
        guarded = _Guarded(send, self._metrics, scope)
        limited = receive if scope["path"] == _UPLOADS else _limited(receive)
        try:
            refusal = await self._refuse(request)
            await (refusal or self._app)(scope, limited, guarded)
        except _HeadAnswered:
            pass
        except Exception as error:
            problem = _explain(error, request)
            if guarded.started:
                raise  # the connection breaks: better than an answer that looks whole
            await respond(problem, request.url.path)(scope, receive, guarded)

    async def _refuse(self, request: Request) -> Response | None:
        path: str = request.scope["path"]
        if path in _OPEN or path.startswith(_STATIC):
            return None
        try:
            if answers_at_once(request, self._services):
                request.state.principal = authenticate(request, self._services)
            else:
                request.state.principal = await self._services.threads.read(
                    partial(authenticate, request, self._services)
                )
        except Problem as problem:
            if problem.status == 401 and _is_page(request):
                target = quote(path + (f"?{request.url.query}" if request.url.query else ""))
                return RedirectResponse(f"/login?next={target}", 303)
            return respond(problem, path)
        return None


def _is_page(request: Request) -> bool:
    return request.method == "GET" and any(_serves(route, request.scope) for route in pages.routes)


def _serves(route: BaseRoute, scope: Scope) -> bool:
    return route.matches(scope)[0] is Match.FULL


def _explain(error: Exception, request: Request) -> Problem:
    if isinstance(error, _NO_DATABASE):
        reason = describe(error, over_rows=False)  # the driver's words, and never the statement with its values
        _log.error("the database does not answer at %s %s: %s", request.method, request.url.path, reason)
        return Problem(
            503, "unavailable", "the service cannot use its database now; try again", headers={"Retry-After": "1"}
        )
    _log.exception("unexpected error at %s %s", request.method, request.url.path)
    return unexpected()


def _limited(receive: Receive) -> Receive:
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > _MAX_BODY_BYTES:
            detail = f"the body has more than {_MAX_BODY_BYTES:,} bytes; upload a corpus by POST {_UPLOADS}"
            raise Problem(413, "too_large", detail)
        return message

    return counted


class _HeadAnswered(Exception):
    """Ends the making of a body that nobody will read."""


class _Bodiless:
    """Sends an answer's head alone; of a body that comes in parts, such as a stream without end, no second is made."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        await self._send({"type": "http.response.body", "body": b""})
        if message.get("more_body", False):
            raise _HeadAnswered


class _Guarded:
    """Sends an answer with the headers that keep browsers safe, and measures when it began."""

    def __init__(self, send: Send, metrics: Metrics, scope: Scope) -> None:
        self._send, self._metrics, self._scope = send, metrics, scope
        self._began_s = time.perf_counter()
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            present = {name.lower() for name, _ in message["headers"]}
            missing = [(name, text) for name, text in _HEADERS if name not in present]
            message = {**message, "headers": [*message["headers"], *missing]}
            self._metrics.observe(self._scope, message["status"], time.perf_counter() - self._began_s)
            answered(self._scope, message["status"])
        await self._send(message)
