"""How a check says no, and what may be quoted of a value that it says no to."""

import re

_USER_INFO = re.compile(r"//[^/\s'\"@]*@")
_KEYS = re.compile(r"\b(?:sk|pk|hf|ghp|gho|ghs|glpat|xox[abp]|tc|AKIA)[-_A-Za-z0-9]{12,}")
_LONGEST_QUOTE = 120


class Refused(Exception):
    """One value is not allowed; the message says the problem, the value where that is harmless, and the remedy."""


class TooWide(Exception):
    """A pattern for which more would have to be looked at than a request may; the message is as a refusal's."""


def quote(value: str) -> str:
    """A value for a message: shortened, on one line, without what may be a secret."""
    text = repr(hide_secrets(value))
    return text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 4] + "...'"


def hide_secrets(text: str) -> str:
    """Cut out user information of addresses and whatever has the form of an API key."""
    return _KEYS.sub("[hidden]", _USER_INFO.sub("//[hidden]@", text))
