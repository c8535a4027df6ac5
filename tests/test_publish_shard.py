"""A shard under its final name is replaced only where it is known to be damaged."""

from pathlib import Path

import pyarrow as pa
import pytest

from curator import storage, tables
from curator.errors import StorageError
from curator.manifest import Receipt, ShardFolder, publish_shard, start_receipt


def publish(folder: ShardFolder, staged: Path, value: float) -> Receipt:
    schema = tables.score_schema(())
    with tables.open_writer(staged, schema) as writer:
        writer.write_table(pa.table([pa.array([[None, value]], schema.field(0).type)], schema=schema))
    return publish_shard(folder, staged, Receipt(number=3, rows=1, tokens=2, **start_receipt()()))


def test_a_store_that_fails_while_a_shard_is_looked_at_costs_no_published_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's scores differ in their last bits: which of both stands is not for a passing fault to say."""
    folder = ShardFolder(root=str(tmp_path), name="scores")
    published = publish(folder, tmp_path / "first", 0.5)
    real = storage.read_bytes

    def failing(uri: str) -> bytes:
        if uri == folder.uri(3):  # its digest was taken before, and was another
            raise StorageError("the store says 503")
        return real(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", failing)
        with pytest.raises(StorageError, match="503"):
            publish(folder, tmp_path / "second", 0.25)
    assert storage.sha256(folder.uri(3))[0] == published.sha256
    assert publish(folder, tmp_path / "second", 0.25).sha256 == published.sha256, "adopted"


@pytest.mark.parametrize("damage", [b"", b"PAR1 half a file", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_shard_without_receipt_is_replaced(tmp_path: Path, damage: bytes) -> None:
    folder = ShardFolder(root=str(tmp_path), name="scores")
    Path(folder.uri(3)).parent.mkdir()
    Path(folder.uri(3)).write_bytes(damage)
    published = publish(folder, tmp_path / "staged", 0.5)
    assert storage.sha256(folder.uri(3))[0] == published.sha256 and not published.adopted
