"""What is known of published shards: receipts beside them, and the manifest of a finished dataset.

A shard counts as published when its receipt exists. `publish_shard` writes the data file first (put-if-absent), then
its receipt; a data file without a receipt was left by a killed run and is checked before it is adopted. Readers of a
finished dataset trust the manifest alone, which is created once, after the last shard.
"""

import io
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from curator import storage, tables, tracing
from curator.ahead import answers_at_once, read_ahead
from curator.data import BadRow, Cut, ModelIdentity, StrictModel
from curator.errors import OutputError, StorageError
from curator.report.statistics import ShardStatistics
from curator.stored import Record, StoredRecord, parse_record

RECEIPTS = "_receipts"
CALIBRATION, MANIFEST, PARTIAL_MANIFEST = "calibration.json", "manifest.json", "manifest.partial.json"
QUARANTINE, REPORT, CARD = "quarantine.jsonl", "report.html", "README.md"


class Receipt(StoredRecord):
    """Proof that a shard's file is complete: what every stage records."""

    number: int
    sha256: str
    bytes: int
    rows: int
    tokens: int
    seconds: float = Field(description="wall time of the shard in its worker")
    worker: str = Field(description="host and process that made it")
    peak_memory_bytes: int = Field(description="largest resident size of that process so far")
    adopted: bool = Field(default=False, description="the file was found, left by a killed run, and re-verified")


class TokenReceipt(Receipt):
    """A shard of tokens, with the rows that could not become documents."""

    text_bytes: int
    quarantined: tuple[BadRow, ...] = ()


class ScoreReceipt(Receipt):
    """A shard of one model's scores; `notes` are the engine's own, such as batches halved after out-of-memory."""

    notes: dict[str, Any] = Field(default_factory=dict)


class CuratedReceipt(Receipt):
    """A shard of the published dataset."""

    kept_tokens: int
    weight_sum: float
    statistics: ShardStatistics


AnyReceipt = TypeVar("AnyReceipt", bound=Receipt)


def start_receipt() -> Callable[[], dict[str, Any]]:
    """Begin to measure a shard; the result, called when the shard is complete, gives the fields that a worker knows."""
    started_s = time.monotonic()

    def measure() -> dict[str, Any]:
        return {
            "sha256": "",
            "bytes": 0,
            "seconds": round(time.monotonic() - started_s, 3),
            "worker": f"{platform.node()}:{os.getpid()}",
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    return measure


class ShardFolder(StrictModel):
    """A folder of numbered parquet shards under a root: `ROOT/NAME/00017.parquet` and its receipt."""

    root: str
    name: str

    def file(self, number: int) -> str:
        """The shard's path relative to the root."""
        return f"{self.name}/{number:05d}.parquet"

    def uri(self, number: int) -> str:
        """Where the shard is."""
        return storage.join(self.root, self.file(number))

    def receipt_file(self, number: int) -> str:
        """The receipt's path relative to the root."""
        return f"{self.name}/{RECEIPTS}/{number:05d}.json"

    def published(self) -> set[int]:
        """Numbers of the shards that are there and have a receipt; one whose file was removed is to be made again."""
        return self.receipts() & _numbers(storage.join(self.root, self.name), ".parquet")

    def receipts(self) -> set[int]:
        """Numbers of the shards that have a receipt."""
        return _numbers(storage.join(self.root, self.name, RECEIPTS), ".json")

    def receipt(self, number: int, kind: type[AnyReceipt]) -> AnyReceipt:
        """Read one receipt."""
        return read_record(storage.join(self.root, self.receipt_file(number)), kind)

    def read_receipts(self, numbers: Iterable[int], kind: type[AnyReceipt]) -> Iterator[AnyReceipt]:
        """Read receipts, in the order given; holds a few of them at a time."""
        return read_ahead(lambda number: self.receipt(number, kind), numbers, answers_at_once(self.root))

    @contextmanager
    def open(self, number: int) -> Iterator[pq.ParquetFile]:
        """Open a shard for reading.

        Raises:
            StorageError: it is gone or damaged; the message says how to have it made again.
        """
        uri = self.uri(number)
        try:
            with storage.open_read(uri) as file:
                yield tables.open_parquet(file)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"the shard {uri!r} cannot be read: {error}; if it is gone or damaged, remove it: the same command "
                "makes it anew"
            ) from error


def _numbers(folder: str, ending: str) -> set[int]:
    names = [name.removesuffix(ending) for name in storage.list_names(folder) if name.endswith(ending)]
    return {int(name) for name in names if name.isdecimal()}


def read_record(uri: str, kind: type[Record]) -> Record:
    """Read a JSON file that this library wrote, in this version or an earlier one; raises OutputError for any other."""
    try:
        return parse_record(kind, storage.read_bytes(uri), repr(uri))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if fault["type"] == "json_invalid":
            raise OutputError(f"{uri!r} is not JSON: {fault['msg']}; restore it or start afresh") from error
        where, what = ".".join(map(str, fault["loc"])), fault["msg"]
        raise OutputError(
            f"{uri!r} is not a sound {kind.__name__}: {where}: {what}; restore it or start afresh"
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{uri!r} is not JSON: {error}; restore it or start afresh") from error


@tracing.span("publish shard")
def publish_shard(folder: ShardFolder, staged: Path, receipt: AnyReceipt) -> AnyReceipt:
    """Publish a complete staged shard and its receipt; both steps are idempotent.

    A file that already has the final name without a receipt comes from a killed run: it is adopted if it is the
    same, or (engines whose scores are not reproducible) sound and of the same rows; a damaged one is replaced.

    Args:
        folder: where the shard belongs.
        staged: the complete local file.
        receipt: what to record; `sha256` and `bytes` are filled in here.

    Returns:
        The receipt that stands, which may be another worker's.
    """
    number, uri = receipt.number, folder.uri(receipt.number)
    sha256, size_bytes = storage.sha256(str(staged))
    adopted = False
    if not storage.publish(staged, uri):
        found_sha256, found_bytes = storage.sha256(uri)
        if found_sha256 != sha256 and not _is_sound(uri, receipt.rows):
            storage.remove(uri)
            if not storage.publish(staged, uri):
                raise StorageError(f"{uri!r} was damaged and another run is replacing it; run the same command again")
        else:
            adopted, sha256, size_bytes = True, found_sha256, found_bytes
    receipt = receipt.model_copy(update={"sha256": sha256, "bytes": size_bytes, "adopted": adopted})
    content = receipt.model_dump_json().encode()
    if storage.write_once(folder.root, folder.receipt_file(number), content):
        return receipt
    standing = folder.receipt(number, type(receipt))
    if standing.sha256 == sha256:
        return standing
    storage.replace(folder.root, folder.receipt_file(number), content)  # it spoke of a file that was removed since
    return receipt


def _is_sound(uri: str, rows: int) -> bool:
    """Whether a file is whole; a store that cannot give it now has damaged nothing, and raises StorageError."""
    content = storage.read_bytes(uri)
    try:
        return bool(tables.open_parquet(io.BytesIO(content)).metadata.num_rows == rows)
    except (pa.ArrowException, OSError):
        return False


class ShardEntry(StrictModel):
    """One published shard, as the manifest lists it."""

    number: int
    file: str
    sha256: str
    bytes: int
    rows: int
    tokens: int
    kept_tokens: int
    weight_sum: float


def shard_entry(folder: ShardFolder, receipt: CuratedReceipt) -> ShardEntry:
    """What a manifest says of a published shard."""
    fields = receipt.model_dump(include=set(ShardEntry.model_fields) - {"file"})
    return ShardEntry(file=folder.file(receipt.number), **fields)


class Totals(StrictModel):
    """Sums over all shards."""

    rows: int
    tokens: int
    scored_tokens: int
    kept_tokens: int
    weight_sum: float
    rows_without_kept_tokens: int
    text_bytes: int
    quarantined_rows: int
    duplicate_ids: int = Field(description="rows whose doc_id an earlier row already had; both are kept")


class LostShard(StrictModel):
    """A shard that failed for good, accepted by `on_bad_shard: quarantine`: none of its rows is in the dataset."""

    number: int
    stage: str
    reason: str


class Manifest(StoredRecord):
    """The finished dataset, in one file; created once, after everything it names."""

    name: str
    content: str = Field(description="`dataset`, or `weights` when only row-aligned weights were written")
    curator_version: str
    spec: dict[str, Any]
    keys: dict[str, Any] = Field(description="stage keys: plan, tokens, scores per model, select")
    tokenizer: dict[str, Any]
    models: dict[str, ModelIdentity]
    cuts: dict[str, Cut] = Field(description="by scope key: '' for the corpus, a source's name, a shard's number")
    weight_scale: float = Field(description="factor that makes kept weights average 1")
    shards: tuple[ShardEntry, ...]
    lost_shards: tuple[LostShard, ...] = ()
    totals: Totals
    quarantined: dict[str, int] = Field(description="rows by reason; each is a line of quarantine.jsonl")


def read_manifest(directory: str) -> Manifest:
    """Read a dataset's manifest; raises OutputError when the folder holds no finished dataset."""
    uri = storage.join(directory, MANIFEST)
    if not storage.exists(uri):
        raise OutputError(f"{directory!r} holds no finished dataset (no {MANIFEST}); finish it with `curator run SPEC`")
    return read_record(uri, Manifest)
