"""A spec in YAML as JSON, so that what is typed in the browser and what a file holds are read by the same rules."""

import json

import yaml

from curator.spec import PlainLoader
from service.problems import Problem


def yaml_to_json(raw: bytes) -> str:
    """Read a mapping in YAML.

    Raises:
        Problem: 422, with the line where there is one: no YAML, no mapping, or values that JSON does not have.
    """
    try:
        content = yaml.load(raw.decode(), Loader=PlainLoader)  # nosec B506  # a SafeLoader, stricter
        if isinstance(content, dict):
            return json.dumps(content, allow_nan=False)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise _refuse(f"{where}{getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise _refuse("it is nested too deeply; a spec needs fewer than ten levels") from error
    except (ValueError, TypeError) as error:  # bytes that are no UTF-8; dates, sets, .nan
        raise _refuse(f"it holds what JSON does not have ({error}); put quotes around it") from error
    found = "empty" if content is None else f"a {type(content).__name__}"
    raise _refuse(f"a spec is a mapping such as `name: first-job`, this is {found}")


def _refuse(detail: str) -> Problem:
    return Problem(422, "invalid_spec", detail, errors=[{"path": "", "message": detail}])
