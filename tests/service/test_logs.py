"""The log of a real service and of its jobs: lines of JSON that name request and job, and hold no row and no secret."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from curator import logs
from service.database import open_database
from service.keys import KeyStore
from service.observe import Observed
from service.settings import Settings

CANARY = "zebra canary quartz"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the root logger writes as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


def test_a_requests_id_is_in_its_answer_and_in_its_lines_alone(log: io.StringIO) -> None:
    async def look(request: Request) -> PlainTextResponse:
        await asyncio.sleep(0.01 * int(request.query_params["n"]))
        await asyncio.to_thread(logging.getLogger("curator.service").warning, "%s", request.query_params["n"])
        return PlainTextResponse("seen")

    app = Observed(Starlette(routes=[Route("/look", look)]))

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            ids = ["mine-1", "", "bad id", "x" * 65]
            asked = [client.get(f"/look?n={n}", headers={"X-Request-Id": id_}) for n, id_ in enumerate(ids)]
            return await asyncio.gather(*asked)

    given = [answer.headers["x-request-id"] for answer in asyncio.run(ask())]
    logging.getLogger("curator.service").warning("outside")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert given[0] == "mine-1" and len(set(given)) == 4 and all(len(value) == 16 for value in given[1:])
    assert {line["message"]: line.get("request_id") for line in lines} == {
        **{str(n): value for n, value in enumerate(given)}, "outside": None,
    }  # fmt: skip


def test_the_services_own_keys_are_hidden(log: io.StringIO, tmp_path: Path) -> None:
    _, text = KeyStore(open_database(Settings(data_dir=tmp_path))).create("t", "n", ["read"])
    logging.getLogger("uvicorn.error").error("got %s, in a URL /v1?key=%s", text, text)
    assert text not in log.getvalue() and log.getvalue().count("[hidden]") == 2


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_failing_job_is_told_in_json_without_the_row_that_failed_it(
    start: Any, job_spec: Any, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [json.dumps({"text": f"{CANARY} {n} is good text", "id": str(n)}) for n in range(20)]
    corpus.write_text("\n".join([*rows, f'{{"text": "{CANARY}", "id": {CANARY}}}', f'["{CANARY}"]']) + "\n")
    service = start(CURATOR_JOB_LOG_FORMAT="json", HF_TOKEN="hunter2-token")
    spec = job_spec(corpus={"kind": "jsonl", "uri": str(corpus)}, on_bad_row="fail")
    job = service.submit(spec)
    assert service.wait(job["id"])["status"] == "failed"
    with service.client() as client:
        assert client.get(f"/v1/jobs/{job['id']}", headers={"X-Request-Id": "r-1"}).headers["x-request-id"] == "r-1"
        assert len(client.get("/v1/nothing").headers["x-request-id"]) == 16
        shown = client.get(f"/v1/jobs/{job['id']}/logs").json()["data"]
    service.stop()
    own = _lines("".join(line for line in service.log if not line.startswith(("API key: ", "Listening on "))))
    assert {"uvicorn.error"} <= {line["logger"] for line in own}  # its start and its end
    told = _lines("\n".join(line["text"] for line in shown))
    assert told[-1]["error_type"] == "CorpusError" and told[-1]["level"] == "error"
    assert all((line["job"], line["attempt"], line["epoch"]) == (job["id"], 1, 2) for line in told)
    folder = service.data_dir / "jobs" / job["id"]
    written = "".join(service.log) + "".join((folder / name).read_text() for name in ("log.txt", "events.jsonl"))
    assert CANARY not in written and "hunter2" not in written


@pytest.mark.slow
def test_in_text_a_job_and_a_service_are_read_by_people(start: Any, job_spec: Any, tmp_path: Path) -> None:
    service = start(CURATOR_LOG_FORMAT="text")
    job = service.submit(job_spec(corpus={"kind": "jsonl", "uri": str(tmp_path / "missing*.jsonl")}))
    assert service.wait(job["id"])["status"] == "failed"
    log = (service.data_dir / "jobs" / job["id"] / "log.txt").read_text()
    service.stop()
    assert log.splitlines()[-1].startswith("error: corpus: corpus.uri:") and "{" not in log.splitlines()[-1]
    assert not any(line.startswith("{") for line in service.log)
