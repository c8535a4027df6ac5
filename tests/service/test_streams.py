"""Server-sent events: whoever is cut off goes on where it was, and misses nothing."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from curator.job_directory import JobDirectory

pytestmark = pytest.mark.slow

CUTS = 500


@pytest.fixture
def queue_only(start: Callable[..., Any]) -> Any:
    return start(CURATOR_MAX_RUNNING_JOBS="0")


def parse(stream: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """(id, event, data) of every complete event; what a cut leaves of one is thrown away, as browsers do."""
    fields: dict[str, str] = {}
    for line in stream:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields.keys() >= {"id", "data"}:
            yield fields["id"], fields["event"], fields["data"]
            fields = {}
        else:
            fields = {}


def test_500_cuts_lose_and_repeat_nothing(queue_only: Any, job_spec: Callable[..., dict[str, Any]]) -> None:
    job = queue_only.submit(job_spec())
    directory = JobDirectory(queue_only.data_dir / "jobs" / job["id"])
    texts: list[str] = []
    enough = threading.Event()

    def write() -> None:
        while not enough.wait(0.002):
            texts.append(f"{len(texts)} \u2028\r\n\x85 {'x' * random.randrange(200)}")
            directory.append(1, "message", {"text": texts[-1]})

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[tuple[int, dict[str, Any]]] = []
    cuts = 0
    url, accept = f"/v1/jobs/{job['id']}/events", {"Accept": "text/event-stream"}
    with queue_only.client() as client:
        while cuts < CUTS:
            headers = accept | ({"Last-Event-ID": str(seen[-1][0])} if seen else {})
            room = random.randrange(1, 40)  # lines until the cut, which may fall inside an event
            with client.stream("GET", url, headers=headers) as answer:
                assert answer.status_code == 200
                lines = (line for line, _ in zip(answer.iter_lines(), range(room), strict=False))
                seen += [(int(number), json.loads(data)) for number, _, data in parse(lines)]
            cuts += 1
        enough.set()
        writer.join()
        client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        while True:
            headers = accept | {"Last-Event-ID": str(seen[-1][0])}
            with client.stream("GET", url, headers=headers) as answer:
                if answer.status_code == 204:  # the job has ended, and all is said
                    break
                seen += [(int(number), json.loads(data)) for number, _, data in parse(answer.iter_lines())]
    assert [number for number, _ in seen] == list(range(1, len(texts) + 3))
    assert [record["id"] for _, record in seen] == list(range(1, len(texts) + 3))
    assert [record["data"]["text"] for _, record in seen[1:-1]] == texts
    assert seen[-1][1]["data"] == {"status": "cancelled"}


def test_a_stream_speaks_while_the_job_runs_and_ends_with_it(
    start: Callable[..., Any], job_spec: Callable[..., dict[str, Any]]
) -> None:
    service = start()
    job = service.submit(job_spec())
    arrived = []
    with service.client() as client:
        with client.stream("GET", f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for _, kind, data in parse(answer.iter_lines()):
                arrived.append((time.time(), kind, json.loads(data)))
        late = max(moment - _seconds(record["at"]) for moment, _, record in arrived[3:])
        assert late < 2, "events are streamed as they happen"
        assert {kind for _, kind, _ in arrived} == {"state", "stage", "progress"}
        assert arrived[-1][2]["data"]["status"] == "completed"
        with client.stream("GET", f"/v1/jobs/{job['id']}/logs", headers={"Accept": "text/event-stream"}) as answer:
            lines = list(parse(answer.iter_lines()))
        whole = (service.data_dir / "jobs" / job["id"] / "log.txt").read_bytes()
        assert "\n".join(json.loads(data)["text"] for _, _, data in lines) + "\n" == whole.decode()
        assert int(lines[-1][0]) == len(whole)
        middle = lines[len(lines) // 2]
        rest = client.get(f"/v1/jobs/{job['id']}/logs", params={"after": middle[0]}).json()["data"]
        assert [line["id"] for line in rest] == [int(number) for number, _, _ in lines[len(lines) // 2 + 1 :]]


def test_pages_of_events_follow_each_other(queue_only: Any, job_spec: Callable[..., dict[str, Any]]) -> None:
    job = queue_only.submit(job_spec())
    directory = JobDirectory(queue_only.data_dir / "jobs" / job["id"])
    for number in range(25):
        directory.append(1, "message", {"text": str(number)})
    found, after = [], "0"
    with queue_only.client() as client:
        while after is not None:
            page = client.get(f"/v1/jobs/{job['id']}/events", params={"after": after, "limit": 7}).json()
            found += [event["id"] for event in page["data"]]
            after = page["next_cursor"]
        assert found == list(range(1, 27))
        beyond = client.get(f"/v1/jobs/{job['id']}/events", params={"after": 1000}).json()
        assert beyond == {"data": [], "has_more": False, "next_cursor": None}
        wrong = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "x"})
        assert wrong.status_code == 422


def test_a_service_that_stops_ends_its_streams(queue_only: Any, job_spec: Callable[..., dict[str, Any]]) -> None:
    job = queue_only.submit(job_spec())
    with (
        queue_only.client() as client,
        client.stream("GET", f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}) as answer,
    ):
        began = time.monotonic()
        stopping = threading.Timer(0.5, queue_only.process.terminate)
        stopping.start()
        with pytest.raises(httpx.RemoteProtocolError):
            list(answer.iter_lines())
        stopping.join()
    assert queue_only.process.wait(15) is not None
    assert time.monotonic() - began < 15


def _seconds(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()
