"""One service over HTTP: the key, the patience with which a request is tried again, and errors that say what it said.

Tried again: a connection that failed or was cut, 429, 502, 503, 504, and 409 `in_flight` (the same request is being
answered elsewhere). Everything sent this way is safe to send twice: reads, requests with an Idempotency-Key, and
those that ask for a state (cancel, delete). Waits double with jitter and are at least the server's Retry-After.

Invariant: the key leaves this object only in the Authorization header of a request to the service's own origin. It is
in no message, and cut out of what a server is quoted with. Redirects are followed only where asked, without it.
"""

import email.utils
import logging
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import tenacity
from pydantic import SecretStr

from curator.client.problem import explain
from curator.errors import CuratorError, ServerError, SpecError

_TRY_AGAIN = frozenset({429, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_CONNECT_S, _SILENCE_S = 10.0, 60.0
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.2, 8.0
_LONGEST_ASKED_WAIT_S = 600.0
_KEPT_CONNECTIONS = 16

_log = logging.getLogger("curator.client")


class Transient(ServerError):
    """A failure that another attempt may not meet; `wait_s` is how long the server asks to wait."""

    wait_s = 0.0


class Patience:
    """How long to go on trying: until nothing has got through for `limit_s`, not counting waits the server asked for.

    A long download or event stream calls `advance` whenever something has arrived, so that only an outage ends it,
    however often the connection is cut.
    """

    def __init__(self, limit_s: float, halt: threading.Event | None = None) -> None:
        self._limit_s, self._halt = limit_s, halt or threading.Event()
        self._since_s, self._failures, self._asked_s = time.monotonic(), 0, 0.0

    def advance(self) -> None:
        """Something got through."""
        self._since_s, self._failures, self._asked_s = time.monotonic(), 0, 0.0

    def attempts(self) -> tenacity.Retrying:
        """Attempts for as long as the patience lasts; the last failure is raised."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            stop=self._spent,
            wait=self._wait,
            sleep=tenacity.sleep_using_event(self._halt),
            reraise=True,
        )

    def _spent(self, state: tenacity.RetryCallState) -> bool:
        self._failures += 1
        idle_s = time.monotonic() - self._since_s - self._asked_s
        asked_s = self._asked_s + _failure(state).wait_s
        tried_enough = self._failures > 1 and idle_s > self._limit_s  # once more even after one long silence
        return self._halt.is_set() or tried_enough or asked_s > _LONGEST_ASKED_WAIT_S

    def _wait(self, state: tenacity.RetryCallState) -> float:
        failure = _failure(state)
        self._asked_s += failure.wait_s
        if self._failures == 2:  # a first failure is common, and silent
            _log.warning("%s; trying again", failure)
        doubled_s = min(_SHORTEST_WAIT_S * 2**self._failures, _LONGEST_WAIT_S)
        return failure.wait_s + random.uniform(_SHORTEST_WAIT_S, doubled_s)  # nosec B311  # spreads retries, guards nothing


def _failure(state: tenacity.RetryCallState) -> Transient:
    failure = state.outcome.exception() if state.outcome else None
    assert isinstance(failure, Transient)
    return failure


class Connection:
    """The way to one service; used by many threads at once."""

    def __init__(self, server: str, api_key: str, patience_s: float) -> None:
        self.root = _check_server(server)
        self._key = SecretStr(_check_key(api_key))
        self._patience_s = patience_s
        self._client = httpx.Client(
            follow_redirects=False,
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT_CONNECTIONS),
        )

    def __repr__(self) -> str:
        return f"Connection({str(self.root)!r})"

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def patience(self, halt: threading.Event | None = None) -> Patience:
        """A fresh patience; `halt` ends its waits."""
        return Patience(self._patience_s, halt)

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Path | None = None,
        silence_s: float = _SILENCE_S,
        again: bool = True,
    ) -> httpx.Response:
        """Send a request and read its whole answer.

        Args:
            method: of HTTP.
            path: below `/v1`.
            params: of the query; those that are None are left out.
            headers: besides the key.
            content: the body, or the file that holds it.
            silence_s: how long the server may say nothing.
            again: whether to try again after a transient failure.

        Returns:
            An answer with a status below 300, or 304.

        Raises:
            SpecError: the service found faults in a spec.
            ServerError: it refused, or could not be reached in time.
        """

        def attempt() -> httpx.Response:
            with self.stream(method, path, params=params, headers=headers, content=content, silence_s=silence_s) as got:
                got.read()
            return got

        answer: httpx.Response = self.patience().attempts()(attempt) if again else attempt()
        return answer

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Path | None = None,
        silence_s: float = _SILENCE_S,
        redirects: bool = False,
    ) -> Iterator[httpx.Response]:
        """One attempt at a request, whose answer the caller reads; arguments and errors as in `send`.

        `redirects` allows the service to send a GET elsewhere, such as to a presigned address of an object store:
        neither the key nor If-Range, whose digest only the service knows, goes there.
        """
        url = httpx.URL(f"{self.root}/v1{path}", params={k: v for k, v in (params or {}).items() if v is not None})
        timeout = httpx.Timeout(silence_s, connect=_CONNECT_S, pool=None)
        with self._explained(method, path), ExitStack() as opened:
            body = opened.enter_context(content.open("rb")) if isinstance(content, Path) else content
            for _ in range(_MOST_REDIRECTS + 1):
                request = self._client.build_request(
                    method, url, headers=self._headers(url, headers), content=body, timeout=timeout
                )
                response = opened.enter_context(_closing(self._client.send(request, stream=True)))
                if not (redirects and response.status_code in _REDIRECTS and response.has_redirect_location):
                    break
                url = url.join(response.headers["location"])
            if response.status_code >= 300 and response.status_code != 304:
                response.read()
                raise self._judge(response, method, path)
            yield response

    def same_origin(self, url: httpx.URL) -> bool:
        """Whether an address is the service's own, so that it may be given the key."""
        return _origin(url) == _origin(self.root)

    def _headers(self, url: httpx.URL, headers: Mapping[str, str] | None) -> dict[str, str]:
        if self.same_origin(url):
            return {**(headers or {}), "Authorization": f"Bearer {self._key.get_secret_value()}"}
        return {name: value for name, value in (headers or {}).items() if name != "If-Range"}

    @contextmanager
    def _explained(self, method: str, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.UnsupportedProtocol as error:
            raise ServerError(f"{self.root} redirects {method} {path} to no http address: {error}") from None
        except httpx.TransportError as error:
            what = f"{type(error).__name__} {self._without_key(str(error))}".strip()
            message = f"cannot reach {self.root} ({method} {path}): {what}; check the address and that the service runs"
            hopeless = "Name or service not known" in message or "CERTIFICATE_VERIFY_FAILED" in message
            raise (ServerError if hopeless else Transient)(message) from None

    def _judge(self, response: httpx.Response, method: str, path: str) -> CuratorError:
        """The error for an answer that is no success."""
        status = response.status_code
        told = explain(response)
        where = str(self.root) if self.same_origin(response.url) else f"{self.root} redirects to {response.url.host}"
        message = self._without_key(f"{where}: {method} {path}: {status} {told.message}")
        if told.faults and method == "POST" and path.startswith("/jobs"):
            more = [f"\n  {fault}" for fault in told.faults if fault not in told.message]
            return SpecError(self._without_key(told.message + "".join(more)))
        again = status in _TRY_AGAIN or (status == 409 and told.code == "in_flight")
        error = Transient(message) if again else ServerError(message)
        error.status, error.code = status, told.code
        if isinstance(error, Transient):
            error.wait_s = _read_retry_after(response.headers.get("retry-after"))
        return error

    def _without_key(self, text: str) -> str:
        return text.replace(self._key.get_secret_value(), "[key]")


@contextmanager
def _closing(response: httpx.Response) -> Iterator[httpx.Response]:
    try:
        yield response
    finally:
        response.close()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _check_server(server: str) -> httpx.URL:
    """The address without a trailing slash."""
    try:
        url = httpx.URL(server.strip().rstrip("/"))
    except httpx.InvalidURL as error:
        raise ServerError(f"server {server!r} is no address: {error}; write it as http://HOST:PORT") from None
    if url.userinfo:
        raise ServerError("the server's address holds a user name or password; give the key in CURATOR_API_KEY instead")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ServerError(f"server {server!r} is no address of a service; write it as http://HOST:PORT")
    return url


def _check_key(key: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ServerError("the API key holds characters that no HTTP header can carry, or is empty; copy it again")
    return key


def _read_retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, 10.2.3); 0 when it says neither."""
    if header is None:
        return 0.0
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
