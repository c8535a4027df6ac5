"""Extension types of a parquet file are never handed to their classes, wherever they stand in its schema."""

import base64
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpora.parquet import ParquetCorpus
from curator.errors import CorpusError


class Trap(pa.ExtensionType):  # type: ignore[misc]
    """Reports when Arrow hands it a file's bytes, as types that unpickle them would be handed them."""

    sprung = 0

    def __init__(self) -> None:
        super().__init__(pa.string(), "tests.trap")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Trap":
        cls.sprung += 1
        return cls()


@pytest.fixture
def trapped_file(tmp_path: Path) -> Any:
    trap = pa.ExtensionArray.from_storage(Trap(), pa.array(["x", "y"]))
    nested = pa.StructArray.from_arrays([trap], names=["inner"])
    table = pa.table({"text": ["a", "b"], "trap": trap, "nested": nested, "fine": pa.array([1, 2], pa.uint8())})
    uri = str(tmp_path / "a.parquet")
    pq.write_table(table, uri)
    pa.register_extension_type(Trap())
    Trap.sprung = 0
    yield uri
    pa.unregister_extension_type("tests.trap")


def test_extension_types_are_never_deserialised(trapped_file: str, read_all: Any) -> None:
    corpus = ParquetCorpus(uri=trapped_file, columns=("fine",))
    rows, damage = read_all(corpus)
    assert ([row.text for row in rows], damage) == (["a", "b"], [])
    assert corpus.columns_schema(corpus.list_sources()).field("fine").type == pa.uint8()
    for column in ("trap", "nested"):
        refused = ParquetCorpus(uri=trapped_file, columns=(column,))
        with pytest.raises(CorpusError, match=f"{column!r} has an Arrow extension type"):
            refused.columns_schema(refused.list_sources())
        with pytest.raises(CorpusError, match="extension type"):
            refused.split(refused.list_sources()[0], 1000)
    with pytest.raises(CorpusError, match="extension type"):
        read_all(ParquetCorpus(uri=trapped_file, text_field="trap"))
    assert Trap.sprung == 0
    pq.read_table(trapped_file)
    assert Trap.sprung > 0, "the trap works"


def test_a_footer_that_hides_its_schema_is_read_without_it(trapped_file: str, read_all: Any) -> None:
    content = Path(trapped_file).read_bytes()
    pa.unregister_extension_type("tests.trap")
    encoded = pq.read_metadata(trapped_file).metadata[b"ARROW:schema"]
    pa.register_extension_type(Trap())
    raw = base64.b64decode(encoded)
    loose = base64.b64encode(raw[:-3]).rstrip(b"=")[: len(encoded)].ljust(len(encoded), b"\n")
    Trap.sprung = 0
    Path(trapped_file).write_bytes(content.replace(encoded, loose))
    rows, damage = read_all(ParquetCorpus(uri=trapped_file, columns=("trap",)))
    assert ([row.columns["trap"] for row in rows], damage) == (["x", "y"], [])
    assert Trap.sprung == 0
