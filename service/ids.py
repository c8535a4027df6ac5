"""Ids in paths: one that has not the form of an id names nothing, so it is answered like one that is unknown.

The form stays in the OpenAPI document (`json_schema_extra` of the parameter), so that clients can know it.
"""

import re

from pydantic import AfterValidator

from service.problems import Problem


def known_form(noun: str, pattern: str) -> AfterValidator:
    """For a path parameter: Problem 404 `no_<noun>` unless it has the form of an id."""
    form = re.compile(pattern)

    def check(value: str) -> str:
        if form.fullmatch(value) is None:
            raise Problem(404, f"no_{noun}", f"there is no {noun} {value!r}")
        return value

    return AfterValidator(check)
