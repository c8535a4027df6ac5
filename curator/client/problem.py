"""What a refusal says: RFC 9457 problem documents, and whatever a proxy in between answers instead of one."""

import json
from dataclasses import dataclass
from typing import Any

import httpx

_PREFIX = "urn:curator:problem:"
_QUOTED_CHARACTERS = 300
_REMEDIES = {
    401: "set CURATOR_API_KEY to a key of this service",
    403: "use a key whose scopes allow this",
    404: "check the server's address and the id",
    413: "send a smaller file, or put it where the service can read it",
    429: "the service has too much to do; try later",
    502: "the service is down behind its proxy; try later",
    503: "the service is not ready; try later",
    504: "the service is slow behind its proxy; try later",
}


@dataclass(frozen=True)
class Told:
    """What was told: `code` for programs, `message` and `faults` (`path: message`) for people."""

    code: str | None
    message: str
    faults: tuple[str, ...] = ()


def explain(response: httpx.Response) -> Told:
    """Read an answer that is no success; its body has been read."""
    problem = _problem(response)
    if problem is not None:
        code = str(problem.get("type", "")).removeprefix(_PREFIX)
        detail = str(problem.get("detail") or problem.get("title") or "no reason given")
        return Told(code, detail, tuple(_faults(problem.get("errors"))))
    if location := response.headers.get("location"):
        place = httpx.URL(location).copy_with(query=None, fragment=None)  # a query may hold a signature
        return Told(None, f"redirects to {place}, which is not followed; use that as the server's address")
    quoted = " ".join(response.text.split())[:_QUOTED_CHARACTERS] or response.reason_phrase
    remedy = _REMEDIES.get(response.status_code)
    return Told(None, f"{quoted}; {remedy}" if remedy else quoted)


def _problem(response: httpx.Response) -> dict[str, Any] | None:
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        content = json.loads(response.content)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _faults(errors: Any) -> list[str]:
    found = errors if isinstance(errors, list) else []
    return [
        f"{error['path']}: {error.get('message')}" if error.get("path") else str(error.get("message"))
        for error in found
        if isinstance(error, dict)
    ]
