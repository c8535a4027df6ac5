"""A file's name as the service takes it: ASCII letters, digits, `.`, `_` and `-`, a letter or digit first."""

import re
import unicodedata
from pathlib import PurePath

_LONGEST = 80
_LONGEST_EXTENSION = 16


def plain_name(name: str) -> str:
    """The nearest such name, with the extension kept; `corpus` where no letter is left of it."""
    stem, dot, rest = name.partition(".")
    plain = (_plain(stem).lstrip("._-") or "corpus") + dot + _plain(rest)
    extension = "".join(PurePath(plain).suffixes[-2:])[-_LONGEST_EXTENSION:]
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - len(extension)] + extension


def _plain(text: str) -> str:
    without_marks = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", without_marks)
