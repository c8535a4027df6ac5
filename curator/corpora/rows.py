"""From a raw record to a `Document` or a `BadRow`: the one place that decides what is a good row.

Every reader ends here, so a row is judged alike in every format. Nothing is dropped: a row becomes a document with its
text unchanged, or a bad row with a fixed reason, where it is, and what was seen (never its text).

Invariant: `text`, `doc_id` and `source` of a document encode to UTF-8, and `text` is not blank.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from curator.corpora.fields import RowFields
from curator.data import BadRow, Document

Reason = Literal[
    "invalid_utf8",
    "lone_surrogate",
    "not_json",
    "blank_line",
    "missing_text",
    "text_not_string",
    "empty_text",
    "row_too_long",
    "column_type",
    "truncated_file",
    "damaged_file",
]
"""The words that the manifest counts by."""

_KEYS_SHOWN = 20
_KEY_CHARACTERS = 40
_ARROW_REFUSES = (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError)
_RAW_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")


class Place(NamedTuple):
    """Where a row is; makes its bad row."""

    file: str
    row: int | None
    offset: int | None = None

    def bad(self, reason: Reason, detail: str = "", skip: int = 0) -> BadRow:
        """The bad row here; `skip` bytes are added to the offset."""
        offset = None if self.offset is None else self.offset + skip
        return BadRow(file=self.file, row=self.row, reason=reason, detail=detail, offset=offset)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that a columnar file holds and Python cannot represent.

    Attributes:
        raw: the bytes of a string that is not UTF-8, else None.
        detail: what is wrong with it.
    """

    raw: bytes | None
    detail: str


def parse_object(raw: bytes, place: Place) -> dict[str, Any] | BadRow:
    """Parse one line of JSON; NaN and Infinity are accepted, and of a repeated key the last wins."""
    text = decode_utf8(raw, place)
    if isinstance(text, BadRow):
        return text
    if not text or text.isspace():
        return place.bad("blank_line")
    try:
        value = json.loads(text)
    except RecursionError:
        return place.bad("not_json", "nested too deeply")
    except ValueError as error:  # also an integer of more than 4,300 digits
        return place.bad("not_json", printable(str(error)))
    if not isinstance(value, dict):
        return place.bad("not_json", f"a {type(value).__name__}, not an object")
    return value


def decode_utf8(raw: bytes, place: Place) -> str | BadRow:
    """Decode strictly, telling a surrogate written as bytes from other damage."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        surrogate = _RAW_SURROGATE.match(raw, error.start)
        reason: Reason = "lone_surrogate" if surrogate else "invalid_utf8"
        return place.bad(reason, f"byte 0x{raw[error.start]:02x} at byte {error.start} of the row", skip=error.start)


def to_document(
    record: Mapping[str, Any], fields: RowFields, place: Place, keys: Collection[str] | None = None
) -> Document | BadRow:
    """Judge one record.

    Args:
        record: field name to value, as plain Python objects.
        fields: which field holds what.
        place: where the record is; `place.row` is a number.
        keys: all keys that the row could have, where `record` holds only those needed.

    Returns:
        The document, with `columns` unchanged and None for those the record lacks; or the bad row.
    """
    text = record.get(fields.text_field)
    bad = _judge_text(text, record if keys is None else keys, fields, place)
    if bad is not None:
        return bad
    doc_id = _read_name(record, fields.id_field, "id", place)
    source = _read_name(record, fields.source_field, "source", place)
    if isinstance(doc_id, BadRow):
        return doc_id
    if isinstance(source, BadRow):
        return source
    return Document(
        file=place.file,
        row=place.row or 0,
        doc_id=f"{place.file}:{place.row}" if doc_id is None else doc_id,
        source=source or "",
        text=str(text),
        columns={name: record.get(name) for name in fields.columns},
    )


def _read_name(record: Mapping[str, Any], field: str | None, role: str, place: Place) -> str | BadRow | None:
    """A source or id as a string; None where the record has none."""
    value = None if field is None else record.get(field)
    name = value if value is None or isinstance(value, Unreadable) else _as_name(value)
    bad = _judge_string(name, f"the {role} field {field!r}", place)
    return bad if bad is not None or isinstance(name, Unreadable) else name


def _judge_text(text: Any, keys: Collection[str], fields: RowFields, place: Place) -> BadRow | None:
    if text is None:
        what = f"{fields.text_field!r} is null" if fields.text_field in keys else f"no field {fields.text_field!r}"
        return place.bad("missing_text", printable(f"{what}; available keys: {list_keys(keys)}"))
    bad = _judge_string(text, f"the text field {fields.text_field!r}", place)
    if bad is not None:
        return bad
    if not isinstance(text, str):
        return place.bad("text_not_string", printable(f"{fields.text_field!r} is a {type(text).__name__}"))
    if not text or text.isspace():
        return place.bad("empty_text", f"{len(text)} blank characters")
    size_bytes = len(text) if text.isascii() else len(text.encode())
    if size_bytes > fields.max_row_bytes:
        return place.bad("row_too_long", f"{size_bytes} bytes of text; max_row_bytes is {fields.max_row_bytes}")
    return None


def _judge_string(value: Any, what: str, place: Place) -> BadRow | None:
    if isinstance(value, Unreadable):
        decoded = decode_utf8(value.raw, place._replace(offset=None)) if value.raw is not None else None
        bad = decoded if isinstance(decoded, BadRow) else place.bad("text_not_string")
        return bad.model_copy(update={"detail": printable(f"in {what}: {bad.detail or value.detail}")})
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return place.bad("lone_surrogate", printable(f"in {what}, character {error.start}"))
    return None


def _as_name(value: Any) -> str:
    """Numbers, booleans, lists and objects as their JSON, bytes in hexadecimal."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def fit_columns(document: Document, schema: pa.Schema) -> Document | BadRow:
    """Check that the document's columns fit the frozen types.

    A struct may lack keys (they become null); an unknown key, a number that would be rounded or text in a column of
    numbers does not fit.

    Args:
        document: a row of the corpus.
        schema: types of the carried columns.

    Returns:
        The same document, or a bad row with reason `column_type` (or `lone_surrogate`).
    """
    place = Place(document.file, document.row)
    for field in schema:
        value = document.columns.get(field.name)
        if value is None:
            continue
        if isinstance(value, Unreadable):
            return place.bad("column_type", printable(f"{field.name!r}: {value.detail}"))
        try:
            fits = _same(value, pa.array([value], type=field.type)[0].as_py())
        except UnicodeEncodeError:
            return place.bad("lone_surrogate", printable(f"in the column {field.name!r}"))
        except _ARROW_REFUSES:
            fits = False
        if not fits:
            seen = type(value).__name__
            return place.bad("column_type", printable(f"{field.name!r} is {field.type}; this {seen} does not fit"))
    return document


def _same(value: Any, back: Any) -> bool:
    """Whether a value survived its way through Arrow; keys that a struct lacks may have become null."""
    if isinstance(value, bool) or isinstance(back, bool):
        return value is back
    if isinstance(value, Mapping) and isinstance(back, Mapping):
        missing = back.keys() - value.keys()
        return (
            value.keys() <= back.keys()
            and all(_same(value[key], back[key]) for key in value)
            and all(back[key] is None for key in missing)
        )
    if isinstance(value, list | tuple) and isinstance(back, list | tuple):
        return len(value) == len(back) and all(map(_same, value, back))
    if isinstance(value, float) and math.isnan(value):
        return isinstance(back, float) and math.isnan(back)
    return bool(value == back)


def list_keys(keys: Iterable[str]) -> str:
    """The first keys of a record, for a message."""
    shown = [str(key)[:_KEY_CHARACTERS] for key in keys]
    more = f" and {len(shown) - _KEYS_SHOWN} more" if len(shown) > _KEYS_SHOWN else ""
    return printable(", ".join(shown[:_KEYS_SHOWN]) + more) or "none"


def printable(message: str) -> str:
    """The message with lone surrogates escaped, so that it can be stored as JSON."""
    return message.encode("utf-8", "backslashreplace").decode()


def explain_missing_text(bad_rows: Iterable[BadRow]) -> str:
    """Why a corpus, or a sample of it, has not one document: for the planner's error.

    Args:
        bad_rows: all rows seen.

    Returns:
        The problem, one example and the remedy.
    """
    rows = list(bad_rows)
    if not rows:
        return "no rows at all; check the uri"
    reason, count = Counter(bad.reason for bad in rows).most_common(1)[0]
    example = next(bad for bad in rows if bad.reason == reason)
    place = f"{example.file!r}" + ("" if example.row is None else f" row {example.row}")
    if reason == "missing_text":
        return f"no row has the text field ({place}: {example.detail}); is text_field right?"
    detail = f": {example.detail}" if example.detail else ""
    return f"none of {len(rows)} rows read is usable; {count} are {reason} (first {place}{detail}); check kind and uri"
