"""Tokenise the corpus: source files in, token shards out, bad rows recorded in the receipts.

A task is one shard, or all shards of a file that can only be streamed: those are filled in one pass over the file, each
published as soon as its last row is in. Memory is bounded by a row group, whatever the size of the shard or the corpus.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from curator import storage, tables
from curator.corpora.rows import fit_columns
from curator.data import BadRow, Corpus, Document, Extent, SourceFile
from curator.errors import ClusterError, CorpusError
from curator.manifest import ShardFolder, TokenReceipt, publish_shard, start_receipt
from curator.plan import Plan, ShardRef
from curator.spec import CurationSpec
from curator.tokens.tokenizer import EncodedDocument, Tokenizer, load_tokenizer
from curator.worker import worker_name

_BATCH_BYTES = 1 << 18
_MOST_BAD_ROWS = 250_000  # some 150 MB; so many in 4 million tokens mean that the corpus is misread
"""Each is kept with its place; a packed megabyte of line ends would make a thousand times as many."""


@dataclass(frozen=True)
class TokenizeStage:
    """Everything a worker needs to tokenise any shard of the plan."""

    folder: ShardFolder
    spec: CurationSpec
    plan: Plan

    def open(self) -> None:
        """Load the tokenizer and see whether the corpus can be read from here."""
        identity = self.plan.tokenizer
        tokenizer = load_tokenizer(identity.source, identity.revision, self.spec.tokens)
        if tokenizer.fingerprint != identity.fingerprint:
            raise ClusterError(f"tokenizer {identity.source!r} differs between the driver and {worker_name()}")
        for source in self.plan.sources[:1]:
            path = storage.local_path(source.uri)
            if path is not None and self.spec.corpus.kind != "hub" and not path.exists():
                raise ClusterError(
                    f"worker {worker_name()} cannot read {source.uri!r}; put the corpus on shared storage"
                )
        object.__setattr__(self, "_tokenizer", tokenizer)

    def load(self, task: tuple[ShardRef, ...]) -> None:
        """Nothing to load ahead: rows are streamed."""

    def run(self, task: tuple[ShardRef, ...], inputs: None, on_tokens: Callable[[int], None]) -> list[TokenReceipt]:
        """Tokenise the task's shards; returns their receipts, in order."""
        tokenizer: Tokenizer = self.__dict__["_tokenizer"]
        self._check_sources(task)
        rows = _read_rows(self.spec.corpus, self.plan.sources, task)
        receipts = []
        for shard, shard_rows in _by_shard(rows, task):
            with _ShardWriter(self.folder, shard, self.plan.carried_schema(), tokenizer, on_tokens) as writer:
                for row in shard_rows:
                    writer.add(row)
                    if writer.bad_rows and self.spec.on_bad_row == "fail":
                        raise CorpusError(describe_bad_row(writer.bad_rows[-1]))
                receipts.append(writer.publish())
        return receipts

    def _check_sources(self, task: tuple[ShardRef, ...]) -> None:
        """A file that changed while the run goes on would give other rows than planned, or none, without a word."""
        for index in {extent.source for shard in task for extent in shard.extents}:
            source = self.plan.sources[index]
            if self.spec.corpus.kind != "hub" and storage.fingerprint(source.uri) != source.fingerprint:
                problem = f"corpus: {source.path!r} changed since the plan was frozen"
                raise CorpusError(f"{problem}; restore it, or choose another output.uri")


def _read_rows(
    corpus: Corpus, sources: tuple[SourceFile, ...], task: tuple[ShardRef, ...]
) -> Iterator[tuple[ShardRef, Document | BadRow]]:
    """All rows of the task's shards in order, one reader pass per source file."""
    parts: list[tuple[ShardRef, Extent]] = [(shard, extent) for shard in task for extent in shard.extents]
    for index, group in groupby(parts, key=lambda part: part[1].source):
        members = list(group)
        for i, row in corpus.read(sources[index], [extent for _, extent in members]):
            yield members[i][0], row


def _by_shard(
    rows: Iterator[tuple[ShardRef, Document | BadRow]], task: tuple[ShardRef, ...]
) -> Iterator[tuple[ShardRef, Iterator[Document | BadRow]]]:
    """Group consecutive rows by shard; a shard whose rows all vanished still comes, empty."""
    groups = groupby(rows, key=lambda pair: pair[0])
    current = next(groups, None)
    for shard in task:
        if current is not None and current[0] == shard:
            yield shard, (row for _, row in current[1])
            current = next(groups, None)
        else:
            yield shard, iter(())


def describe_bad_row(bad: BadRow) -> str:
    """Where a bad row is and what to do about it, for `on_bad_row: fail`."""
    place = f"row {bad.row}" if bad.row is not None else f"offset {bad.offset}"
    return f"{bad.file!r}, {place}: {bad.reason} ({bad.detail}); mend it, or set on_bad_row: quarantine"


class _ShardWriter:
    """Fills one token shard: rows are batched for the tokenizer, tokens for row groups."""

    def __init__(
        self,
        folder: ShardFolder,
        shard: ShardRef,
        carried: pa.Schema,
        tokenizer: Tokenizer,
        on_tokens: Callable[[int], None],
    ) -> None:
        self.folder, self.shard, self.carried, self.tokenizer = folder, shard, carried, tokenizer
        self.on_tokens = on_tokens
        self.measure = start_receipt()
        self.bad_rows: list[BadRow] = []
        self.rows = self.tokens = self.text_bytes = 0
        self._batch: list[Document] = []
        self._batch_bytes = 0
        self._encoded: list[tuple[Document, EncodedDocument]] = []
        self._encoded_tokens = 0

    def __enter__(self) -> "_ShardWriter":
        with ExitStack() as stack:  # opening writes too, and may fail on a full disk
            self._staged = stack.enter_context(storage.staged_file(self.folder.root))
            self._schema = tables.token_schema(self.carried)
            self._writer = stack.enter_context(tables.open_writer(self._staged, self._schema))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, row: Document | BadRow) -> None:
        fitted = fit_columns(row, self.carried) if isinstance(row, Document) else row
        if isinstance(fitted, BadRow):
            self.bad_rows.append(fitted)
            if len(self.bad_rows) > _MOST_BAD_ROWS:
                raise CorpusError(
                    f"corpus: {fitted.file!r} has more than {_MOST_BAD_ROWS:,} bad rows in one shard, the last in row "
                    f"{fitted.row} ({fitted.reason}); check kind, or remove this file"
                )
            return
        self._batch.append(fitted)
        self._batch_bytes += len(fitted.text)
        if self._batch_bytes >= _BATCH_BYTES:
            self._encode()

    def _encode(self) -> None:
        for document, encoded in zip(self._batch, self.tokenizer.encode([d.text for d in self._batch]), strict=True):
            if isinstance(encoded, str):
                self.bad_rows.append(
                    BadRow(file=document.file, row=document.row, reason="tokenizer_changes_text", detail=encoded)
                )
                continue
            self._encoded.append((document, encoded))
            self._encoded_tokens += len(encoded.input_ids)
            self.on_tokens(len(encoded.input_ids))
            if self._encoded_tokens >= tables.ROW_GROUP_TOKENS:
                self._write_group()
        self._batch, self._batch_bytes = [], 0

    def _write_group(self) -> None:
        documents = [document for document, _ in self._encoded]
        offsets = np.cumsum([0, *(len(encoded.input_ids) for _, encoded in self._encoded)])
        arrays = {
            "doc_id": pa.array([d.doc_id for d in documents], pa.string()),
            "source": pa.array([d.source for d in documents], pa.string()),
            "text": pa.array([d.text for d in documents], pa.large_string()),
            "input_ids": tables.list_array(np.concatenate([e.input_ids for _, e in self._encoded]), offsets),
            "token_bytes": tables.list_array(np.concatenate([e.token_bytes for _, e in self._encoded]), offsets),
        }
        for column in self.carried:
            arrays[column.name] = pa.array([d.columns.get(column.name) for d in documents], column.type)
        self._writer.write_table(pa.table([arrays[name] for name in self._schema.names], schema=self._schema))
        self.rows += len(documents)
        self.tokens += int(offsets[-1])
        self.text_bytes += int(sum(int(e.token_bytes.sum()) for _, e in self._encoded))
        self._encoded, self._encoded_tokens = [], 0

    def publish(self) -> TokenReceipt:
        self._encode()
        if self._encoded:
            self._write_group()
        self._writer.close()
        receipt = TokenReceipt(
            number=self.shard.number,
            rows=self.rows,
            tokens=self.tokens,
            **self.measure(),
            text_bytes=self.text_bytes,
            quarantined=tuple(sorted(self.bad_rows, key=lambda bad: (bad.file, bad.row is None, bad.row or 0))),
        )
        return publish_shard(self.folder, self._staged, receipt)
