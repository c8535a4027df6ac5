"""What must never stand in a log: secrets, and the text of the corpus.

Secrets are hidden by value, where it is known (variables of the environment whose names say that they hold one, and
whatever `keep_secret` was told), and by form: what stands before the host of an address, bearer tokens, this service's
keys, signatures.

Text of the corpus gets into messages through errors alone. Those that this library raises on purpose name a file, a
row and a reason, never a value. Of other errors only the kinds below are quoted: parsers and converters (ValueError,
KeyError, Arrow's) put into their message what they choked on.
"""

import json
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from curator.errors import CuratorError

HIDDEN = "[hidden]"
_LEAST_CHARACTERS = 6
"""A shorter value would hide parts of ordinary words."""

_SECRET_NAME = re.compile(
    r"(?:PASSWORD|PASSWD"
    r"|(?:^|_)(?:SECRET|TOKEN|API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|ACCOUNT_KEY|DATABASE_URL|OTLP_(?:\w+_)?HEADERS))$"
)
_FORMS = (
    (re.compile(r"(?<=://)[^\s/\"'<>]+(?=@)"), HIDDEN),  # also a token without a user's name
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"\btc_[a-z2-7]{46}\b"), HIDDEN),
    (re.compile(r"(?i)\b((?:x-amz-(?:signature|security-token)|sig|signature)=)[^&\s\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b((?:(?:access_)?token|api_?key|password)=)[^&\s\"']+"), rf"\1{HIDDEN}"),
)  # fmt: skip
_QUOTED = (OSError, MemoryError, RuntimeError, ImportError, UnicodeError, ArithmeticError, json.JSONDecodeError)
_PACKAGES = (Path(__file__).parent, Path(__file__).parents[1] / "service")

_told: set[str] = set()


def keep_secret(*values: str | None) -> None:
    """Hide these values from now on, also as they are written in an address (percent-encoded, or not)."""
    for value in values:
        _told.update(part for part in (value, unquote(value or "")) if part and len(part) >= _LEAST_CHARACTERS)


def keep_keys_of(spec: Mapping[str, Any]) -> None:
    """Hide the values of the variables that a spec's models name in `api_key_env`."""
    models = spec.get("models")
    for model in models.values() if isinstance(models, Mapping) else ():
        variable = model.get("api_key_env") if isinstance(model, Mapping) else None
        keep_secret(os.environ.get(str(variable)))


def hide(text: str) -> str:
    """The text without secrets."""
    for value in _secrets():
        if value in text:
            text = text.replace(value, HIDDEN)
    for form, instead in _FORMS:
        text = form.sub(instead, text)
    return text


def _secrets() -> list[str]:
    """Longest first, so that one which is part of another leaves nothing of it. Read each time: variables change."""
    found = set(_told)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            found.update(_parts(name, value))
    return sorted((value for value in found if len(value) >= _LEAST_CHARACTERS), key=len, reverse=True)


def _parts(name: str, value: str) -> Iterable[str]:
    """What is secret of a variable's value: of headers each one's, of an address the password."""
    yield value
    if name.endswith("HEADERS"):
        for header in value.split(","):
            text = header.partition("=")[2].strip()
            yield from (text, unquote(text))
    password = value.partition("://")[2].rpartition("@")[0].partition(":")[2]
    yield from (password, unquote(password))


def describe(error: BaseException, *, over_rows: bool = True) -> str:
    """An error in one piece, without anything that it may have quoted from the corpus.

    Args:
        error: what was raised.
        over_rows: False where no row can have been at hand, such as while an engine starts: then all is quoted.

    Returns:
        The message of an error made on purpose; kind and message of one of the system, of Python or of an engine; of
        any other its kind and the place in this package that it came through.
    """
    if isinstance(error, CuratorError):
        return hide(str(error))
    name = type(error).__name__
    original = getattr(error, "orig", None)  # of SQLAlchemy's: its own text quotes the statement with its values
    if isinstance(original, BaseException):
        return hide(f"{name}: {' '.join(str(original).split())}")
    if not over_rows or (isinstance(error, _QUOTED) and not type(error).__module__.startswith("pyarrow")):
        return hide(f"{name}: {error}" if str(error) else name)
    return f"{name} at {_place(error)} (its text may quote the corpus and is not shown)"


def _place(error: BaseException) -> str:
    """The innermost line of this project, or of whoever raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if any(Path(frame.filename).is_relative_to(folder) for folder in _PACKAGES)]
    for frame in reversed(own or frames):
        path = Path(frame.filename)
        return f"{path.parent.name}/{path.name}:{frame.lineno}"
    return "an unknown place"


def describe_trace(error: BaseException) -> str:
    """A traceback as Python prints it, causes first, each error described as above."""
    lines: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        trace = "".join(traceback.format_tb(link.__traceback__))
        members = getattr(link, "exceptions", ())
        within = "".join("\n" + describe_trace(member) for member in members if isinstance(member, BaseException))
        head = "Traceback (most recent call last):\n" if trace else ""
        lines.append(f"{head}{trace}{_kind(link)}{describe(link)}{within}")
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return hide("\n\nwhich led to:\n\n".join(reversed(lines)))


def _kind(error: BaseException) -> str:
    return f"{type(error).__name__}: " if isinstance(error, CuratorError) else ""
