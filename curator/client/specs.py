"""From what a caller calls a spec to the bytes that are sent; checking it is the service's work."""

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from curator.errors import SpecError

Spec = Mapping[str, Any] | BaseModel | str | os.PathLike[str]
"""A mapping, a `CurationSpec` or `TrainSpec`, or the path of a YAML or JSON file."""


def read_spec(spec: Spec) -> dict[str, Any]:
    """The spec as a mapping; raises SpecError when the file cannot be read or holds none."""
    from curator.spec import read_mapping

    if isinstance(spec, BaseModel):
        return spec.model_dump(mode="json")
    return dict(spec) if isinstance(spec, Mapping) else read_mapping(os.fspath(spec))


def encode_spec(spec: Spec) -> bytes:
    """The spec as JSON; the same spec gives the same bytes.

    Raises:
        SpecError: it holds what JSON cannot, such as the dates that YAML makes of `2026-01-31`.
    """
    try:
        return json.dumps(read_spec(spec), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"the spec cannot be sent as JSON: {error}; write dates and the like in quotes") from None
