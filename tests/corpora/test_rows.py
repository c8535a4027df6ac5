"""Which rows are documents, which are not, and what is said of them."""

import math
from typing import Any

import pytest

from curator.corpora.fields import RowFields
from curator.corpora.rows import Place, Unreadable, explain_missing_text, parse_object, to_document
from curator.data import BadRow, Document

PLACE = Place("dir/a.jsonl", 7, 1000)


def judge(record: dict[str, Any], **fields: Any) -> Document | BadRow:
    return to_document(record, RowFields(**fields), PLACE)


def document(record: dict[str, Any], **fields: Any) -> Document:
    row = judge(record, **fields)
    assert isinstance(row, Document), row
    return row


def reason(row: Any) -> str:
    assert isinstance(row, BadRow), row
    assert (row.file, row.row) == ("dir/a.jsonl", 7)
    row.model_dump_json().encode()
    return row.reason


@pytest.mark.parametrize(
    "text", ["\0", "a\0b", "\ufffd", "x" * 10_000_000, "👩‍👩‍👧 ไทย עברית", "\u200b", "\ufeff", "a\r\n\x1bb"]
)
def test_odd_text_is_processed_unchanged(text: str) -> None:
    assert document({"text": text}).text == text


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\n", "\u2003\u2028", "\x1c"])
def test_blank_text_is_quarantined(text: str) -> None:
    assert reason(judge({"text": text})) == "empty_text"


def test_missing_ids_and_sources_get_their_defaults() -> None:
    row = document({"text": "a"}, id_field="id")
    assert (row.doc_id, row.source) == ("dir/a.jsonl:7", "")
    row = document({"text": "a", "id": None, "source": None}, id_field="id")
    assert (row.doc_id, row.source) == ("dir/a.jsonl:7", "")
    assert document({"text": "a", "source": "s", "id": "x"}, source_field=None).source == ""
    assert document({"text": "a", "id": "x"}).doc_id == "dir/a.jsonl:7"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0, "0"),
        (2**80, str(2**80)),
        (1.5, "1.5"),
        (True, "true"),
        ("", ""),
        ([1, "é"], '[1, "é"]'),
        (b"\x01\xff", "01ff"),
    ],
)
def test_ids_and_sources_of_other_types_become_strings(value: Any, name: str) -> None:
    row = document({"text": "a", "id": value, "source": value}, id_field="id")
    assert (row.doc_id, row.source) == (name, name)


def test_missing_text_lists_the_available_keys() -> None:
    row = judge({"body": "a", "id": 1})
    assert reason(row) == "missing_text"
    assert "no field 'text'; available keys: body, id" in row.detail
    assert "'text' is null" in judge({"text": None, "id": 1}).detail
    many = judge({f"key{i}": i for i in range(5000)})
    assert reason(many) == "missing_text" and len(many.detail) < 500
    assert reason(judge({"\ud800": 1})) == "missing_text"


@pytest.mark.parametrize("value", [1, 1.5, True, ["a"], {"a": "b"}, b"bytes"])
def test_text_of_another_type_is_quarantined(value: Any) -> None:
    row = judge({"text": value})
    assert reason(row) == "text_not_string"
    assert type(value).__name__ in row.detail


@pytest.mark.parametrize("field", ["text", "id", "source"])
def test_lone_surrogates_are_found_in_every_field_that_we_write(field: str) -> None:
    row = judge({"text": "a", field: "ok\ud800"}, id_field="id")
    assert reason(row) == "lone_surrogate"
    assert field in row.detail


def test_a_surrogate_pair_in_json_is_one_character() -> None:
    record = parse_object(rb'{"text": "\ud83d\ude00"}', PLACE)
    assert isinstance(record, dict)
    assert document(record).text == "😀"


def test_unreadable_values_are_told_apart() -> None:
    assert reason(judge({"text": Unreadable(b"a\xff", "")})) == "invalid_utf8"
    assert reason(judge({"text": "a", "source": Unreadable(b"a\xed\xa0\x80", "")})) == "lone_surrogate"


def test_text_over_the_limit_is_too_long() -> None:
    assert reason(judge({"text": "éé"}, max_row_bytes=3)) == "row_too_long"
    assert document({"text": "éé"}, max_row_bytes=4).text == "éé"


# ------------------------------------------------------------------------------------------------ lines of JSON


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"nonsense",
        b'{"text": "a"} {"text": "b"}',
        b"[1, 2]",
        b'"a string"',
        b"null",
        b"1",
        b'{"text": "a\x01"}',
        b'{"n": ' + b"1" * 5000 + b"}",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
    ],
)
def test_lines_that_are_not_an_object(raw: bytes) -> None:
    row = parse_object(raw, PLACE)
    assert reason(row) == "not_json"
    assert isinstance(row, BadRow) and row.offset == 1000 and row.detail


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
def test_endless_nesting_is_not_json(bracket: bytes) -> None:
    row = parse_object(b'{"text": "a", "x": ' + bracket * 200_000, PLACE)
    assert reason(row) == "not_json"
    assert isinstance(row, BadRow) and "nested" in row.detail


@pytest.mark.parametrize("raw", [b"", b" ", b"\r", b"\t \r"])
def test_blank_lines(raw: bytes) -> None:
    assert reason(parse_object(raw, PLACE)) == "blank_line"


def test_invalid_utf8_gives_the_byte() -> None:
    row = parse_object(b'{"text": "a\xffb"}', PLACE)
    assert reason(row) == "invalid_utf8"
    assert isinstance(row, BadRow) and row.offset == 1000 + 11 and "0xff" in row.detail


@pytest.mark.parametrize("raw", [b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xed\xbf\xbf"])
def test_surrogates_as_bytes(raw: bytes) -> None:
    assert reason(parse_object(b'{"text": "' + raw + b'"}', PLACE)) == "lone_surrogate"


def test_json_oddities_that_are_fine() -> None:
    record = parse_object(b'{"text": "a", "text": "b", "n": NaN, "i": -Infinity, "big": %d}\r' % 2**200, PLACE)
    assert isinstance(record, dict)
    assert record["text"] == "b" and math.isnan(record["n"]) and record["big"] == 2**200


@pytest.mark.parametrize(
    "name", ["doc_id", "source", "text", "input_ids", "token_bytes", "labels", "token_weights", "logprobs_x"]
)
def test_columns_cannot_take_our_names(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be carried"):
        RowFields(columns=("url", name))


def test_columns_cannot_be_listed_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        RowFields(columns=("url", "url"))


def test_explanations_of_a_corpus_without_documents() -> None:
    wrong_field = [row for row in (judge({"body": "a"}), judge({"body": "b"})) if isinstance(row, BadRow)]
    message = explain_missing_text(wrong_field)
    assert "is text_field right?" in message and "'text'" in message and "available keys: body" in message
    other = parse_object(b"plain words", PLACE)
    assert isinstance(other, BadRow)
    assert "not_json" in explain_missing_text([other])
    assert explain_missing_text([])
