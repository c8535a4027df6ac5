"""Writing a curated dataset in the form of a trainer: `curator export DIR --for NAME --output OUT`.

Reads the published rows in a fixed order, leaves out and counts those that keep no token, packs or cuts them to a
sequence length, and hands them to a form (see `curator.exports`). What was done is told in OUT/export.json.

Invariant: every kept token of the dataset is in the export exactly once, predicted from the token before it and with
its weight; OUT appears complete or not at all.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import Field, TypeAdapter

import curator
from curator import storage, tables
from curator.errors import OutputError, SpecError, TokenizerError
from curator.exports import ExportConfig
from curator.exports.form import Facts, Form, Item
from curator.exports.target import check_target, staged
from curator.manifest import MANIFEST, Manifest, ShardEntry, read_manifest
from curator.places import explained
from curator.spec import validate
from curator.stored import StoredRecord
from curator.tokens.tokenizer import TokensConfig, load_tokenizer
from curator.training.epochs import Row, open_shard, read_epoch, read_rows
from curator.training.packing import pack

RECORD, GUIDE = "export.json", "README.md"
_LONGEST = 1 << 24
"""Tokens of the longest sequence: far beyond any context, and its columns still fit into memory."""

_NamedRow = tuple[str, Row]


class ExportRecord(StoredRecord):
    """What an export holds and what it was made from: `export.json`."""

    kind: str
    curator_version: str
    dataset: str
    manifest_sha256: str
    tokenizer: str
    vocab_size: int = Field(description="every token id is below it")
    eos_id: int | None
    sequence_length: int | None
    seed: int | None = Field(description="of the order of the rows; null = as in the files")
    rows: int = Field(description="rows written")
    skipped_rows: int = Field(description="rows of the dataset without a kept token, not written")
    sequences: int = Field(description="items given to the form: documents, pieces of them, or packed sequences")
    tokens: int = Field(description="tokens of those items, padding not counted; each cut repeats one")
    kept_tokens: int = Field(description="tokens with a weight above 0")
    weight_sum: float


@dataclass
class _Tally:
    rows: int = 0
    skipped_rows: int = 0
    sequences: int = 0
    tokens: int = 0
    kept_tokens: int = 0
    weight_sum: float = 0.0


def export_dataset(
    directory: str | os.PathLike[str],
    form: Form | str,
    output: str | os.PathLike[str],
    *,
    sequence_length: int | None = None,
    seed: int | None = None,
) -> ExportRecord:
    """Write a published dataset in the form that a trainer reads.

    Args:
        directory: folder or URI of the dataset.
        form: a form, or the name of one, such as `axolotl`; hyphens may stand for underscores.
        output: local folder, absent or empty.
        sequence_length: tokens per packed sequence. A form that does not pack cuts longer documents instead; either
            way a piece of a document begins with the last token of the piece before, as context only.
        seed: of the order of the rows; None keeps the order of the files.

    Returns:
        What was written, as in export.json.

    Raises:
        SpecError: no such form, an argument out of range or needed by the form, or weights that the trainer cannot use.
        OutputError: `output` is not free or lies in the dataset, or `directory` is no dataset or has no kept token.
    """
    if isinstance(form, str):
        form = _find_form(form)
    root = storage.absolute(os.fspath(directory))
    target = check_target(output, root)
    _check_arguments(form, sequence_length, seed)
    manifest = read_manifest(root)
    if manifest.content != "dataset":
        raise OutputError(f"{root!r} holds {manifest.content} without tokens; export the dataset it was selected from")
    shards = sorted(manifest.shards, key=lambda shard: shard.number)
    facts = _find_facts(root, manifest, shards, sequence_length)
    tally = _Tally()
    rows = _kept_rows(_read(root, shards, seed), form, facts, tally)
    with staged(target) as staging, explained("write", str(target)):
        form.write(_count_items(_shape(rows, form, sequence_length), root, tally), staging, facts)
        record = ExportRecord(
            kind=form.kind, curator_version=curator.__version__, dataset=manifest.name,
            manifest_sha256=storage.sha256(storage.join(root, MANIFEST))[0], tokenizer=facts.tokenizer,
            vocab_size=facts.vocab_size, eos_id=facts.eos_id, sequence_length=sequence_length, seed=seed,
            **vars(tally),
        )  # fmt: skip
        (staging / GUIDE).write_text(_describe(record) + "\n" + form.guide, encoding="utf-8")
        (staging / RECORD).write_text(json.dumps(record.model_dump(mode="json"), indent=1), encoding="utf-8")
    return record


# ---------------------------------------------------------------------------------------------- what is asked for


def _find_form(name: str) -> Form:
    form: Form = validate(TypeAdapter(ExportConfig), {"kind": name.replace("-", "_")}, "--for")
    return form


def _check_arguments(form: Form, sequence_length: int | None, seed: int | None) -> None:
    if sequence_length is None:
        if form.packing == "always":
            raise SpecError(
                f"sequence_length: the form '{form.kind}' is packed; give its number of tokens per sequence"
            )
    elif not isinstance(sequence_length, int) or not 2 <= sequence_length <= _LONGEST:
        raise SpecError(
            f"sequence_length: {sequence_length!r} is not in 2..{_LONGEST}; two tokens are needed to learn one"
        )
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise SpecError(f"seed: {seed!r}; use a whole number of 0 or more")


def _find_facts(root: str, manifest: Manifest, shards: list[ShardEntry], sequence_length: int | None) -> Facts:
    """From the tokenizer where it can still be had, else from the ids of the dataset."""
    source, revision = manifest.tokenizer["source"], manifest.tokenizer["revision"]
    eos_id = manifest.tokenizer["eos_id"]
    try:
        tokenizer = load_tokenizer(source, revision, TokensConfig())
        if tokenizer.fingerprint != manifest.tokenizer["fingerprint"]:
            raise OutputError(
                f"the tokenizer {source!r} is not the one that made this dataset; it has changed since: restore it"
            )
        vocab_size, eos_id = tokenizer.vocab_size, tokenizer.eos_id if eos_id is None else eos_id
    except TokenizerError:  # it may be elsewhere by now; the ids are all that most forms need
        vocab_size = 1 + max(
            (int(row["input_ids"].max(initial=-1)) for _, row in _read(root, shards, None)), default=-1
        )
    return Facts(vocab_size=vocab_size, eos_id=eos_id, sequence_length=sequence_length, tokenizer=source)


# ---------------------------------------------------------------------------------------------- rows


def _read(root: str, shards: list[ShardEntry], seed: int | None) -> Iterator[_NamedRow]:
    if seed is not None:
        yield from read_epoch(root, shards, seed, 0, 0, sum(shard.rows for shard in shards))
        return
    for shard in shards:
        yield from _read_in_order(root, shard)


def _read_in_order(root: str, shard: ShardEntry) -> Iterator[_NamedRow]:
    """A shard's rows as they lie, a row group at a time."""
    with open_shard(root, shard) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            yield from read_rows(parquet, [group], np.arange(parquet.metadata.row_group(group).num_rows), shard)


def _kept_rows(rows: Iterable[_NamedRow], form: Form, facts: Facts, tally: _Tally) -> Iterator[Row]:
    """The rows with a kept token, checked, in the types of an `Item`."""
    for doc_id, row in rows:
        _check_weights(doc_id, row)
        if not row["token_weights"][1:].any():
            tally.skipped_rows += 1
            continue
        if row["input_ids"].max() >= facts.vocab_size:
            raise OutputError(
                f"row {doc_id!r} holds token {row['input_ids'].max()}, the tokenizer {facts.tokenizer!r} has "
                f"{facts.vocab_size}; it has changed since: restore it"
            )
        if not form.soft:
            _refuse_soft(doc_id, row, form)
        row["labels"][0], row["token_weights"][0] = tables.IGNORED_LABEL, 0
        tally.rows += 1
        yield {**row, "input_ids": row["input_ids"].astype(np.int32)}


def _check_weights(doc_id: str, row: Row) -> None:
    wrong = np.flatnonzero(~(np.isfinite(row["token_weights"]) & (row["token_weights"] >= 0)))
    if len(wrong):
        raise OutputError(
            f"row {doc_id!r} has weight {row['token_weights'][wrong[0]]} at token {wrong[0]}; weights are finite and "
            "at least 0: find out with `curator verify`"
        )


def _refuse_soft(doc_id: str, row: Row, form: Form) -> None:
    weights_T = row["token_weights"]
    soft = np.flatnonzero((weights_T != 0) & (weights_T != 1))
    if len(soft):
        raise SpecError(
            f"policy.soft: row {doc_id!r} has weight {weights_T[soft[0]]:.6g} at token {soft[0]}, and '{form.kind}' "
            "takes 0 and 1 alone; select with soft: null (`curator select DIR --policy FILE`), or export for "
            f"{', '.join(_soft_kinds())}"
        )


def _soft_kinds() -> list[str]:
    schema = TypeAdapter(ExportConfig).json_schema()
    forms = (_find_form(kind) for kind in schema["discriminator"]["mapping"])
    return [form.kind for form in forms if form.soft]


def _shape(rows: Iterable[Row], form: Form, sequence_length: int | None) -> Iterator[Item]:
    """Rows as they are, packed, or cut to a length."""
    if sequence_length is None:
        yield from rows
    elif form.packing == "never":
        for row in rows:
            yield from _cut(row, sequence_length)
    else:
        for _, sequence in pack(enumerate(rows), sequence_length):
            yield sequence


def _cut(row: Row, longest: int) -> Iterator[Item]:
    """A document in pieces of at most `longest` tokens, without those that keep no token."""
    if len(row["input_ids"]) <= longest:
        yield row
        return
    for _, sequence in pack([(0, row)], longest):
        length = int((sequence["document_ids"] >= 0).sum())
        piece = {name: sequence[name][:length] for name in row}
        if piece["token_weights"].any():
            yield piece


def _count_items(items: Iterable[Item], root: str, tally: _Tally) -> Iterator[Item]:
    for item in items:
        weights_T = item["token_weights"]
        tally.sequences += 1
        tally.tokens += int((item["document_ids"] >= 0).sum()) if "document_ids" in item else len(weights_T)
        tally.kept_tokens += int(np.count_nonzero(weights_T))
        tally.weight_sum += float(weights_T.sum(dtype=np.float64))
        yield item
    if not tally.sequences:
        raise OutputError(f"{root!r} has no kept token; there is nothing to export")


# ---------------------------------------------------------------------------------------------- the output


def _describe(record: ExportRecord) -> str:
    packed = f", sequences of at most {record.sequence_length:,} tokens" if record.sequence_length else ""
    return (
        f"# {record.dataset} for {record.kind}\n\n"
        f"{record.rows:,} documents{packed}: {record.tokens:,} tokens, of which {record.kept_tokens:,} are learned. "
        f"{record.skipped_rows:,} documents without a kept token were left out. Tokenizer: `{record.tokenizer}`. "
        f"Written by token-curator {record.curator_version}; the figures are in {RECORD}.\n"
    )
