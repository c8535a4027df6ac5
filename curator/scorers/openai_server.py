"""Talking to one HTTP server: connection pool, time-outs, retries, rate limits, and errors that name the server.

A request is tried again when trying can help: the connection failed or was dropped, nothing came in time, or the server
says that it is busy or broken (408, 409, 425, 429, 5xx but 501). Waits double from `backoff_s` to a minute, with
jitter, and are at least as long as the server's Retry-After. Every other answer than 200 is an error at once. Redirects
are not followed: they could carry the key and the corpus to another host.

Invariant: the API key leaves this object in one request header only. It is cut out of whatever a server answers before
that is quoted in an error.
"""

import email.utils
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import tenacity
from pydantic import SecretStr

from curator.errors import ScorerError

_TRY_AGAIN = frozenset({408, 409, 425, 429}) | frozenset(range(500, 600)) - {501}
_LONGEST_WAIT_S = 60.0
_LONGEST_RETRY_AFTER_S = 600.0
_CONNECT_S = 10.0
_QUOTED_CHARACTERS = 300


class Refusal(ScorerError):
    """The server understood and will not: another protocol may work where this one does not."""


class _Transient(Exception):
    """A failure that another attempt may not meet."""

    def __init__(self, message: str, status: int | None = None, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.message, self.status, self.wait_s = message, status, wait_s


@dataclass(frozen=True)
class Patience:
    """How long and how often to try, and how fast to ask.

    Attributes:
        timeout_s: longest silence of the server within a request, in seconds.
        retries: attempts after the first.
        backoff_s: wait before the first retry in seconds; doubles each time.
        requests_per_minute: of this process, or None for no limit.
        tokens_per_minute: of this process, or None for no limit.
    """

    timeout_s: float
    retries: int
    backoff_s: float
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class Pace:
    """Spaces requests so that no stretch of time holds more than its share; a leaky bucket without bursts.

    One larger than a minute's worth is let through, and the next one waits for it.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_each = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._free_at = clock()
        self._lock = threading.Lock()

    def reserve(self, amount: float) -> float:
        """Take the next free stretch for `amount`; returns the seconds until it begins."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free_at)
            self._free_at = start + amount * self._seconds_each
            return start - now


def read_key(variable: str | None) -> SecretStr | None:
    """The API key in the named environment variable, which must be set where the workers run."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ScorerError(
            f"api_key_env names {variable}, which is not set; export {variable} where curator and its workers run"
        )
    if not (key.isascii() and key.isprintable()):
        raise ScorerError(f"{variable} holds characters that no HTTP header can carry; export the key again")
    return SecretStr(key)


class Server:
    """One server and one model on it; used by many threads at once."""

    def __init__(self, root: str, model: str, key_variable: str | None, patience: Patience, connections: int) -> None:
        """Prepare; nothing is sent yet. `root` is the address below which `/v1/...` and `/pooling` are.

        Raises:
            ScorerError: the API key's variable is not set.
        """
        self._root, self._model, self._patience = root, model, patience
        self._key, self._key_variable = read_key(key_variable), key_variable
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        self._client = httpx.Client(
            headers=headers,
            follow_redirects=False,
            timeout=httpx.Timeout(
                patience.timeout_s, connect=min(_CONNECT_S, patience.timeout_s), pool=None
            ),  # a thread waits for a connection as long as others use theirs
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        weakref.finalize(self, self._client.close)  # a scorer is never told that it is no longer needed
        self._request_pace, self._token_pace = Pace(patience.requests_per_minute), Pace(patience.tokens_per_minute)
        self._retried = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Server({self._root!r}, {self._model!r})"

    def get(self, path: str) -> bytes:
        """Body of a GET; errors as in `post`."""
        return self._insist("GET", path, None, 0, threading.Event())

    def post(self, path: str, body: dict[str, Any], tokens: int, halt: threading.Event) -> bytes:
        """Send JSON and give back the body of the answer.

        Args:
            path: below the server's root, such as `/v1/completions`.
            body: what to send.
            tokens: how many count against the limit.
            halt: when set, no further attempt is made and no wait goes on.

        Raises:
            Refusal: the server answered that it will not do this.
            ScorerError: it could not be reached, wants another key, redirects, or failed after all attempts.
        """
        return self._insist("POST", path, body, tokens, halt)

    def count_retries(self) -> int:
        """Attempts after a request's first since the last call."""
        with self._lock:
            retried, self._retried = self._retried, 0
        return retried

    def explain(self, problem: str) -> str:
        """A message that names the server and the model, without the key."""
        message = f"server {self._root} (model {self._model!r}) {problem}"
        return message if self._key is None else message.replace(self._key.get_secret_value(), "[key]")

    def _insist(self, method: str, path: str, body: dict[str, Any] | None, tokens: int, halt: threading.Event) -> bytes:
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            stop=tenacity.stop_after_attempt(1 + self._patience.retries) | tenacity.stop_when_event_set(halt),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(halt),
            before_sleep=self._count,
            reraise=True,
        )
        try:
            content: bytes = attempts(self._attempt, method, path, body, tokens, halt)
            return content
        except _Transient as failure:
            kind = Refusal if failure.status == 500 else ScorerError  # 500 is also what some say to what they lack
            raise kind(
                self.explain(
                    f"failed {attempts.statistics['attempt_number']} times on {method} {path}, last: {failure.message}"
                    "; see to the server, or raise engine_args.retries or timeout_s"
                )
            ) from None

    def _wait(self, state: tenacity.RetryCallState) -> float:
        doubled = tenacity.wait_random_exponential(multiplier=self._patience.backoff_s, max=_LONGEST_WAIT_S)(state)
        failure = state.outcome.exception() if state.outcome else None
        return doubled + (failure.wait_s if isinstance(failure, _Transient) else 0.0)

    def _count(self, state: tenacity.RetryCallState) -> None:
        with self._lock:
            self._retried += 1

    def _attempt(
        self, method: str, path: str, body: dict[str, Any] | None, tokens: int, halt: threading.Event
    ) -> bytes:
        if body is not None:
            halt.wait(max(self._request_pace.reserve(1), self._token_pace.reserve(tokens)))
        if halt.is_set():
            raise ScorerError(self.explain("was not asked any more, as another request of the same call failed"))
        try:
            response = self._client.request(method, self._root + path, json=body)
        except httpx.RequestError as error:
            raise _Transient(f"{type(error).__name__} {error}".strip()) from None
        if response.status_code == 200:
            return response.content
        raise self._judge(response, method, path)

    def _judge(self, response: httpx.Response, method: str, path: str) -> Exception:
        """The error for any answer but 200."""
        status = response.status_code
        quoted = f"{status} {' '.join(response.text.split())[:_QUOTED_CHARACTERS]}".strip()
        if status in _TRY_AGAIN:
            wait_s = _read_retry_after(response.headers.get("retry-after"))
            if wait_s <= _LONGEST_RETRY_AFTER_S:
                return _Transient(quoted, status, wait_s)
            return ScorerError(self.explain(f"asks to wait {wait_s:.0f} s ({quoted}); resume later, or set its limits"))
        if 300 <= status < 400:
            to = response.headers.get("location", "nowhere")
            return ScorerError(self.explain(f"redirects {path} to {to}, which is not followed; set url to where it is"))
        if status in (401, 403):
            found = f"the key in {self._key_variable}" if self._key_variable else "no key"
            remedy = "correct it" if self._key_variable else "name the variable that holds it in api_key_env"
            return ScorerError(self.explain(f"answered {status} to {found}; {remedy}"))
        hint = "; check url and model" if status == 404 else ""
        return Refusal(self.explain(f"refused {method} {path}: {quoted}{hint}"))


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
