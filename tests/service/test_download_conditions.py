"""What a download answers to conditions and ranges, against oracles that count bytes and compare tags one by one."""

import hashlib
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from service.downloads import Span, content_disposition, is_not_modified, select_span
from service.problems import Problem

ETAG = '"' + hashlib.sha256(b"x").hexdigest() + '"'
SIZES = st.integers(0, 40)


def ask(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


def span_or_problem(headers: Headers, size_bytes: int) -> Span | int | None:
    try:
        return select_span(headers, ETAG, size_bytes)
    except Problem as problem:
        assert problem.headers == {"Content-Range": f"bytes */{size_bytes}"}
        return problem.status


def span_of(indices: list[int]) -> Span | int:
    """The oracle's answer: the bytes that a range names, counted one by one."""
    return Span(indices[0], indices[-1] + 1) if indices else 416


# ------------------------------------------------------------------------------------------------ ranges


@given(SIZES, st.integers(0, 60), st.integers(0, 60), st.integers(0, 3))
def test_a_range_with_both_ends_is_what_counting_gives(size: int, first: int, last: int, zeros: int) -> None:
    expected = None if last < first else span_of([i for i in range(size) if first <= i <= last])
    assert span_or_problem(ask(("range", f"bytes={'0' * zeros}{first}-{last}")), size) == expected


@given(SIZES, st.integers(0, 60))
def test_an_open_range_is_what_counting_gives(size: int, first: int) -> None:
    assert span_or_problem(ask(("range", f"bytes={first}-")), size) == span_of([i for i in range(size) if i >= first])


@given(SIZES, st.integers(0, 60))
def test_a_suffix_is_what_counting_gives(size: int, suffix: int) -> None:
    expected = span_of(list(range(size))[-suffix:] if suffix else [])
    if size == 0 and suffix:  # satisfiable, says the RFC, but no Content-Range can say what was sent
        expected = None  # type: ignore[assignment]
    assert span_or_problem(ask(("range", f"bytes=-{suffix}")), size) == expected


@given(st.text(alphabet="bytes=0123456789-, \tx١", max_size=30) | st.text(max_size=20), st.integers(0, 100))
@example("bytes=" + "9" * 60_000 + "-", 5)
@example("bytes=0-" + "9" * 60_000, 5)
def test_whatever_is_asked_the_answer_lies_within_the_file(text: str, size: int) -> None:
    value = text.encode("latin-1", "replace").decode("latin-1")
    found = span_or_problem(ask(("range", value)), size)
    assert found in (None, 416) or (isinstance(found, Span) and 0 <= found.start < found.stop <= size)


@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-1,3-4", "bytes=0-0,-1", "bytes=3-1", "bytes=-", "bytes=", "bytes", "bytes=a-b", "bytes=1",
        "bytes=1--2", "bytes=--1", "bytes=0x1-2", "bytes=1-2x", "bytes=1 -2", "items=0-1", "bytes=+1-2",
        "bytes=1_0-2_0", "bytes=١-٢",
    ],
)  # fmt: skip
def test_several_or_malformed_ranges_give_the_whole_file(value: str) -> None:
    raw = [(b"range", value.encode("utf-8"))]
    assert select_span(Headers(raw=raw), ETAG, 100) is None


def test_units_are_caseless_empty_list_elements_are_nothing_and_two_headers_are_two_ranges() -> None:
    assert select_span(ask(("range", "BYTES=2-3")), ETAG, 9) == Span(2, 4)
    assert select_span(ask(("range", "bytes=, 2-3 ,")), ETAG, 9) == Span(2, 4)
    assert select_span(ask(("range", "bytes=0-1"), ("range", "bytes=3-4")), ETAG, 9) is None


# ------------------------------------------------------------------------------------------------ conditions

TAGS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([ETAG, '"other"', '""', '"a,b"', f'"{ETAG[1:-2]}"'])), min_size=1
)
SEPARATORS = st.sampled_from([",", ", ", " ,", ",, ,"])


def written(tags: list[tuple[bool, str]], separator: str) -> str:
    return separator.join(("W/" if weak else "") + tag for weak, tag in tags)


@given(TAGS, SEPARATORS)
def test_if_none_match_compares_weakly(tags: list[tuple[bool, str]], separator: str) -> None:
    found = is_not_modified(ask(("if-none-match", written(tags, separator))), ETAG)
    assert found == any(tag == ETAG for _, tag in tags)


@given(TAGS, SEPARATORS)
def test_if_match_compares_strongly(tags: list[tuple[bool, str]], separator: str) -> None:
    headers = ask(*[("if-match", written([tag], separator)) for tag in tags])  # as several headers: the same
    if any(tag == ETAG and not weak for weak, tag in tags):
        assert not is_not_modified(headers, ETAG)
    else:
        with pytest.raises(Problem, match="begin the download again") as raised:
            is_not_modified(headers, ETAG)
        assert raised.value.status == 412


@pytest.mark.parametrize(
    ("pairs", "outcome"),
    [
        ([("if-none-match", "*")], True),
        ([("if-none-match", ETAG[1:-1])], False),
        ([("if-none-match", f"{ETAG} {ETAG}")], False),
        ([("if-match", "*")], False),
        ([("if-match", "*"), ("if-none-match", ETAG)], True),
        ([("if-match", '"other"'), ("if-none-match", ETAG)], 412),
        ([("if-match", "")], 412),
        ([("if-match", ETAG + "x")], 412),
    ],
)
def test_conditions_by_hand(pairs: list[tuple[str, str]], outcome: bool | int) -> None:
    try:
        found: bool | int = is_not_modified(ask(*pairs), ETAG)
    except Problem as problem:
        found = problem.status
    assert found is outcome or found == outcome


def test_conditions_do_not_take_long_to_refuse() -> None:
    begun = time.perf_counter()
    for hostile in ('"a",' * 15_000 + "x", ", " * 30_000 + "x", 'W/"' * 20_000, '"' * 60_000, " ,\t" * 20_000):
        is_not_modified(ask(("if-none-match", hostile)), ETAG)
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    ("condition", "kept"),
    [(ETAG, True), (f" {ETAG} ", True), (f"W/{ETAG}", False), ('"other"', False),
     ("Sat, 29 Oct 1994 19:43:31 GMT", False), (f"{ETAG}, {ETAG}", False), ("*", False), ("", False)],
)  # fmt: skip
def test_if_range_keeps_the_range_only_for_this_very_version(condition: str, kept: bool) -> None:
    headers = ask(("range", "bytes=5-9"), ("if-range", condition))
    assert select_span(headers, ETAG, 100) == (Span(5, 10) if kept else None)
    unsatisfiable = ask(("range", "bytes=500-"), ("if-range", condition))
    assert span_or_problem(unsatisfiable, 100) == (416 if kept else None)


@pytest.mark.parametrize("name", ["00000.parquet", 'a"; filename=evil', "../../x", "a\r\nSet-Cookie: x", "Ä ü.parquet"])
def test_file_names_cannot_leave_their_header(name: str) -> None:
    header = content_disposition(name)
    plain = header.removeprefix('attachment; filename="').partition('"')[0]
    assert header.isascii() and not set(header) & set("\r\n") and not set(plain) & set('/\\"; ')
    assert header.count('"') == 2 and ("filename*" in header) == (plain != name)
