"""Datasets and places with which an export must not go on."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.errors import OutputError
from curator.export import export_dataset

TOKENIZER = Path(__file__).parents[2] / "curator" / "scorers" / "bigram_model" / "tokenizer.json"


@pytest.fixture
def dataset(tmp_path: Path, write_dataset: Callable[..., Path]) -> Path:
    return write_dataset(tmp_path / "dataset", [([5, 6, 7], [0.0, 1.0, 1.0]), ([8], [1.0]), ([9, 10], [0.0, 1.0])])


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("form", ["tinker", "megatron", "hugging_face"])
def test_weights_that_are_none_are_told(weight: float, form: str, dataset: Path, tmp_path: Path) -> None:
    path = dataset / "curated" / "00000.parquet"
    table = pq.read_table(path)
    weights = table["token_weights"].to_pylist()
    weights[0][2] = weight
    place = table.schema.get_field_index("token_weights")
    pq.write_table(table.set_column(place, "token_weights", pa.array(weights, pa.list_(pa.float32()))), path)
    with pytest.raises(OutputError, match=r"row '0:0' has weight .* at token 2; .*curator verify"):
        export_dataset(dataset, form, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_rows_of_one_token_are_skipped_and_counted(dataset: Path, tmp_path: Path) -> None:
    record = export_dataset(dataset, "tinker", tmp_path / "out")
    assert (record.rows, record.skipped_rows, record.kept_tokens) == (2, 1, 3)


def test_a_weight_at_the_first_token_reaches_no_trainer(tmp_path: Path, write_dataset: Callable[..., Path]) -> None:
    dataset = write_dataset(tmp_path / "dataset", [([5, 6, 7], [1.0, 1.0, 0.0]), ([8, 9], [1.0, 1.0])])
    record = export_dataset(dataset, "hugging_face", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "data" / "train-00000.parquet").to_pylist()
    assert [row["token_weights"] for row in rows] == [[0.0, 1.0, 0.0], [0.0, 1.0]]
    assert [row["labels"] for row in rows] == [[-100, 6, -100], [-100, 9]]
    assert (record.kept_tokens, record.weight_sum) == (2, 2.0)


def test_another_tokenizer_under_the_same_name_is_told(dataset: Path, tmp_path: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["tokenizer"]["source"] = str(TOKENIZER)
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OutputError, match=r"tokenizer\.json' is not the one that made this dataset"):
        export_dataset(dataset, "tinker", tmp_path / "out")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_as_output_is_followed(there: bool, dataset: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    if there:
        real.mkdir()
    (tmp_path / "link").symlink_to(real)
    export_dataset(dataset, "tinker", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (real / "export.json").exists()


def test_a_mount_point_is_refused_before_anything_is_read(dataset: Path) -> None:
    with pytest.raises(OutputError, match="'/proc' is a mount point"):
        export_dataset(dataset, "tinker", "/proc")
