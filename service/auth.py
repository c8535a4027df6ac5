"""Who is asking, and what they may do: a bearer key, or a browser's session with its CSRF token.

`service.gate` asks once for every request; endpoints name the scope that they need.

Invariant: an endpoint learns the tenant only from here, and asks the store for nothing without it.
"""

import hashlib
import hmac
import threading
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from service.context import Services
from service.keys import Key, Scope
from service.problems import Problem

SESSION_COOKIE = "curator_session"
CSRF_HEADER = "X-CSRF-Token"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_SHOWN = {"read", "admin"}  # scopes that pages are for
_FORMS = ("/logout",)  # plain forms, which hold the token themselves
_bearer = HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer tc_...`")


@dataclass(frozen=True)
class Principal:
    """Who is asking."""

    tenant: str
    key_id: str
    scopes: frozenset[Scope]
    session: bool


def authenticate(request: Request, context: Services) -> Principal:
    """Who is asking; Problem 401 if nobody that we know, 403 without the CSRF token, 429 if too often."""
    token = request.cookies.get(SESSION_COOKIE)
    header = request.headers.get("authorization")
    if header is not None or token is None:
        text = _bearer_text(request)
        key, session = (None if text is None else context.keys.find(text)), False
    else:
        key, session = context.keys.find_session(token), True
        if key is not None and request.method not in _SAFE_METHODS and request.url.path not in _FORMS:
            _check_csrf(request, token)
    if key is None:
        raise Problem(
            401, "unauthorized", "no valid API key; send the header `Authorization: Bearer KEY`",
            headers={"WWW-Authenticate": 'Bearer realm="curator"'},
        )  # fmt: skip
    wait_s = context.rate_limit.take(key.id)
    if wait_s > 0:
        raise Problem(
            429, "too_many_requests", "this key makes more requests than the service allows; slow down",
            headers={"Retry-After": str(max(1, round(wait_s)))},
        )  # fmt: skip
    return as_principal(key, session=session)


def answers_at_once(request: Request, context: Services) -> bool:
    """Whether `authenticate` will not ask the database: the key was seen a moment ago."""
    text = _bearer_text(request)
    return text is not None and context.keys.recent(text) is not None


def _bearer_text(request: Request) -> str | None:
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None


def as_principal(key: Key, *, session: bool) -> Principal:
    """What a key may do."""
    return Principal(key.tenant, key.id, frozenset(key.scopes), session)


def _check_csrf(request: Request, token: str) -> None:
    sent = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(sent.encode(), csrf_token(token).encode()):
        raise Problem(403, "csrf", f"a browser's request that changes something needs the header {CSRF_HEADER}")


def _require(scope: Scope, *others: Scope) -> object:
    enough = {scope, *others}

    async def check(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Principal:
        principal: Principal = request.state.principal  # the gate has put it there, or refused
        if not enough & principal.scopes:
            raise Problem(403, "scope", f"this key has no scope {scope!r}; use one that has it")
        return principal

    return Depends(check)


Reader = Annotated[Principal, _require("read")]
Writer = Annotated[Principal, _require("write")]
Admin = Annotated[Principal, _require("admin")]
Scraper = Annotated[Principal, _require("metrics", "admin")]


# ------------------------------------------------------------------------------------------------ browsers


def open_session(context: Services, key_text: str) -> tuple[str, Principal] | None:
    """Sign a browser in; returns the cookie's token, or None if the key is not valid, or if no page is for it."""
    key = context.keys.find(key_text)
    if key is None or not _SHOWN & set(key.scopes):
        return None
    return context.keys.open_session(key, context.settings.session_hours), as_principal(key, session=True)


def close_session(context: Services, token: str) -> None:
    """Sign a browser out."""
    context.keys.close_session(token)


def session_principal(request: Request, context: Services) -> Principal | None:
    """Who sits at this browser, for pages; None if nobody is signed in."""
    token = request.cookies.get(SESSION_COOKIE)
    key = None if token is None else context.keys.find_session(token)
    return None if key is None else as_principal(key, session=True)


def csrf_token(token: str) -> str:
    """What a page of this session must send with every change; says nothing of the session's token."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


# ------------------------------------------------------------------------------------------------ how often


class RateLimit:
    """Token buckets, one per key, in this process: a runaway loop of one tenant leaves the others alone."""

    def __init__(self, per_second: float) -> None:
        self._rate, self._size = per_second, 2 * per_second
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, key_id: str) -> float:
        """Take one request; returns 0, or how long to wait in seconds."""
        moment = time.monotonic()
        with self._lock:
            level, filled = self._buckets.get(key_id, (self._size, moment))
            level = min(self._size, level + (moment - filled) * self._rate)
            allowed = level >= 1
            self._buckets[key_id] = (level - 1 if allowed else level, moment)
        return 0.0 if allowed else (1 - level) / self._rate
