"""What every request is known by in logs and traces: an id, and with OpenTelemetry a span named after its route.

The id is the client's `X-Request-Id`, or a new one; the answer carries it, so that a user can name the request whose
lines an operator then finds. Spans name the route, never the path or the query, which may hold what a user typed.
Probes, metrics and static files have no span.
"""

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curator import logs, tracing

REQUEST_ID = "X-Request-Id"
_FORM = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNTRACED = ("/livez", "/readyz", "/metrics", "/static/")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observed:
    """ASGI middleware, outside all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on under its id and in its span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _FORM.fullmatch(given) else secrets.token_hex(8)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        with logs.known(request_id=request_id):
            if scope["path"].startswith(_UNTRACED):
                await self._app(scope, receive, answer)
                return
            method = _method(scope)
            attributes = {
                "http.request.method": method, "url.scheme": scope["scheme"],
                "network.protocol.version": scope["http_version"], "curator.request.id": request_id,
            }  # fmt: skip
            with tracing.span(
                method, attributes, parent=headers.get("traceparent"), tracestate=headers.get("tracestate"),
                kind="server",
            ):  # fmt: skip
                await self._app(scope, receive, answer)


def answered(scope: Scope, status: int) -> None:
    """Complete the current request's span: its route is known only now."""
    route = getattr(scope.get("route"), "path", None)
    tracing.describe_request(_method(scope), route, status)


def _method(scope: Scope) -> str:
    return str(scope["method"]) if scope["method"] in METHODS else "_OTHER"
