"""Requests over a bad network: submitted once, refused with a reason, and the key kept to its service."""

import pickle
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curator import Client
from curator.errors import CuratorError, ServerError, SpecError

SPEC = {"name": "n", "corpus": {"kind": "jsonl", "uri": "upload://x/y"}}


@pytest.fixture
def client(service: Any, wire: Any) -> Iterator[Client]:
    with Client(wire.url, service.key, patience_s=5) as client:
        yield client


@pytest.mark.parametrize("cut", [0, 1, 20, 100, 180])
def test_an_answer_that_is_cut_makes_no_second_job(client: Client, service: Any, wire: Any, cut: int) -> None:
    wire.cuts = [cut, cut]
    job = client.submit(SPEC)
    sent = [headers["idempotency-key"] for method, _, headers in service.seen if method == "POST"]
    assert len(sent) == 3 and len(set(sent)) == 1
    assert list(service.jobs.values()) == [job.id]


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (503, "not_ready"), (409, "in_flight"), (502, "")])
def test_a_busy_service_is_asked_again_with_the_same_key(client: Client, service: Any, status: int, code: str) -> None:
    service.refuse(status, code, {"Retry-After": "1"})
    started_s = time.monotonic()
    client.submit(SPEC, idempotency_key="mine")
    assert time.monotonic() - started_s >= 1
    assert [headers["idempotency-key"] for _, _, headers in service.seen] == ["mine", "mine"]


def test_two_submissions_are_two_jobs(client: Client, service: Any) -> None:
    assert client.submit(SPEC).id != client.submit(SPEC).id and len(service.jobs) == 2


@pytest.mark.parametrize(("status", "code"), [(409, "key_reused"), (401, "no_key"), (404, "no_job"), (500, "error")])
def test_a_refusal_is_an_error_at_once_with_the_services_words(
    client: Client, service: Any, status: int, code: str
) -> None:
    service.refuse(status, code)
    with pytest.raises(ServerError, match=f"{status} told {code}") as caught:
        client.submit(SPEC)
    assert (caught.value.status, caught.value.code) == (status, code) and len(service.seen) == 1
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.status, str(copied)) == (status, str(caught.value))


def test_faults_of_a_spec_are_listed_by_their_paths(client: Client, service: Any) -> None:
    service.refuse(422, "invalid_spec", errors=[{"path": "policy.keep", "message": "is 2; use a share"}])
    with pytest.raises(SpecError, match=r"policy\.keep: is 2; use a share"):
        client.submit(SPEC)


def test_what_a_proxy_answers_is_quoted_without_the_key(client: Client, service: Any) -> None:
    from fastapi.responses import HTMLResponse

    service.refusals.append(HTMLResponse(f"<h1>Forbidden</h1> to {service.key}", 403))
    with pytest.raises(ServerError, match=r"403 <h1>Forbidden</h1> to \[key\]") as caught:
        client.job(service.job)
    assert service.key not in str(caught.value)


def test_something_else_at_the_address_is_named(client: Client, service: Any) -> None:
    from fastapi.responses import JSONResponse

    service.refusals.append(JSONResponse({"hello": "world"}))
    with pytest.raises(ServerError, match="no sound RemoteJob: id: Field required; check that this is the address"):
        client.job(service.job)


def test_a_redirect_is_not_followed_with_the_key(client: Client, service: Any) -> None:
    from fastapi.responses import RedirectResponse

    service.refusals.append(RedirectResponse(f"http://localhost:{service.port}/v1/jobs/x?signature=secret"))
    with pytest.raises(
        ServerError, match=r"redirects to http://localhost:[0-9]+/v1/jobs/x, which is not followed"
    ) as e:
        client.job(service.job)
    assert len(service.seen) == 1 and "secret" not in str(e.value)


def test_a_service_that_is_gone_is_waited_for_and_then_reported(wire: Any, service: Any) -> None:
    wire.close()
    started_s = time.monotonic()
    with Client(wire.url, service.key, patience_s=1) as client, pytest.raises(ServerError, match="cannot reach"):
        client.job(service.job)
    assert 1 <= time.monotonic() - started_s < 20


def test_an_unknown_host_is_reported_at_once() -> None:
    started_s = time.monotonic()
    with Client("http://no-such-host.invalid", "key") as client, pytest.raises(ServerError, match="cannot reach"):
        client.me()
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize("address", ["", "localhost:8000", "ftp://h", "http://", "http://h/?a=b", "http://u:p@h", "::"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ServerError, match="server"):
        Client(address, "key")


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "a\nb"])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(ServerError, match=r"API key"):
        Client("http://localhost", key)


def test_the_key_comes_from_the_environment_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, service: Any, wire: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CURATOR_API_KEY", service.key)
    with caplog.at_level("DEBUG"), Client(wire.url) as client:
        client.job(service.job)
        assert service.seen[0][2]["authorization"] == f"Bearer {service.key}"
        shown = repr(client) + repr(vars(client)) + repr(client._connection) + repr(vars(client._connection))
    assert service.key not in shown + caplog.text
    monkeypatch.delenv("CURATOR_API_KEY")
    with pytest.raises(ServerError, match="export CURATOR_API_KEY"):
        Client(wire.url)


def test_a_spec_may_be_a_mapping_a_model_or_a_file(client: Client, service: Any, tmp_path: Path) -> None:
    from curator import CurationSpec

    spec = CurationSpec.model_validate(
        SPEC | {"policy": {"kind": "loss", "keep": 0.5}, "models": {"reference": {"engine": "bigram"}}}
        | {"output": {"uri": "out"}}
    )  # fmt: skip
    (tmp_path / "spec.yaml").write_text("name: n\n")
    for each in (SPEC, spec, tmp_path / "spec.yaml", str(tmp_path / "spec.yaml")):
        client.submit(each)
    assert [body["name"] for body in service.bodies] == ["n"] * 4 and service.bodies[1] == spec.model_dump(mode="json")


@pytest.mark.parametrize("value", ["2026-01-31", ".nan"])
def test_a_spec_that_json_cannot_hold(client: Client, service: Any, tmp_path: Path, value: str) -> None:
    (tmp_path / "spec.yaml").write_text(f"name: {value}\n")
    with pytest.raises(SpecError, match="cannot be sent as JSON"):
        client.submit(tmp_path / "spec.yaml")
    assert not service.seen


def test_a_job_id_cannot_lead_elsewhere(client: Client, service: Any) -> None:
    with pytest.raises(CuratorError):
        client.job("../../keys")
    assert service.seen[0][1] != "/keys"


def test_lists_are_read_to_their_end_and_no_further_than_wanted(client: Client, service: Any) -> None:
    jobs = client.jobs()
    assert next(jobs).id.endswith("00") and len(service.seen) == 1
    assert [int(job.id[4:]) for job in jobs] == list(range(1, 60))
    assert [line.id for line in client.logs(service.job, follow=False)] == list(range(1, 10))


def test_waiting_ends_with_the_job_or_with_the_time(client: Client, service: Any) -> None:
    service.states = [{"status": status} for status in ("queued", "in_progress", "finalizing", "completed")]
    seen = [job.status for job in client.watch(service.job)]
    assert seen == ["queued", "in_progress", "finalizing", "completed"]
    service.state = {"status": "in_progress"}
    with pytest.raises(ServerError, match=r"is still in_progress after 0\.1 s"):
        client.wait(service.job, timeout_s=0.1)


def test_waiting_keeps_the_last_answer_alone(client: Client, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service.states = [*({"status": "in_progress"} for _ in range(30)), {"status": "completed"}]
    seen: list[weakref.ref[Any]] = []
    kept: list[int] = []
    watch = Client.watch

    def noted(*arguments: Any) -> Iterator[Any]:
        for job in watch(*arguments):
            kept.append(sum(earlier() is not None for earlier in seen))
            seen.append(weakref.ref(job))
            yield job

    monkeypatch.setattr(Client, "watch", noted)
    assert client.wait(service.job).status == "completed"
    assert len(kept) == 31 and max(kept) <= 2
