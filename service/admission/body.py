"""A request's body as a JSON object.

Size and nesting are looked at before the parser runs. What JSON parsers disagree about is refused, so that every reader
of a spec sees the same one: duplicate keys, NaN, numbers out of range, text that is no Unicode.
"""

import json
import math
import re
from typing import Any, NoReturn

from service.problems import Problem

MAX_BODY_BYTES = 1 << 20
MAX_DEPTH = 40
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NOT_BRACKETS = re.compile(rb"[^\[\]{}]+")
_LARGEST_INTEGER = (1 << 63) - 1
_MOST_DIGITS = 20


def read_json_body(raw: bytes) -> dict[str, Any]:
    """Parse a request's body.

    Raises:
        Problem: 413 too large; 400 no JSON; 422 JSON that no spec can be, such as an array or a key given twice.
    """
    if len(raw) > MAX_BODY_BYTES:
        raise Problem(413, "body_too_large", f"the body has {len(raw):,} bytes; at most {MAX_BODY_BYTES:,} are read")
    _check_depth(raw)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_parse_integer,
            parse_float=_parse_float,
        )
    except UnicodeDecodeError as error:
        raise Problem(400, "invalid_json", f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        detail = f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise Problem(400, "invalid_json", detail) from error
    if not isinstance(value, dict):
        raise _unfit("", f"the body holds a {type(value).__name__}; send an object with keys such as name and corpus")
    _check_text(value, "")
    return value


def _check_depth(raw: bytes) -> None:
    """Count brackets outside strings; in what is no JSON the count means nothing, and the parser says so."""
    depth = 0
    for bracket in _NOT_BRACKETS.sub(b"", _STRING.sub(b"", raw)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise _unfit("", f"the body is nested deeper than {MAX_DEPTH} levels; a spec needs fewer than ten")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1}) if len(keys) < 1000 else ["one of many keys"]
        raise _unfit("", f"{_printable(twice[0])} is given twice in one object; give each key once")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise Problem(400, "invalid_json", f"the body is not JSON: {name} is no JSON number; use null or a number")


def _parse_integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS or abs(int(digits)) > _LARGEST_INTEGER:
        raise _unfit("", f"the number {digits[:_MOST_DIGITS]}... is out of range; integers have at most 63 bits")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _unfit("", f"the number {digits[:_MOST_DIGITS]} is out of range of a 64-bit float")
    return value


def _check_text(value: Any, path: str) -> None:
    """Refuse text that cannot be stored: lone surrogates have no UTF-8, and databases hold no NUL."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, path)
            _check_text(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_text(item, f"{path}.{index}")
    elif isinstance(value, str) and (_has_surrogate(value) or "\0" in value):
        problem = "a NUL character" if "\0" in value else "half of a surrogate pair"
        raise _unfit(path, f"the text {_printable(value)} holds {problem}; leave it out")


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _printable(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _unfit(path: str, message: str) -> Problem:
    return Problem(422, "invalid_spec", message, errors=[{"path": path, "message": message}])
