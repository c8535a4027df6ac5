"""Following events over connections that are cut: none lost, none doubled."""

import random
import time
from typing import Any

import pytest

from curator import Client
from curator.errors import ServerError


def test_the_stream_ends_when_the_service_says_so(service: Any, wire: Any) -> None:
    with Client(wire.url, service.key) as client:
        assert [event.id for event in client.events(service.job)] == list(range(1, 201))
        assert [event.id for event in client.events(service.job, after=150)] == list(range(151, 201))
        assert list(client.events(service.job, after=200)) == []


def test_cut_at_any_byte_no_event_is_lost_or_doubled(service: Any, wire: Any) -> None:
    draw = random.Random(1)
    wire.cuts = [draw.randrange(0, 6000) for _ in range(6)]
    with Client(wire.url, service.key, patience_s=30) as client:
        events = list(client.events(service.job))
    assert not wire.cuts and wire.connections > 6
    assert [event.id for event in events] == list(range(1, 201))
    assert all(event.data["text"] == "é" * event.id for event in events)


def test_a_service_that_repeats_itself_is_not_believed(service: Any, wire: Any) -> None:
    service.ignore_last_id = True
    wire.cuts = [20_000]
    with Client(wire.url, service.key) as client:
        ids = []
        for event in client.events(service.job):
            ids.append(event.id)
            service.ignore_last_id = event.id < 200
    assert ids == list(range(1, 201))


def test_the_reader_may_stop_whenever_it_likes(service: Any, wire: Any) -> None:
    with Client(wire.url, service.key) as client:
        stream = client.events(service.job)
        assert next(stream).id == 1
        stream.close()  # type: ignore[attr-defined]
        assert client.job(service.job).id == service.job


def test_an_outage_longer_than_the_patience_is_an_error(service: Any, wire: Any) -> None:
    with Client(wire.url, service.key, patience_s=0.5) as client:
        wire.cuts = [3000, *[0] * 100]
        started_s = time.monotonic()
        with pytest.raises(ServerError, match="cannot reach"):
            list(client.events(service.job))
        assert time.monotonic() - started_s < 30


def test_an_answer_that_is_no_stream(service: Any, wire: Any) -> None:
    with Client(wire.url, service.key) as client, pytest.raises(ServerError, match="not a stream of events"):
        list(client.logs(service.job))
