"""Published rows: weights, labels and log-probs beside the text, aligned token by token."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from curator.errors import OutputError
from curator.outputs import OutputConfig
from curator.outputs.parquet import ParquetOutput, build_rows
from curator.tables import list_array, token_schema

CARRIED = pa.schema([("url", pa.string())])


def token_rows():
    schema = token_schema(CARRIED)
    values = {
        "doc_id": ["a", "b", "c"], "source": ["s", "", "s"], "text": ["xy", "z", "pq"], "url": ["u", None, "v"],
        "input_ids": [[7, 8], [9], [0, 5, -1]], "token_bytes": [[1, 1], [1], [1, 1, 0]],
    }  # fmt: skip
    return pa.table({name: pa.array(values[name], schema.field(name).type) for name in schema.names}, schema=schema)


def scores():
    return list_array(np.array([np.nan, -1, np.nan, np.nan, -2, -3], np.float16), np.array([0, 2, 3, 6]))


WEIGHTS = np.array([0, 1, 0, 0, 0.5, 0], np.float32)


def test_labels_are_ids_where_the_weight_is_not_0_and_ignored_elsewhere():
    schema = ParquetOutput(uri="x").table_schema(CARRIED, ["reference"])
    table = build_rows(schema, token_rows(), {"reference": scores()}, WEIGHTS, scale=2.0)
    assert table.schema.equals(schema)
    assert table["labels"].to_pylist() == [[-100, 8], [-100], [-100, 5, -100]]
    assert table["token_weights"].to_pylist() == [[0, 2], [0], [0, 1, 0]]
    assert table["logprobs_reference"].to_pylist()[2][1:] == [-2, -3]
    assert table["url"].to_pylist() == ["u", None, "v"] and table["text"].to_pylist() == ["xy", "z", "pq"]


def test_a_slice_of_a_chunked_table_is_published_alike():
    schema = ParquetOutput(uri="x").table_schema(CARRIED, [])
    tokens = pa.concat_tables([token_rows(), token_rows()])[2:5]
    table = build_rows(schema, tokens, {}, np.array([0, 1, 0, 0, 0, 1], np.float32))
    assert table["labels"].to_pylist() == [[-100, 5, -100], [-100, -100], [9]]


def test_only_the_chosen_columns_are_published():
    schema = ParquetOutput(uri="x", columns=("text",)).table_schema(CARRIED, ["reference"])
    assert build_rows(schema, token_rows(), {}, WEIGHTS).column_names == [
        "doc_id",
        "text",
        "input_ids",
        "token_weights",
    ]


def test_what_is_not_aligned_is_refused():
    schema = ParquetOutput(uri="x").table_schema(CARRIED, ["reference"])
    with pytest.raises(OutputError, match="weights"):
        build_rows(schema, token_rows(), {"reference": scores()}, WEIGHTS[:-1])
    with pytest.raises(OutputError, match="reference"):
        build_rows(schema, token_rows(), {}, WEIGHTS)
    shifted = list_array(np.zeros(6, np.float16), np.array([0, 1, 3, 6]))
    with pytest.raises(OutputError, match="lengths"):
        build_rows(schema, token_rows(), {"reference": shifted}, WEIGHTS)


@pytest.mark.parametrize(
    "bad", [{}, {"uri": ""}, {"uri": "x", "columns": ["text", "text"]}, {"uri": "x", "kind": "csv"}]
)
def test_a_config_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValidationError):
        TypeAdapter(OutputConfig).validate_python(bad)


def test_a_column_that_the_dataset_cannot_have_is_named():
    with pytest.raises(OutputError, match="logprobs_base"):
        ParquetOutput(uri="x", columns=("logprobs_base",)).table_schema(CARRIED, ["reference"])
