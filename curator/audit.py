"""Check a published dataset against its manifest, from the bytes up: digests, counts, alignment.

Independent of how the dataset was made: everything is recomputed from the files.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator import storage, tables
from curator.errors import StorageError
from curator.manifest import Manifest, ShardEntry, read_manifest

_SUM_TOLERANCE = 1e-6


def verify(directory: str) -> list[str]:
    """Re-check every shard of a dataset.

    Args:
        directory: a folder with a manifest.

    Returns:
        What is wrong, one line each, naming shard and row; empty if all is well.

    Raises:
        OutputError: the folder holds no finished dataset.
    """
    manifest = read_manifest(directory)
    problems = [problem for entry in manifest.shards for problem in _check_shard(directory, manifest, entry)]
    problems += _check_files(directory, manifest)
    problems += _check_totals(manifest)
    return problems


def _check_files(directory: str, manifest: Manifest) -> Iterator[str]:
    if not manifest.shards:
        return
    folder = manifest.shards[0].file.rpartition("/")[0]
    listed = {entry.file.rpartition("/")[2] for entry in manifest.shards}
    for name in storage.list_names(storage.join(directory, folder)):
        if name not in listed and not name.startswith("_"):
            yield f"{folder}/{name}: is not in the manifest"


def _check_totals(manifest: Manifest) -> Iterator[str]:
    for name in ("rows", "tokens", "kept_tokens", "weight_sum"):
        total = sum(getattr(entry, name) for entry in manifest.shards)
        stated = getattr(manifest.totals, name)
        if not np.isclose(total, stated, rtol=_SUM_TOLERANCE):
            yield f"manifest.json: totals.{name} is {stated}, its shards sum to {total}"


def _check_shard(directory: str, manifest: Manifest, entry: ShardEntry) -> Iterator[str]:
    uri = storage.join(directory, entry.file)
    try:
        sha256, size_bytes = storage.sha256(uri)
        if (sha256, size_bytes) != (entry.sha256, entry.bytes):
            yield f"{entry.file}: sha256 {sha256}, {size_bytes} bytes; manifest: {entry.sha256}, {entry.bytes} bytes"
        with storage.open_read(uri) as file:
            yield from _check_rows(entry, manifest, tables.open_parquet(file))
    except (StorageError, FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        yield f"{entry.file}: cannot be read: {error}"


def _check_rows(entry: ShardEntry, manifest: Manifest, parquet: Any) -> Iterator[str]:
    rows = tokens = kept = 0
    weight_sum = 0.0
    for group in range(parquet.metadata.num_row_groups):
        table = parquet.read_row_group(group)
        weights_T, offsets = tables.flat(table.column("token_weights"))
        for row, problem in _check_alignment(table, weights_T, offsets, manifest):
            yield f"{entry.file}: row {rows + row}: {problem}"
        rows += table.num_rows
        tokens += len(weights_T)
        kept += int(np.count_nonzero(weights_T))
        weight_sum += float(weights_T.sum(dtype=np.float64))
    for name, found in (("rows", rows), ("tokens", tokens), ("kept_tokens", kept)):
        if found != getattr(entry, name):
            yield f"{entry.file}: {found} {name}, the manifest has {getattr(entry, name)}"
    if not np.isclose(weight_sum, entry.weight_sum, rtol=_SUM_TOLERANCE):
        yield f"{entry.file}: weights sum to {weight_sum}, the manifest has {entry.weight_sum}"


def _check_alignment(
    table: pa.Table, weights_T: np.ndarray, offsets: np.ndarray, manifest: Manifest
) -> Iterator[tuple[int, str]]:
    """Faults of single rows: the first of each kind in this row group."""
    names = table.column_names
    wrong: list[tuple[str, np.ndarray]] = []  # (what, index of a faulty token each)
    lists = {n: tables.flat(table.column(n)) for n in names if n in _ALIGNED or n.startswith(tables.LOGPROBS_PREFIX)}
    for name, (_, theirs) in lists.items():
        if not np.array_equal(theirs, offsets):
            yield int(np.flatnonzero(theirs != offsets)[0]) - 1, f"{name} and token_weights differ in length"
            return
    starts = offsets[:-1][np.diff(offsets) > 0]
    wrong.append(("a weight is negative or not finite", np.flatnonzero(~(np.isfinite(weights_T) & (weights_T >= 0)))))
    wrong.append(("the first token has a weight, and no context", starts[weights_T[starts] != 0]))
    if "labels" in lists and "input_ids" in lists:
        expected = np.where(weights_T != 0, lists["input_ids"][0], tables.IGNORED_LABEL)
        wrong.append(("labels disagree with token_weights", np.flatnonzero(lists["labels"][0] != expected)))
    for name, (values_T, _) in lists.items():
        if name.startswith(tables.LOGPROBS_PREFIX):
            model = manifest.models.get(name.removeprefix(tables.LOGPROBS_PREFIX))
            if model is not None and model.tokenizer_fingerprint is not None:
                unscored = _leading_nans(values_T, offsets)
            else:
                unscored = np.zeros(len(values_T), bool)
                unscored[starts] = True
            wrong.append((f"{name} is not finite", np.flatnonzero(~unscored & ~np.isfinite(values_T))))
    for what, indices in wrong:
        if len(indices):
            yield int(np.searchsorted(offsets, indices[0], side="right")) - 1, what
    if "text" in names and "token_bytes" in lists:
        yield from _check_bytes(table, lists["token_bytes"][0], offsets)


def _leading_nans(values_T: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """NaNs before the first number of their row: projected scores may lack their whole first span, and nothing else."""
    known = np.concatenate([[0], np.cumsum(~np.isnan(values_T))])
    known_in_row = known[1:] - np.repeat(known[offsets[:-1]], np.diff(offsets))
    leading: np.ndarray = known_in_row == 0
    return leading


_ALIGNED = ("input_ids", "token_bytes", "labels")


def _check_bytes(table: pa.Table, bytes_T: np.ndarray, offsets: np.ndarray) -> Iterator[tuple[int, str]]:
    text_bytes = pc.binary_length(table.column("text")).to_numpy()
    sums = np.concatenate([[0], np.cumsum(bytes_T, dtype=np.int64)])
    covered = sums[offsets[1:]] - sums[offsets[:-1]]
    faulty = np.flatnonzero(covered != text_bytes)
    if len(faulty):
        row = int(faulty[0])
        yield row, f"token_bytes sum to {covered[row]}, the text has {text_bytes[row]} bytes"
    if len(bytes_T) and bytes_T.min() < 0:
        yield int(np.searchsorted(offsets, int(bytes_T.argmin()), side="right")) - 1, "token_bytes are negative"
