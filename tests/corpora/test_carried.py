"""Carried columns: types frozen from the corpus' beginning, values unchanged or quarantined."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.corpora.carried import infer_schema
from curator.corpora.rows import Unreadable, fit_columns
from curator.data import BadRow, Document
from curator.errors import CorpusError


def reason(row: Any) -> str:
    assert isinstance(row, BadRow), row
    assert (row.file, row.row) == ("dir/a.jsonl", 7)
    return row.reason


def fit(value: Any, kind: pa.DataType) -> Document | BadRow:
    row = Document(file="dir/a.jsonl", row=7, doc_id="id", source="", text="a", columns={"x": value})
    return fit_columns(row, pa.schema([pa.field("x", kind)]))


STRUCT = pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, pa.int64()),
        (3, pa.int64()),
        (3, pa.float64()),
        (float("nan"), pa.float64()),
        ("é", pa.string()),
        ({"a": 1, "b": ["x", None]}, STRUCT),
        ({"a": 1}, STRUCT),
        ([{"a": None}], pa.list_(STRUCT)),
        (0.1, pa.float64()),
    ],
)
def test_values_that_fit(value: Any, kind: pa.DataType) -> None:
    row = fit(value, kind)
    assert isinstance(row, Document), row
    assert row.columns["x"] is value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("3", pa.int64()),
        (3.5, pa.int64()),
        (True, pa.int64()),
        (True, pa.float64()),
        (1, pa.bool_()),
        (2**64, pa.int64()),
        (2**60 + 1, pa.float64()),
        (0.1, pa.float32()),
        (3, pa.string()),
        ("abc", pa.list_(pa.string())),
        ({"a": 1, "c": 2}, STRUCT),
        ({"a": 1, "b": [1]}, STRUCT),
        ([1], STRUCT),
        (Unreadable(None, "year 12000"), pa.timestamp("us")),
    ],
)
def test_values_that_would_change_do_not_fit(value: Any, kind: pa.DataType) -> None:
    row = fit(value, kind)
    assert reason(row) == "column_type"
    assert isinstance(row, BadRow) and "'x'" in row.detail


def test_a_surrogate_in_a_column() -> None:
    assert reason(fit(["a\ud800"], pa.list_(pa.string()))) == "lone_surrogate"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.lists(JSON_VALUES, min_size=1, max_size=5))
def test_what_fits_comes_back_from_arrow_as_it_was(values: list[Any]) -> None:
    try:
        schema = infer_schema(["x"], [{"x": value} for value in values])
    except CorpusError:
        return
    for value in values:
        if isinstance(fit(value, schema.field("x").type), Document):
            back = pa.array([value], schema.field("x").type)[0].as_py()
            assert _without_nulls(back) == _without_nulls(value)


def _without_nulls(value: Any) -> str:
    """JSON with null members removed, numbers as floats: what a struct column may change."""

    def simplify(part: Any) -> Any:
        if isinstance(part, dict):
            return {k: simplify(v) for k, v in part.items() if v is not None and simplify(v) != {}}
        if isinstance(part, list):
            return [simplify(v) for v in part]
        return float(part) if isinstance(part, int) and not isinstance(part, bool) else part

    return json.dumps(simplify(value), sort_keys=True)


def test_types_are_inferred_from_the_majority() -> None:
    records = [{"n": 1, "s": "a", "empty": None, "mixed": 1, "nested": {"a": [None]}}] * 3
    records += [{"n": 2.5, "s": None, "mixed": "two", "nested": {"b": 1}}]
    schema = infer_schema(["s", "n", "empty", "mixed", "nested"], records)
    assert schema.names == ["s", "n", "empty", "mixed", "nested"]
    assert [schema.field(i).type for i in range(4)] == [pa.string(), pa.float64(), pa.string(), pa.int64()]
    assert schema.field("nested").type == pa.struct([("a", pa.list_(pa.string())), ("b", pa.int64())])


def test_a_column_that_is_nowhere_is_an_error_with_the_available_keys() -> None:
    with pytest.raises(CorpusError, match=r"no column 'url'.*available keys: text, link"):
        infer_schema(["url"], [{"text": "a", "link": "b"}])


def test_a_column_of_empty_objects_cannot_be_stored() -> None:
    with pytest.raises(CorpusError, match="only empty objects"):
        infer_schema(["x"], [{"x": {}}])


def test_endless_nesting_does_not_fit() -> None:
    nested: list[Any] = []
    for _ in range(900):
        nested = [nested]
    kind = pa.list_(pa.list_(pa.string()))
    assert reason(fit(nested, kind)) == "column_type"
