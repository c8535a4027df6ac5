"""Uploads through the real application: whole ones only, within limits, each tenant for itself."""

import base64
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from curator.job_directory import JobRecord, new_id, now
from service.app import build_app, make_services
from service.context import Services
from service.database import writing
from service.problems import Problem
from service.settings import Settings
from service.store import Store
from service.uploads import find_upload, list_uploads, receive, tenant_folder

CONTENT = b'{"text": "some text"}\n' * 100
DIGEST = "sha-256=:" + base64.b64encode(hashlib.sha256(CONTENT).digest()).decode() + ":"


class House:
    """An application with two tenants."""

    def __init__(self, services: Services, client: TestClient) -> None:
        self.services, self.settings, self.client = services, services.settings, client
        scopes = ("read", "write")
        self.keys = {name: services.keys.create(name, "test", scopes)[1] for name in ("alice", "bob")}
        self.reader = services.keys.create("alice", "reader", ("read",))[1]

    def ask(self, method: str, path: str, tenant: str = "alice", **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"} | options.pop("headers", {})
        return self.client.request(method, f"/v1{path}", headers=headers, **options)

    def send(self, content: Any = CONTENT, name: str = "corpus.jsonl", tenant: str = "alice", **headers: str) -> Any:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.ask("POST", "/uploads", tenant, params={"filename": name}, content=content, headers=named)

    def left(self, tenant: str = "alice") -> list[str]:
        """Whatever lies in a tenant's folder."""
        folder = tenant_folder(self.settings, tenant)
        return sorted(os.listdir(folder)) if folder.exists() else []

    def add_job(self, spec: dict[str, Any], status: str, tenant: str = "alice") -> None:
        record = JobRecord(
            id=new_id("job"), kind="curate", tenant=tenant, name="n", spec=spec, output="/out", created_at=now()
        )
        with writing(self.services.store.engine) as connection:
            self.services.store.insert(connection, record, status=status)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    settings = Settings(data_dir=tmp_path / "data", max_upload_bytes=1_000_000, upload_quota_bytes=2_500_000)
    services = make_services(settings)
    yield House(services, TestClient(build_app(services)))
    services.store.engine.dispose()


def test_an_upload_is_kept_whole_and_told_with_its_digest(house: House) -> None:
    answer = house.send(repr_digest=DIGEST)
    assert answer.status_code == 201, answer.text
    upload = answer.json()
    assert upload.keys() == {"id", "filename", "uri", "bytes", "sha256", "created_at"}
    assert upload["uri"] == f"upload://{upload['id']}/corpus.jsonl"
    assert (upload["bytes"], upload["sha256"]) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert answer.headers["Location"] == f"/v1/uploads/{upload['id']}"
    file = find_upload(house.settings, "alice", upload["id"])
    assert file is not None
    assert file == house.settings.uploads_dir / "alice" / upload["id"] / "corpus.jsonl"
    assert file.read_bytes() == CONTENT
    assert house.ask("GET", f"/uploads/{upload['id']}").json() == upload
    assert house.left() == [upload["id"]]


def test_bodies_without_a_length_and_of_many_blocks_are_kept(house: House) -> None:
    blocks = [os.urandom(10_000) for _ in range(99)]
    upload = house.send(iter(blocks), "data.parquet").json()
    assert upload["sha256"] == hashlib.sha256(b"".join(blocks)).hexdigest()


def test_an_empty_body_is_refused(house: House) -> None:
    assert house.send(b"", "empty.txt").status_code == 400
    assert house.left() == []


@pytest.mark.parametrize(
    "headers",
    [
        {"repr_digest": DIGEST}, {"content_digest": DIGEST}, {"repr_digest": DIGEST, "content_digest": DIGEST},
        {"repr_digest": f"sha-512=:{'A' * 86}==:, {DIGEST}"}, {"repr_digest": "md5=:AAAA:"},
        {"repr_digest": DIGEST + ";q=1"}, {"repr_digest": DIGEST.replace("sha-256", "SHA-256")},
    ],
)  # fmt: skip
def test_right_and_unknown_digests_pass(house: House, headers: dict[str, str]) -> None:
    assert house.send(**headers).status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {"repr_digest": "sha-256=:" + "A" * 43 + "=:"}, {"content_digest": "sha-256=:" + "A" * 43 + "=:"},
        {"repr_digest": "sha-256=x"}, {"repr_digest": hashlib.sha256(CONTENT).hexdigest().join(("sha-256=:", ":"))},
        {"repr_digest": "sha-256"}, {"repr_digest": DIGEST, "content_digest": "sha-256=:" + "A" * 43 + "=:"},
        {"repr_digest": DIGEST[:-3] + "=:"},
    ],
)  # fmt: skip
def test_wrong_digests_are_refused_and_nothing_is_left(house: House, headers: dict[str, str]) -> None:
    answer = house.send(**headers)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert house.left() == []


def test_a_file_that_is_too_large_is_refused_while_it_comes(house: House) -> None:
    assert house.send(b"x" * 1_000_000).status_code == 201
    before = house.left()
    for content in (b"x" * 1_000_001, iter([b"x" * 100_000] * 11)):
        answer = house.send(content)
        assert answer.status_code == 413
        assert answer.json()["type"] == "urn:curator:problem:upload_too_large"
    assert house.left() == before


def test_a_tenant_keeps_no_more_than_its_quota(house: House) -> None:
    for _ in range(2):
        assert house.send(b"x" * 1_000_000).status_code == 201
    answer = house.send(b"x" * 500_001)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:curator:problem:quota_exceeded")
    assert house.send(b"x" * 1_000_000, tenant="bob").status_code == 201
    assert house.send(b"x" * 500_000).status_code == 201
    assert house.send(b"x").status_code == 413
    assert len(house.left()) == 3
    assert house.ask("DELETE", f"/uploads/{house.left()[0]}").status_code == 204
    assert house.send(b"x").status_code == 201


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "x", "../x.jsonl", "/etc/x.jsonl", "a/b.jsonl", "a\\b.jsonl", ".hidden.jsonl", "-x.jsonl",
        "x.py", "x.jsonl.bz2", "x.parquet.gz", "x.jsonl/", "x.jsonl\n", "x\0.jsonl", "x.jsonl ", " x.jsonl", "ü.jsonl",
        "x.JSONL", "x.pkl", "x.gguf", "x.zip", "x.tar.gz", "x" * 95 + ".jsonl", "x.html", "state", "%2e%2e.jsonl",
        "x:.jsonl", "~.jsonl", "*.jsonl", "x.jsonl.", "．．/x.jsonl", "x;.jsonl",
    ],
)  # fmt: skip
def test_other_names_are_refused(house: House, name: str) -> None:
    assert house.send(name=name).status_code == 422
    with pytest.raises(Problem), receive(house.settings, "alice", name, None):
        pass
    assert house.left() == []


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "A-1_b.c.json", "x.jsonl.gz", "x.ndjson.zst", "x.txt", "0.parquet", "x..y.txt", "x" * 86 + ".jsonl"],
)
def test_plain_names_pass_and_are_unpacked_by_nobody(house: House, name: str) -> None:
    upload = house.send(name=name).json()
    assert house.services.settings.uploads_dir.joinpath("alice", upload["id"], name).read_bytes() == CONTENT


def test_forms_and_encoded_bodies_are_refused(house: House) -> None:
    assert house.send(content_encoding="gzip").status_code == 415
    form = house.ask("POST", "/uploads", params={"filename": "x.jsonl"}, files={"file": CONTENT})
    assert form.status_code == 415
    assert house.left() == []


def test_keys_and_scopes_are_asked_for(house: House) -> None:
    address = "/v1/uploads?filename=x.jsonl"
    assert house.client.post(address, content=CONTENT).status_code == 401
    reader = {"Authorization": f"Bearer {house.reader}"}
    assert house.client.post(address, content=CONTENT, headers=reader).status_code == 403
    upload = house.send().json()
    assert house.client.get("/v1/uploads", headers=reader).json()["data"] == [upload]
    assert house.client.delete(f"/v1/uploads/{upload['id']}", headers=reader).status_code == 403


def test_another_tenant_s_uploads_do_not_exist(house: House) -> None:
    upload = house.send().json()
    assert house.ask("GET", "/uploads", "bob").json() == {"data": [], "has_more": False, "next_cursor": None}
    nobody_s = house.ask("GET", f"/uploads/{new_id('upl')}", "bob")
    for method in ("GET", "DELETE"):
        answer = house.ask(method, f"/uploads/{upload['id']}", "bob")
        assert (answer.status_code, answer.json()["type"]) == (404, nobody_s.json()["type"])
    assert find_upload(house.settings, "bob", upload["id"]) is None
    assert house.left() == [upload["id"]]


def test_the_list_is_paged_newest_first(house: House) -> None:
    ids = [house.send(name=f"{number}.txt").json()["id"] for number in range(5)]
    assert len(set(ids)) == 5
    found, cursor = [], None
    for size in (2, 2, 1):
        page = house.ask("GET", "/uploads", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        assert len(page["data"]) == size
        found += [upload["id"] for upload in page["data"]]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None) == (len(found) < 5)
    assert found == sorted(ids, reverse=True)
    assert house.ask("GET", "/uploads", params={"cursor": "x"}).status_code == 422
    assert house.ask("GET", "/uploads", params={"limit": 0}).status_code == 422


def test_an_upload_in_use_is_not_deleted(house: House) -> None:
    upload = house.send().json()
    file = house.settings.uploads_dir / "alice" / upload["id"] / "corpus.jsonl"
    for uri in (str(file), str(file.with_name("*.jsonl")), str(file.parent.parent / "*" / "*"), str(file.parent)):
        for status in ("queued", "validating", "in_progress", "finalizing", "cancelling"):
            house.add_job({"corpus": {"kind": "jsonl", "uri": uri}}, status)
            answer = house.ask("DELETE", f"/uploads/{upload['id']}")
            assert (answer.status_code, answer.json()["type"]) == (409, "urn:curator:problem:upload_in_use"), uri
            job = house.services.store.page("alice")[0]
            with writing(house.services.store.engine) as connection:
                connection.exec_driver_sql("DELETE FROM jobs")
            assert job.status == status
    for status in ("completed", "failed", "cancelled"):
        house.add_job({"corpus": {"uri": str(file)}}, status)
    house.add_job({"corpus": {"uri": f"{file.parent}x/corpus.jsonl", "columns": ["a["]}, "name": "/["}, "queued")
    assert house.ask("DELETE", f"/uploads/{upload['id']}").status_code == 204
    assert house.ask("DELETE", f"/uploads/{upload['id']}").status_code == 404
    assert house.left() == []


def test_only_the_tenants_own_jobs_are_looked_through(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = house.send().json()
    file = house.settings.uploads_dir / "alice" / upload["id"] / "corpus.jsonl"
    house.add_job({"corpus": {"uri": str(file)}}, "queued")
    for number in range(7):
        house.add_job({"corpus": {"uri": f"/data/{number}"}}, "queued")
    for _ in range(20):
        house.add_job({"corpus": {"uri": str(file)}}, "queued", tenant="bob")
    loaded: list[str] = []
    load = Store._job
    monkeypatch.setattr(Store, "_job", lambda store, row: (loaded.append(row.tenant), load(store, row))[1])
    monkeypatch.setattr("service.routes.uploads._PAGE_JOBS", 3)
    assert house.ask("DELETE", f"/uploads/{upload['id']}").status_code == 409  # found on the last page
    assert loaded == ["alice"] * 8
    with writing(house.services.store.engine) as connection:
        connection.exec_driver_sql("DELETE FROM jobs WHERE tenant = 'alice'")
    assert house.ask("DELETE", f"/uploads/{upload['id']}").status_code == 204


# ------------------------------------------------------------------------------------------------ when things break


def test_nothing_is_left_of_a_body_that_is_cut(house: House) -> None:
    server = uvicorn.Server(uvicorn.Config(house.client.app, port=0, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with socket.create_connection(listener.getsockname()) as connection:
            key = f"Authorization: Bearer {house.keys['alice']}"
            head = f"POST /v1/uploads?filename=x.txt HTTP/1.1\r\nHost: x\r\n{key}\r\n"
            connection.sendall(f"{head}Content-Length: 900000\r\n\r\n".encode() + b"x" * 500_000)
            wait_until(lambda: house.left() != [])
            assert list_uploads(house.settings, "alice", 10) == []
        wait_until(lambda: house.left() == [])
        server.should_exit = True
        thread.join(10)


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing has changed"
        time.sleep(0.01)


def test_records_are_plain_json_beside_the_file(house: House) -> None:
    upload = house.send().json()
    (record,) = house.settings.uploads_dir.joinpath("alice", upload["id"]).glob(".*")
    content = json.loads(record.read_text())
    assert content == {key: value for key, value in upload.items() if key != "uri"}
