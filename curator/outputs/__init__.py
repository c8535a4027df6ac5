"""Forms in which a data set is published: one file each, and one line each in `OutputConfig`.

A form decides which columns the published parquet files have; other files are an export's business. pydantic tells
members apart by `kind` from the second on, and wants no discriminator before: CONTRIBUTING.md shows that line.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator

from curator.outputs.parquet import ParquetOutput


def _with_kind(value: Any) -> Any:
    """An output that names no kind is parquet."""
    return {"kind": "parquet", **value} if isinstance(value, dict) else value


OutputConfig = Annotated[
    ParquetOutput,
    BeforeValidator(_with_kind),
]
"""What the spec's `output` may be."""
