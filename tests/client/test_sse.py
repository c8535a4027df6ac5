"""The event-stream parser: the standard's own examples, and bytes cut anywhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.client.sse import EventParser, ServerEvent, read_events

# From the WHATWG HTML standard, 9.2.6.
STANDARD = [
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", "")]),
    (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [("message", "first event", "1"), ("message", "second event", ""), ("message", " third event", "")],
    ),
    (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
    (b"data:test\n\ndata: test\n\n", [("message", "test", ""), ("message", "test", "")]),
    (b"event: add\ndata: 73857293\n\nevent: add\n\ndata: x\n\n", [("add", "73857293", ""), ("message", "x", "")]),
]
# What line readers of other formats get wrong: U+2028, vertical tab and form feed end no line; CR alone does.
SUBTLE = "\ufeffid: 7\rdata: a\u2028b\x0bc\x0cd\x85\r\ndata: \u00e9\U0001f600\n\rid: 8\0\ndata: e\n\n"
SUBTLE_EVENTS = [("message", "a\u2028b\x0bc\x0cd\x85\n\u00e9\U0001f600", "7"), ("message", "e", "7")]
CASES = [*STANDARD, (SUBTLE.encode(), SUBTLE_EVENTS)]


def expected(events: list[tuple[str, str, str]]) -> list[ServerEvent]:
    return [ServerEvent(*event) for event in events]


@pytest.mark.parametrize(("stream", "events"), CASES)
def test_a_stream_in_one_piece(stream: bytes, events: list[tuple[str, str, str]]) -> None:
    assert list(read_events([stream], EventParser())) == expected(events)


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 200)))
def test_it_does_not_matter_where_the_bytes_are_cut(
    case: tuple[bytes, list[tuple[str, str, str]]], cuts: list[int]
) -> None:
    stream, events = case
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(edges)]
    assert list(read_events(chunks, EventParser())) == expected(events)


def test_an_event_that_was_cut_off_moves_no_id() -> None:
    parser = EventParser()
    assert [event.data for event in parser.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n")] == ["a"]
    assert parser.last_id == "1"
    assert [event.data for event in parser.feed(b"\n")] == ["b"] and parser.last_id == "2"


def test_the_server_says_how_long_to_wait() -> None:
    parser = EventParser()
    assert list(parser.feed(b"retry: 2500\nretry: soon\n\n")) == [] and parser.retry_s == 2.5
