"""The files' schemas and encodings: what is written comes back, small, the same bytes each time."""

import io
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator import tables
from curator.errors import CorpusError, OutputError, StorageError

LISTS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), max_size=8)


def write(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with tables.open_writer(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def curated_table(rows: int = 3) -> pa.Table:
    schema = tables.curated_schema(pa.schema([]), ["reference"])
    fill = {pa.string(): "ünï\0", pa.large_string(): "text 語", tables.TOKEN_IDS: [1, 2], tables.WEIGHTS: [0.0, 1.0]}
    values = {f.name: [fill.get(f.type, [np.float16("nan"), np.float16(-1)])] * rows for f in schema}
    return pa.table({f.name: pa.array(values[f.name], f.type) for f in schema}, schema=schema)


@settings(deadline=None)
@given(LISTS, st.data())
def test_lists_survive_being_laid_flat_however_they_are_chunked_and_sliced(rows, data):
    offsets = np.cumsum([0, *map(len, rows)])
    column = tables.list_array(np.array(list(chain(*rows)), np.int32), offsets)
    assert column.type == pa.list_(pa.int32()) and column.to_pylist() == rows
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    middle = data.draw(st.integers(start, stop))
    chunked = pa.chunked_array([column[start:middle], column[middle:stop]], column.type)
    values_T, flat_offsets = tables.flat(chunked)
    assert values_T.tolist() == list(chain(*rows[start:stop])) and values_T.dtype == np.int32
    assert flat_offsets.dtype == np.int64
    assert flat_offsets.tolist() == np.cumsum([0, *map(len, rows[start:stop])]).tolist()


def test_one_chunk_is_laid_flat_without_a_copy():
    column = tables.list_array(np.arange(10, dtype=np.float16), np.array([0, 4, 10]))
    values_T, _ = tables.flat(column[1:])
    assert values_T.__array_interface__["data"][0] == column.values.buffers()[1].address + 4 * 2


@pytest.mark.parametrize("offsets", [[0, 3], [1, 2], [0, 2, 1, 2], []])
def test_offsets_that_do_not_divide_the_values_are_refused(offsets):
    with pytest.raises(OutputError, match="offsets"):
        tables.list_array(np.zeros(2, np.int32), np.array(offsets, np.int64))


@pytest.mark.parametrize("column", [[[1], None], [[1, None]]])
def test_nulls_are_refused(column):
    with pytest.raises(StorageError, match="null"):
        tables.flat(pa.array(column, pa.list_(pa.int32())))


def test_a_null_outside_the_slice_does_no_harm():
    values_T, _ = tables.flat(pa.array([[None], [5]], pa.list_(pa.int32()))[1:])
    assert values_T.tolist() == [5]


def test_types_are_those_of_the_contract():
    schema = tables.curated_schema(pa.schema([("url", pa.string())]), ["reference", "base"])
    assert {f.name: str(f.type).replace("item: ", "") for f in schema} == {
        "doc_id": "string", "source": "string", "text": "large_string", "url": "string", "input_ids": "list<int32>",
        "token_bytes": "list<int32>", "labels": "list<int32>", "token_weights": "list<float>",
        "logprobs_reference": "list<halffloat>", "logprobs_base": "list<halffloat>",
    }  # fmt: skip
    assert tables.score_schema(("rank", "entropy")).names == ["logprobs", "entropy", "rank"]


def test_columns_are_chosen_in_our_order_and_the_required_ones_stay():
    schema = tables.curated_schema(pa.schema([]), ["reference"], ("logprobs_reference", "text"))
    assert schema.names == ["doc_id", "text", "input_ids", "token_weights", "logprobs_reference"]


def test_a_column_that_cannot_be_is_named():
    with pytest.raises(OutputError, match="logprobs_other"):
        tables.curated_schema(pa.schema([]), ["reference"], ("logprobs_other",))
    with pytest.raises(OutputError, match="perplexity"):
        tables.score_schema(("perplexity",))


@pytest.mark.parametrize("name", ["text", "labels", "logprobs_x"])
def test_a_carried_column_cannot_take_one_of_our_names(name):
    with pytest.raises(CorpusError, match=name):
        tables.token_schema(pa.schema([(name, pa.string())]))


@pytest.mark.parametrize("kind", [pa.string(), pa.int8(), pa.list_(pa.int32()), pa.struct([("a.b", pa.bool_())])])
@pytest.mark.parametrize("name", ["rank", "a.b", "token_bytes.list.element"])
def test_a_carried_column_of_any_name_and_type_comes_back(name, kind):
    table = pa.table({name: pa.nulls(2, kind), "doc_id": ["a", "b"], "input_ids": [[1], [2, 3]]})
    assert tables.open_parquet(io.BytesIO(write(table))).read().equals(table)


def test_a_file_reads_back_equal_with_equal_bytes_each_time():
    table = curated_table()
    content = write(table)
    read = tables.open_parquet(io.BytesIO(content)).read()
    assert read.schema.equals(table.schema) and read.drop(["logprobs_reference"]).equals(
        table.drop(["logprobs_reference"])
    )
    assert np.array_equal(
        tables.flat(read["logprobs_reference"])[0], tables.flat(table["logprobs_reference"])[0], equal_nan=True
    )
    assert write(table) == content


def test_statistics_never_repeat_the_text():
    metadata = pq.read_metadata(io.BytesIO(write(curated_table())))
    columns = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)]
    assert [c.path_in_schema for c in columns if c.is_stats_set] == ["doc_id", "source"]


def test_hard_weights_take_about_a_bit_each():
    weights_T = (np.random.default_rng(0).random(200_000) < 0.6).astype(np.float32)
    column = tables.list_array(weights_T, np.arange(0, 200_001, 400))
    content = write(pa.table({"token_weights": column}))
    assert len(content) / len(weights_T) < 0.15


def test_the_datasets_library_reads_it_without_our_code(tmp_path):
    import datasets

    (tmp_path / "00000.parquet").write_bytes(write(curated_table()))
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows[1]["text"] == "text 語" and rows[2]["input_ids"] == [1, 2] and len(rows) == 3
    assert rows.features["logprobs_reference"].feature.dtype == "float16"


class Planted(pa.ExtensionType):
    """An Arrow extension type such as a corpus file may name."""

    def __init__(self):
        super().__init__(pa.int32(), "curator.test.planted")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        raise AssertionError("the extension type's code ran")


def test_arrow_extension_types_are_never_loaded():
    table = pa.table({"x": pa.ExtensionArray.from_storage(Planted(), pa.array([1], pa.int32()))})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    pa.register_extension_type(Planted())
    try:
        with pytest.raises(StorageError, match="extension type"):
            tables.open_parquet(sink)
    finally:
        pa.unregister_extension_type("curator.test.planted")


def test_a_damaged_file_is_a_storage_error():
    content = write(curated_table())
    for damaged in (content[:-10], content[:3], b"", b"PAR1" + b"\xff" * 100 + b"PAR1"):
        with pytest.raises(StorageError):
            tables.open_parquet(io.BytesIO(damaged))
