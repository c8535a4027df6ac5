"""Browsers: a cookie in place of the key, a token with every change; and no key or session is written down anywhere."""

import http.client
import re
import runpy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

_OPERATIONS = runpy.run_path(str(Path(__file__).with_name("operations.py")))
COOKIE = "curator_session"
NOT_STARTED = {"CURATOR_MAX_RUNNING_JOBS": "0"}


@pytest.fixture
def browser(shared: Any) -> Iterator[httpx.Client]:
    """A browser in which the first key's owner has signed in."""
    with httpx.Client(base_url=shared.url, timeout=30) as client:
        sign_in(client, shared.key)
        yield client


def sign_in(client: httpx.Client, key: str, target: str = "/") -> httpx.Response:
    """Send the form of /login."""
    return client.post("/login", data={"key": key, "next": target})


def csrf_of(client: httpx.Client) -> str:
    """The token that the pages of a session hold."""
    page = client.get("/", headers={"Accept": "text/html"})
    found = re.search(r'<meta name="csrf-token" content="([^"]+)">', page.text)
    assert found is not None, page.text
    return found[1]


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(shared: Any, start: Callable[..., Any]) -> None:
    secure = start(CURATOR_PUBLIC_URL="https://curator.example", **NOT_STARTED)
    for service, is_secure in ((shared, False), (secure, True)):
        with httpx.Client(base_url=service.url) as client:
            answer = sign_in(client, service.key)
        assert answer.status_code == 303 and answer.headers["location"] == "/"
        value, *flags = [part.strip() for part in answer.headers["set-cookie"].split(";")]
        name, _, token = value.partition("=")
        assert name == COOKIE and re.fullmatch(r"[A-Za-z0-9_-]{43}", token) and token not in service.key
        wanted = {"HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={12 * 3600}"} | (
            {"Secure"} if is_secure else set()
        )
        assert set(flags) == wanted  # no Domain: this host alone


def test_a_wrong_key_opens_no_session(shared: Any) -> None:
    with httpx.Client(base_url=shared.url) as client:
        for wrong in ("", "x", shared.key[:-1], "\0", "é" * 49, "<script>"):
            answer = sign_in(client, wrong)
            assert answer.status_code == 401 and "set-cookie" not in answer.headers, wrong
            assert "<script>" not in answer.text
        crossed = {"Sec-Fetch-Site": "cross-site"}
        assert client.post("/login", data={"key": shared.key}, headers=crossed).status_code == 403
        assert not client.cookies


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil", "javascript:alert(1)", "/\t/evil", ""],
)
def test_the_way_back_from_the_login_stays_on_this_service(shared: Any, target: str) -> None:
    with httpx.Client(base_url=shared.url) as client:
        assert sign_in(client, shared.key, target).headers["location"] == "/"
        assert client.get("/login", params={"next": target}).headers["location"] == "/"


def test_every_change_needs_the_sessions_own_token(shared: Any, browser: httpx.Client) -> None:
    found = _OPERATIONS["operations"](browser.get("/openapi.json").json())
    changing = [(operation.method, operation.url()) for operation in found if operation.method != "GET"]
    changing += [("POST", "/spec"), ("PUT", "/v1/jobs"), ("PATCH", "/nothing")]
    assert len(changing) > 10
    with httpx.Client(base_url=shared.url) as other:
        sign_in(other, shared.key)
        foreign = csrf_of(other)
    own = csrf_of(browser)
    assert own != foreign and browser.cookies[COOKIE] not in own
    for method, url in changing:
        for token in (None, "", foreign, own[:-1], own.upper(), shared.key, browser.cookies[COOKIE]):
            headers = {} if token is None else {"X-CSRF-Token": token}
            answer = browser.request(method, url, headers=headers, content=b"{}")
            assert answer.status_code == 403, (method, url, token, answer.text)
            assert answer.json()["type"] == "urn:curator:problem:csrf"
        answer = browser.request(method, url, headers={"X-CSRF-Token": own}, content=b"{}")
        assert answer.status_code != 403 and answer.status_code < 500, (method, url, answer.text)
    assert browser.get("/v1/jobs").status_code == 200  # looking needs none


def test_a_session_has_its_keys_scopes(shared: Any) -> None:
    reader = shared.new_key("alpha", "read")
    with httpx.Client(base_url=shared.url) as client:
        sign_in(client, reader)
        assert client.get("/v1/me").json()["scopes"] == ["read"]
        answer = client.post("/v1/jobs", json={}, headers={"X-CSRF-Token": csrf_of(client)})
        assert answer.status_code == 403 and answer.json()["type"] == "urn:curator:problem:scope"
        assert client.get("/v1/keys").status_code == 403


def test_a_header_with_a_key_counts_before_the_cookie(shared: Any, browser: httpx.Client) -> None:
    other = shared.new_key("beta", "read")
    assert browser.get("/v1/me", headers={"Authorization": f"Bearer {other}"}).json()["tenant"] == "beta"
    assert browser.get("/v1/me", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_session_ends_with_signing_out(shared: Any, browser: httpx.Client) -> None:
    token = browser.cookies[COOKIE]
    for wrong in ("", "x"):
        assert browser.post("/logout", data={"csrf": wrong}).status_code == 403
    assert browser.get("/v1/me").status_code == 200
    answer = browser.post("/logout", data={"csrf": csrf_of(browser)})
    assert answer.status_code == 303 and answer.headers["location"] == "/login"
    assert not browser.cookies
    assert browser.get("/v1/me", headers={"Cookie": f"{COOKIE}={token}"}).status_code == 401


def test_a_session_ends_with_its_key(shared: Any, browser: httpx.Client) -> None:
    made = browser.post(
        "/v1/keys",
        json={"name": "s", "tenant": "alpha", "scopes": ["read"], "expires_in_days": 2.5 / 86400},
        headers={"X-CSRF-Token": csrf_of(browser)},
    ).json()
    kept = shared.new_key("alpha", "read")
    with httpx.Client(base_url=shared.url) as expiring, httpx.Client(base_url=shared.url) as revoked:
        sign_in(expiring, made["key"])
        sign_in(revoked, kept)
        assert expiring.get("/v1/me").status_code == revoked.get("/v1/me").status_code == 200
        with shared.client() as admin:
            assert admin.delete(f"/v1/keys/{kept[3:11]}").status_code == 204
        assert revoked.get("/v1/me").status_code == 401
        assert revoked.get("/", headers={"Accept": "text/html"}).headers["location"].startswith("/login")
        time.sleep(2.6)
        assert expiring.get("/v1/me").status_code == 401


def test_a_session_ends_by_itself(start: Callable[..., Any]) -> None:
    service = start(CURATOR_SESSION_HOURS=str(1.5 / 3600), **NOT_STARTED)
    with httpx.Client(base_url=service.url) as client:
        token = sign_in(client, service.key).headers["set-cookie"].partition(";")[0]
        assert httpx.get(f"{service.url}/v1/me", headers={"Cookie": token}).status_code == 200
        time.sleep(1.6)
        assert httpx.get(f"{service.url}/v1/me", headers={"Cookie": token}).status_code == 401


def test_neither_keys_nor_sessions_are_written_down(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]]
) -> None:
    service = start(**NOT_STARTED)
    reader = service.new_key("alpha", "read", "write")
    job = service.submit(job_spec(), reader)
    with httpx.Client(base_url=service.url) as client:
        sign_in(client, reader)
        session = client.cookies[COOKIE]
        client.get(f"/jobs/{job['id']}", headers={"Accept": "text/html"})
        client.get("/v1/nothing", params={"key": reader})
        client.get("/v1/jobs", headers={"Authorization": f"Bearer {reader}x"})
    fail_inside(service, job["id"], reader)
    wanted = [secret.encode() for secret in (service.key, reader, service.key[11:43], reader[11:43], session)]
    assert_nowhere(service.data_dir, wanted)
    service.stop()
    assert_nowhere(service.data_dir, wanted)
    printed = [line for line in service.log if any(secret.decode() in line for secret in wanted)]
    assert printed == [f"API key: {service.key}\n"]  # shown once, on standard output
    assert any("unexpected error" in line for line in service.log)


def fail_inside(service: Any, job_id: str, key: str) -> None:
    """Make the service meet an error that it does not expect, whose traceback it logs."""
    log = service.data_dir / "jobs" / job_id / "log.txt"
    log.unlink(missing_ok=True)
    log.mkdir()
    with service.client(key) as client:
        answer = client.get(f"/v1/jobs/{job_id}/logs", params={"token": key})
    assert answer.status_code == 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text and str(service.data_dir) not in answer.text


def assert_nowhere(folder: Path, secrets: list[bytes]) -> None:
    """None of these is in a file, a file's name, or a file's permissions."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("service.db") for path in files)
    assert folder.stat().st_mode & 0o077 == 0  # nobody else may even look
    for path in files:
        content = path.read_bytes() + str(path).encode()
        assert not any(secret in content for secret in secrets), path


def test_headers_that_keep_browsers_safe_are_on_every_kind_of_answer(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]]
) -> None:
    service = start(**NOT_STARTED)
    job = service.submit(job_spec())
    jobs = f"/v1/jobs/{job['id']}"
    kinds: list[tuple[int, str, str, dict[str, Any]]] = [
        (200, "GET", jobs, {}), (200, "GET", "/livez", {}), (200, "GET", "/metrics", {}),
        (200, "GET", "/openapi.json", {}), (200, "GET", "/static/base.css", {}), (200, "GET", "/login", {}),
        (201, "POST", "/v1/uploads?filename=a.jsonl", {"content": b"{}"}), (202, "POST", f"{jobs}/cancel", {}),
        (400, "POST", "/v1/jobs", {"content": b"{"}), (403, "POST", "/v1/jobs", {"json": {"work": "/etc"}}),
        (401, "GET", "/v1/me", {"headers": {"Authorization": "x"}}), (404, "GET", "/v1/nothing", {}),
        (404, "GET", "/static/nothing", {}), (405, "PUT", jobs, {}), (405, "POST", "/static/base.css", {}),
        (409, "DELETE", "/v1/keys/" + service.key[3:11], {}), (422, "GET", "/v1/jobs?limit=0", {}),
        (413, "POST", "/v1/jobs", {"content": b" " * (3 << 20)}),
        (303, "GET", "/", {"headers": {"Accept": "text/html"}}),
        (304, "GET", "/static/base.css", {"headers": {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}}),
        (204, "GET", f"{jobs}/events?after=99", {"headers": {"Accept": "text/event-stream"}}),
        (200, "GET", f"{jobs}/events", {"headers": {"Accept": "text/event-stream"}}), (204, "DELETE", jobs, {}),
    ]  # fmt: skip
    with service.client() as client:
        for status, method, url, options in kinds:
            if status == 303:
                del client.headers["Authorization"]
            answer = client.request(method, url, **options)
            client.headers["Authorization"] = f"Bearer {service.key}"
            assert answer.status_code == status, (method, url, answer.text)
            check_headers(answer)
    fresh = service.submit(job_spec())
    with service.client() as client:
        (service.data_dir / "jobs" / fresh["id"] / "log.txt").mkdir()
        answer = client.get(f"/v1/jobs/{fresh['id']}/logs")
        assert answer.status_code == 500
        check_headers(answer)


def check_headers(answer: httpx.Response) -> None:
    """What every answer says to browsers, once."""
    found = answer.headers
    policy = dict(part.strip().partition(" ")[::2] for part in found["content-security-policy"].split(";"))
    assert (
        policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'" and policy["base-uri"] == "'none'"
    )
    assert "unsafe" not in found["content-security-policy"] and "*" not in found["content-security-policy"]
    assert found["x-content-type-options"] == "nosniff" and found["x-frame-options"] == "DENY"
    assert found["referrer-policy"] == "no-referrer" and found["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in found and "server" not in found
    assert len(found.get_list("content-security-policy")) == 1


def test_a_body_that_is_too_large_is_refused_however_it_is_sent(start: Callable[..., Any]) -> None:
    service = start(CURATOR_MAX_UPLOAD_BYTES="1000000", **NOT_STARTED)
    big = 5 << 20
    urls = ["/v1/jobs", "/v1/jobs:validate", "/v1/keys", "/login", "/spec", "/v1/uploads?filename=a.jsonl"]
    for url in urls:
        for chunked in (False, True):
            status, body = send(service, url, big, chunked)
            assert status == 413, (url, chunked, status, body)
            assert b"urn:curator:problem:" in body and b"bytes" in body
    with service.client() as client:
        assert client.get("/v1/uploads").json()["data"] == []
        assert client.get("/livez").status_code == 200
    assert not list(service.data_dir.glob("uploads/*/*"))


def send(service: Any, url: str, size: int, chunked: bool) -> tuple[int, bytes]:
    """Send a large body, and stop when the service has answered."""
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", url)
    connection.putheader("Authorization", f"Bearer {service.key}")
    connection.putheader("Content-Type", "application/json" if url == "/v1/keys" else "application/octet-stream")
    connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))))
    connection.endheaders()
    block = b" " * (1 << 16)
    part = f"{len(block):x}\r\n".encode() + block + b"\r\n" if chunked else block
    try:
        for _ in range(size // len(block)):
            connection.send(part)
        if chunked:
            connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        pass  # answered and closed before the end: what is expected of a refusal
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found
