"""Types of the carried columns: frozen once from the corpus' beginning, then every value is held against them.

Parquet and hub corpora bring their types; for the others they are inferred from the first rows. Invariant: every type
given here can be written to parquet and read without code of ours. `rows.fit_columns` holds the values against them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from curator.corpora.rows import list_keys
from curator.errors import CorpusError

SAMPLE_ROWS = 1_000
"""Rows from which types are inferred."""

_ARROW_REFUSES = (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError)


def infer_schema(names: Sequence[str], records: Iterable[Mapping[str, Any]]) -> pa.Schema:
    """Types of the named columns, from the first records of a corpus.

    Rows that disagree with the type of the majority are left to `fit_columns`.

    Args:
        names: the carried columns, in order.
        records: the first records, at most `SAMPLE_ROWS`.

    Returns:
        One nullable field a name; a column that is always null is a string.

    Raises:
        CorpusError: no record has the column, or its values have no common type.
    """
    values: dict[str, list[Any]] = defaultdict(list)
    available: dict[str, None] = {}
    for record in records:
        available.update(dict.fromkeys(record))
        for name in names:
            if name in record:
                values[name].append(record[name])
    missing = [name for name in names if name not in values]
    if missing:
        raise missing_columns(missing, available)
    return pa.schema([pa.field(name, _infer_type(name, values[name])) for name in names])


def missing_columns(missing: Sequence[str], available: Iterable[str]) -> CorpusError:
    """The error for carried columns that are nowhere."""
    return CorpusError(
        f"corpus.columns: the corpus has no column {', '.join(map(repr, missing))}; available keys: "
        f"{list_keys(available)}"
    )


def _infer_type(name: str, values: list[Any]) -> pa.DataType:
    """The type of all values, else of the largest group of one kind."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for value in values:
        if value is not None:
            groups[_kind(value)].append(value)
    candidates = [values, *sorted(groups.values(), key=len, reverse=True)]
    for candidate in candidates:
        try:
            return plain_type(name, pa.array(candidate).type)
        except _ARROW_REFUSES as error:
            if isinstance(error, CorpusError):
                raise
    raise CorpusError(
        f"corpus.columns: {name!r} holds values of no common Arrow type in its first {len(values)} rows; leave it out"
    )


def _kind(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def plain_type(name: str, kind: pa.DataType) -> pa.DataType:
    """A type that any parquet reader takes: dictionaries decoded, null as string; extension types are refused."""
    if isinstance(kind, pa.BaseExtensionType):
        raise CorpusError(f"column {name!r} has the Arrow extension type {kind}; store it as a plain type")
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return plain_type(name, kind.value_type)
    if pa.types.is_struct(kind):
        if kind.num_fields == 0:
            raise CorpusError(f"corpus.columns: {name!r} holds only empty objects, which parquet cannot store")
        return pa.struct([field.with_type(plain_type(name, field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(name, kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(plain_type(name, kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(name, kind.value_type)), kind.list_size)
    return kind
