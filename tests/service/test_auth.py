"""Who may do what: without a key nothing is learned, and a key does what its scopes say and no more."""

import http.client
import re
import runpy
import string
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

_OPERATIONS = runpy.run_path(str(Path(__file__).with_name("operations.py")))
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
OPEN = ("/livez", "/readyz", "/login", "/static/base.css")


@pytest.fixture(scope="module")
def operations(shared: Any) -> list[Any]:
    """Every operation of the document."""
    with shared.client() as client:
        found: list[Any] = _OPERATIONS["operations"](client.get("/openapi.json").json())
    assert len(found) > 25
    return found


def anonymous(service: Any) -> httpx.Client:
    """A client without a key."""
    return httpx.Client(base_url=service.url, timeout=30)


def raw(service: Any, method: str, target: str, **headers: str | bytes) -> tuple[int, bytes]:
    """A request whose target is sent as it is written."""
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=30)
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


# ------------------------------------------------------------------------------------------------ without a key


def test_without_a_key_every_path_and_method_is_refused_in_the_same_words(shared: Any, operations: list[Any]) -> None:
    paths = {operation.url() for operation in operations if operation.protected}
    paths |= {"/spec", "/logout", "/openapi.json", "/docs", "/redoc"}
    paths |= {"/v1", "/v1/nothing", "/nothing", "/v1/jobs/", "/v2/jobs", "/livez/x", "/loginx", "/static", "/.env"}
    with anonymous(shared) as client:
        for path in sorted(paths):
            for method in METHODS:
                answer = client.request(method, path)
                assert answer.status_code == 401, (method, path, answer.text)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                if method != "HEAD":
                    assert answer.headers["content-type"] == "application/problem+json"
                    told = answer.json()
                    assert told.pop("instance") == path.partition("?")[0]
                    assert told == {
                        "type": "urn:curator:problem:unauthorized", "title": "Unauthorized", "status": 401,
                        "detail": "no valid API key; send the header `Authorization: Bearer KEY`",
                    }  # fmt: skip


def test_only_these_paths_are_open(shared: Any, operations: list[Any]) -> None:
    assert {operation.path for operation in operations if not operation.protected} == {"/livez", "/readyz"}
    with anonymous(shared) as client:
        for path in OPEN:
            assert client.get(path).status_code == 200, path
        assert client.get("/livez").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}  # nothing of what it is made of


def test_a_browser_without_a_session_is_sent_to_the_login_and_back(shared: Any) -> None:
    with anonymous(shared) as client:
        for path in ("/", "/keys", "/jobs/x", "/jobs/x/tokens", "/jobs/x?a=b&c=d"):
            for method in METHODS:
                answer = client.request(method, path, headers={"Accept": "text/html"})
                if method not in ("GET", "HEAD"):
                    assert answer.status_code == 401, (method, path)
                    continue
                assert answer.status_code == 303
                target = httpx.URL(answer.headers["location"])
                assert target.is_relative_url and target.path == "/login" and target.params["next"] == path
        for path in ("/v1/jobs", "/nothing"):
            assert client.get(path, headers={"Accept": "text/html"}).status_code == 401


@pytest.mark.parametrize(
    "target",
    [
        "/static/../v1/jobs", "/static/..%2f..%2fv1/jobs", "//v1/jobs", "/livez/../v1/jobs", "/v1%2fjobs",
        "/login/../v1/me", "/static/templates",
        "/static/../../auth.py", "/static/%2e%2e/%2e%2e/auth.py", "/static//etc/passwd", "/static/%2fetc/passwd",
        "/static/..%5c..%5cauth.py", "/livez%00/../v1/jobs", "/static/%00", "/static/" + "a/" * 3000,
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_leads_around_the_gate(shared: Any, target: str) -> None:
    status, body = raw(shared, "GET", target)
    assert status in (400, 401, 404, 405, 414), (status, body)
    assert b"import" not in body and b"root:" not in body and b'"data"' not in body


# ------------------------------------------------------------------------------------------------ keys


def test_keys_have_a_form_that_scanners_and_typing_errors_are_caught_by(shared: Any) -> None:
    key = shared.new_key("alpha")
    assert re.fullmatch(r"[A-Za-z0-9_-]{24,}", key) and key.startswith("tc_") and len(key) == 49

    def status(text: str | bytes) -> int:
        value = b"Bearer " + (text.encode() if isinstance(text, str) else text)
        return raw(shared, "GET", "/v1/me", Authorization=value)[0]

    assert status(key) == 200
    for place in range(len(key)):
        other = next(character for character in "aq7_" if character != key[place])
        assert status(key[:place] + other + key[place + 1 :]) == 401, place
    wrong_keys = [key[:-1], key + "a", key.upper(), key[3:], "", "tc_", "null", "a" * 5000, b"\xff" * 49, key[::-1]]
    for wrong in wrong_keys:
        assert status(wrong) == 401, wrong


def test_a_key_counts_only_in_its_header(shared: Any) -> None:
    key = shared.key
    with anonymous(shared) as client:
        for scheme in ("Basic", "Token", "", "Bearerx"):
            assert raw(shared, "GET", "/v1/me", Authorization=f"{scheme} {key}")[0] == 401, scheme
        assert raw(shared, "GET", "/v1/me", Authorization=f"bEARER  {key} ")[0] == 200  # RFC 9110 reads it so
        for name in ("key", "api_key", "access_token", "token"):
            assert client.get("/v1/me", params={name: key}).status_code == 401
        assert client.get("/v1/me", headers={"X-API-Key": key}).status_code == 401
        assert client.get("/v1/me", headers={"Cookie": f"curator_session={key}"}).status_code == 401


def test_a_right_checksum_is_not_enough(shared: Any) -> None:
    body = "tc_" + (string.ascii_lowercase * 2)[:40]
    name = shared.key[3:11]  # of a key that exists, with another secret
    with anonymous(shared) as client:
        for forged in (body, "tc_" + name + "a" * 32):
            crc = zlib.crc32(forged.encode())
            check = "".join((string.ascii_lowercase + "234567")[crc >> 5 * place & 31] for place in range(6))
            header = {"Authorization": f"Bearer {forged}{check}"}
            assert client.get("/v1/me", headers=header).status_code == 401


def test_revoked_and_expired_keys_are_like_none(shared: Any) -> None:
    with shared.client() as admin:
        made = admin.post("/v1/keys", json={"name": "r", "tenant": "alpha", "scopes": ["read"]}).json()
        brief = {"name": "e", "tenant": "alpha", "scopes": ["read"], "expires_in_days": 1.5 / 86400}
        expiring = admin.post("/v1/keys", json=brief).json()
        with shared.client(made["key"]) as client, shared.client(expiring["key"]) as short:
            assert client.get("/v1/me").json() == {"tenant": "alpha", "scopes": ["read"], "key_id": made["id"]}
            assert short.get("/v1/me").status_code == 200
            assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
            assert client.get("/v1/me").status_code == 401
            assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204  # again: as before
            time.sleep(1.6)
            assert short.get("/v1/me").status_code == 401
        listed = {key["id"]: key for key in admin.get("/v1/keys").json()["data"]}
        assert listed[made["id"]]["revoked_at"] is not None and listed[expiring["id"]]["revoked_at"] is None
        assert all("key" not in key and "sha256" not in key for key in listed.values())
        own = admin.get("/v1/me").json()["key_id"]
        assert admin.delete(f"/v1/keys/{own}").status_code == 409  # nobody locks themselves out


# ------------------------------------------------------------------------------------------------ scopes


@pytest.fixture(scope="module")
def standing(shared: Any, job_spec: Callable[..., dict[str, Any]]) -> dict[str, str]:
    """What a key without the right scope must not change: an ended job, an upload and a key of one tenant."""
    owner = shared.new_key("delta", "read", "write")
    job = shared.submit(job_spec(), owner)
    with shared.client(owner) as client:
        client.post(f"/v1/jobs/{job['id']}/cancel")
        upload = client.post("/v1/uploads", params={"filename": "a.jsonl"}, content=b"{}").json()
    shared.wait(job["id"], key=owner)
    key_id = owner[3:11]
    return {"job_id": job["id"], "upload_id": upload["id"], "key_id": key_id, "owner": owner}


@pytest.mark.parametrize("scopes", [["read"], ["write"], ["admin"], ["metrics"], ["read", "write"]])
def test_a_key_does_what_its_scopes_say_and_no_more(
    shared: Any, operations: list[Any], standing: dict[str, str], scopes: list[str]
) -> None:
    key = shared.new_key("delta", *scopes)
    before = look(shared, standing["owner"])
    refused = 0
    with shared.client(key) as client:
        for operation in operations:
            if operation.may_be_called(scopes):
                continue
            answer = client.request(operation.method, operation.url(standing), content=b"{}")
            assert answer.status_code == 403, (operation, answer.text)
            assert answer.json()["type"] == "urn:curator:problem:scope"
            assert answer.json()["detail"] == f"this key has no scope {operation.needed!r}; use one that has it"
            refused += 1
    assert refused >= 4
    assert look(shared, standing["owner"]) == before


def look(service: Any, owner: str) -> tuple[Any, ...]:
    """Everything that a tenant has, and the keys that are not revoked."""
    with service.client(owner) as client, service.client() as admin:
        keys = [key["id"] for key in admin.get("/v1/keys").json()["data"] if key["revoked_at"] is None]
        return client.get("/v1/jobs").json(), client.get("/v1/uploads").json(), keys


def test_a_key_of_prometheus_reads_the_figures_and_nothing_else(shared: Any, operations: list[Any]) -> None:
    key = shared.new_key("delta", "metrics")
    with shared.client(key) as client, shared.client() as admin:
        assert "\njobs{" in client.get("/metrics").text
        assert admin.get("/metrics").status_code == 200  # as ever
        for operation in operations:
            if operation.protected and operation.path != "/metrics":
                assert client.request(operation.method, operation.url(), content=b"{}").status_code == 403, operation
        for path in ("/", "/keys", "/jobs/job_00000000000000000000000000"):  # a key opens no page, nor a session
            assert client.get(path).status_code == 303
        refused = client.post("/login", data={"key": key})
        assert refused.status_code == 401 and "set-cookie" not in refused.headers


def test_pages_of_jobs_need_the_scope_to_read(shared: Any, job_spec: Callable[..., dict[str, Any]]) -> None:
    """As their endpoints do: what a key may not read by itself, its session does not show."""
    job = shared.submit(job_spec(name="not-to-be-seen"))
    shared.wait(job["id"])
    with httpx.Client(base_url=shared.url) as client:
        client.post("/login", data={"key": shared.new_key("default", "admin")})
        assert client.get("/").headers["location"] == "/keys"
        for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/tokens"):
            answer = client.get(path)
            assert answer.status_code == 404 and "not-to-be-seen" not in answer.text
        page = client.get("/keys")
        assert page.status_code == 200 and ">Jobs</a>" not in page.text
    for scopes in (("write",), ("metrics",), ("write", "metrics")):  # there is nothing that they could look at
        with httpx.Client(base_url=shared.url) as client:
            answer = client.post("/login", data={"key": shared.new_key("default", *scopes)})
            assert answer.status_code == 401 and "set-cookie" not in answer.headers


def test_a_scope_is_asked_for_before_anything_is_looked_up(shared: Any, standing: dict[str, str]) -> None:
    reader = shared.new_key("delta", "read")
    with shared.client(reader) as client:
        found = client.delete(f"/v1/jobs/{standing['job_id']}")
        absent = client.delete("/v1/jobs/job_00000000000000000000000000")
        assert found.status_code == absent.status_code == 403
        assert found.json() | {"instance": ""} == absent.json() | {"instance": ""}


def test_how_often_a_key_may_ask_is_its_own_matter(start: Callable[..., Any]) -> None:
    service = start(CURATOR_REQUESTS_PER_SECOND="5", CURATOR_MAX_RUNNING_JOBS="0")
    other = service.new_key("other")
    with service.client() as client, service.client(other) as unhurried, anonymous(service) as nobody:
        answers = [client.get("/v1/me") for _ in range(30)]
        assert answers[0].status_code == 200 and answers[-1].status_code == 429
        assert 8 <= sum(answer.status_code == 200 for answer in answers) <= 15
        last = answers[-1]
        assert last.headers["content-type"] == "application/problem+json" and int(last.headers["retry-after"]) >= 1
        assert last.json()["type"] == "urn:curator:problem:too_many_requests"
        assert unhurried.get("/v1/me").status_code == 200
        assert all(nobody.get("/livez").status_code == 200 for _ in range(30))
        assert nobody.get("/v1/me").status_code == 401
        time.sleep(int(last.headers["retry-after"]))
        assert client.get("/v1/me").status_code == 200
