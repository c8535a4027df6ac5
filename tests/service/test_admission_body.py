"""A request's body as a JSON object: limits before parsing, and nothing that two parsers read differently."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import read_json_body
from service.admission.body import MAX_BODY_BYTES, MAX_DEPTH
from service.problems import Problem

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=20,
)


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@given(st.dictionaries(_TEXT, _VALUES, max_size=5), st.booleans())
def test_every_sound_object_is_read_as_it_is(value: dict[str, Any], ascii_only: bool) -> None:
    assert read_json_body(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\ua0d8NaInfity1e.-\n ', max_size=60).map(str.encode))
def test_whatever_is_sent_the_answer_is_an_object_or_a_problem(raw: bytes) -> None:
    try:
        assert isinstance(read_json_body(raw), dict)
    except Problem as problem:
        assert problem.status in (400, 422)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"name: test", 400),
        (b"{'a': 1}", 400),
        (b'{"a": 1,}', 400),
        (b'{"a": 1} {"b": 2}', 400),
        (b'\xef\xbb\xbf{"a": 1}', 400),
        (b'{"a": "\xff"}', 400),
        (b'{"a": "\xed\xa0\x80"}', 400),
        ('{"a": 1}'.encode("utf-16"), 400),
        (b'{"a": NaN}', 400),
        (b'{"a": Infinity}', 400),
        (b'{"a": -Infinity}', 400),
        (b'{"a": "line\nend"}', 400),
        (b"[]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b'{"a": 1, "a": 1}', 422),
        (b'{"a": 1, "\\u0061": 2}', 422),
        (b'{"x": {"a": 1, "a": 2}}', 422),
        (b'{"a": 1e999}', 422),
        (b'{"a": 9223372036854775808}', 422),
        (b'{"a": ' + b"9" * 5000 + b"}", 422),
        (b'{"a": "\\ud800"}', 422),
        (b'{"a": ["\\udc00x"]}', 422),
        (b'{"\\ud800": 1}', 422),
        (b'{"a": "\\u0000"}', 422),
        (nested(MAX_DEPTH + 1), 422),
        (b"[" * 500_000, 422),
        (b'{"a":' * 150_000, 422),
        (b'{"a": "' + b"x" * MAX_BODY_BYTES + b'"}', 413),
        (b"[" * (MAX_BODY_BYTES + 1), 413),
    ],
)  # fmt: skip
def test_what_no_spec_can_be_is_refused_quickly(raw: bytes, status: int) -> None:
    started = time.perf_counter()
    with pytest.raises(Problem) as raised:
        read_json_body(raw)
    assert raised.value.status == status, raised.value.detail
    assert len(raised.value.detail) < 300
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "raw",
    [
        nested(MAX_DEPTH),
        b'{"a": "' + b"[" * 100 + b'"}',
        b'{"a": "\\"' + b"[{" * 100 + b'\\\\"}',
        b'{"a": "\\ud83d\\ude00"}',
        b'{"a": 9223372036854775807, "b": -9223372036854775807}',
        b' \n{"a": 1}\t ',
        b"{}",
    ],
)
def test_what_only_looks_bad_is_read(raw: bytes) -> None:
    assert read_json_body(raw) == json.loads(raw)
