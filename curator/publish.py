"""The last step of a run: card and report, then the manifest, which makes the dataset finished.

Everything here is derived from receipts and published shards, so a run killed while publishing just publishes again.
The manifest is created once and last; it holds no times, so equal content gives equal manifests.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

import curator
from curator import interrupts, storage
from curator.ahead import answers_at_once, read_ahead
from curator.data import BadRow
from curator.errors import OutputError
from curator.job import Calibration, Job
from curator.manifest import (
    CARD,
    MANIFEST,
    QUARANTINE,
    REPORT,
    CuratedReceipt,
    Manifest,
    Receipt,
    ScoreReceipt,
    ShardEntry,
    ShardFolder,
    TokenReceipt,
    Totals,
    read_manifest,
    shard_entry,
)
from curator.plan import read_plan
from curator.report.html import ReportData, render_report
from curator.report.samples import choose_samples
from curator.report.statistics import ShardStatistics, merge_all
from curator.spec import CurationSpec

_IDS_IN_MEMORY = 1 << 24
_MOST_PARTS = 256
_SAMPLED_SHARDS = 3


def publish_dataset(job: Job, calibration: Calibration) -> Manifest:
    """Write quarantine list, card, report and, last, the manifest; returns the manifest that stands."""
    reasons = _write_quarantine(job)
    summary = _summarise(job, [shard.number for shard in job.shards(calibration.lost)])
    manifest = _make_manifest(job, calibration, summary, reasons)
    storage.replace(job.root, CARD, dataset_card(manifest).encode())
    if manifest.content == "dataset":
        storage.replace(job.root, REPORT, make_report(job, manifest, summary).encode())
    interrupts.check()
    storage.write_once(job.root, MANIFEST, manifest.model_dump_json(indent=1).encode())
    job.clear_staging()
    return read_manifest(job.root)


def _write_quarantine(job: Job) -> Counter[str]:
    """One line per quarantined row, in plan order, streamed; counts by reason. No file where there are none."""
    reasons: Counter[str] = Counter()
    with storage.staged_file(job.root) as staged:
        with staged.open("w", encoding="utf-8", newline="\n") as lines:
            for bad in bad_rows(job):
                reasons[bad.reason] += 1
                lines.write(bad.model_dump_json() + "\n")
        if reasons:
            storage.replace_by(staged, storage.join(job.root, QUARANTINE))
    return reasons


def bad_rows(job: Job) -> Iterator[BadRow]:
    """All rows known to be bad so far, in plan order: found while planning, then while tokenising."""
    yield from job.plan.damage
    for receipt in job.tokens.read_receipts(sorted(job.tokens.receipts()), TokenReceipt):
        yield from receipt.quarantined


@dataclass(frozen=True)
class Summary:
    """What the receipts of all published shards say together; they are read once, one at a time.

    Attributes:
        entries: the shards, in order.
        statistics: of all of them, merged.
        rates: name, tokens, seconds and workers of each stage; seconds as if no worker ever waited.
    """

    entries: tuple[ShardEntry, ...]
    statistics: ShardStatistics
    rates: list[tuple[str, int, float, float]]


@dataclass
class _Rate:
    """Sums over the receipts of one stage."""

    stage: str
    tokens: int = 0
    seconds: float = 0.0
    workers: set[str] = field(default_factory=set)

    def add(self, receipt: Receipt) -> None:
        self.tokens, self.seconds = self.tokens + receipt.tokens, self.seconds + receipt.seconds
        self.workers.add(receipt.worker)

    def row(self) -> tuple[str, int, float, float]:
        workers = max(len(self.workers), 1)
        return self.stage, self.tokens, self.seconds / workers, float(workers)


def _summarise(job: Job, numbers: list[int]) -> Summary:
    stages: list[tuple[_Rate, ShardFolder, type[Receipt]]] = [(_Rate("tokenize"), job.tokens, TokenReceipt)]
    stages += [(_Rate(f"score {name}"), job.scores(name), ScoreReceipt) for name in job.plan.models]
    for rate, folder, kind in stages:
        present = folder.published()
        for receipt in folder.read_receipts((number for number in numbers if number in present), kind):
            rate.add(receipt)
    entries, select = list[ShardEntry](), _Rate("select")

    def statistics() -> Iterator[ShardStatistics]:
        for receipt in job.curated.read_receipts(numbers, CuratedReceipt):
            entries.append(shard_entry(job.curated, receipt))
            select.add(receipt)
            yield receipt.statistics

    merged = merge_all(statistics())
    return Summary(tuple(entries), merged, [rate.row() for rate, _, _ in stages] + [select.row()])


def _make_manifest(job: Job, calibration: Calibration, summary: Summary, reasons: Counter[str]) -> Manifest:
    plan = job.plan
    return Manifest(
        name=plan.spec["name"],
        content="weights" if job.weights_only else "dataset",
        curator_version=curator.__version__,
        spec=plan.spec,
        keys=plan.keys(),
        tokenizer=plan.tokenizer.model_dump(mode="json"),
        models=plan.models,
        cuts=calibration.cuts.by_scope,
        weight_scale=calibration.cuts.scale,
        shards=summary.entries,
        lost_shards=calibration.lost,
        totals=_totals(job, summary, reasons),
        quarantined=dict(sorted(reasons.items())),
    )


def _totals(job: Job, summary: Summary, reasons: Counter[str]) -> Totals:
    total, entries = summary.statistics.total, summary.entries
    rows = sum(entry.rows for entry in entries)
    return Totals(
        rows=rows,
        tokens=sum(entry.tokens for entry in entries),
        scored_tokens=total.scored,
        kept_tokens=sum(entry.kept_tokens for entry in entries),
        weight_sum=float(np.sum([entry.weight_sum for entry in entries])),
        rows_without_kept_tokens=total.without_kept,
        text_bytes=total.text_bytes,
        quarantined_rows=sum(reasons.values()),
        duplicate_ids=count_duplicate_ids(job.curated, [entry.number for entry in entries], rows),
    )


def count_duplicate_ids(folder: ShardFolder, numbers: list[int], rows: int, in_memory: int = _IDS_IN_MEMORY) -> int:
    """Rows whose doc_id an earlier row already had, by 64-bit hash.

    Every shard is read once. More ids than memory should hold are first dealt out, by hash, to files on the local disk
    (8 bytes a row), each of which then fits.
    """
    shards = read_ahead(lambda number: _hash_ids(folder, number), numbers, answers_at_once(folder.root))
    if rows <= in_memory:
        return _count_repeated(np.concatenate([np.empty(0, np.uint64), *shards]))
    parts = min(-(-rows // in_memory), _MOST_PARTS)
    with ExitStack() as stack:
        paths = [stack.enter_context(storage.staged_file(folder.root)) for _ in range(parts)]
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for hashes in shards:
            part_of = hashes % np.uint64(parts)
            ordered = hashes[np.argsort(part_of)]
            borders = np.cumsum(np.bincount(part_of.astype(np.int64), minlength=parts))[:-1]
            for file, chosen in zip(files, np.split(ordered, borders), strict=True):
                file.write(chosen.tobytes())
        for file in files:
            file.close()
        return sum(_count_repeated(np.fromfile(path, np.uint64)) for path in paths)


def _count_repeated(hashes: npt.NDArray[np.uint64]) -> int:
    hashes.sort()
    return int(np.count_nonzero(hashes[1:] == hashes[:-1]))


def _hash_ids(folder: ShardFolder, number: int) -> npt.NDArray[np.uint64]:
    with folder.open(number) as parquet:
        ids = parquet.read(columns=["doc_id"], use_threads=False).column("doc_id").combine_chunks()
    if len(ids) == 0:
        return np.empty(0, np.uint64)
    _, offsets, data = ids.buffers()  # a string for each would double the time, and this is what publishing costs
    ends, text = np.frombuffer(offsets, np.int32, len(ids) + 1, 4 * ids.offset).tolist(), memoryview(data)
    digests = b"".join(hashlib.blake2b(text[i:j], digest_size=8).digest() for i, j in pairwise(ends))
    return np.frombuffer(digests, np.uint64)


# ------------------------------------------------------------------------------------------------ for people


def dataset_card(manifest: Manifest) -> str:
    """README.md with the front matter that dataset hubs read."""
    totals = manifest.totals
    folder = "curated" if manifest.content == "dataset" else "weights"
    front = {
        "pretty_name": manifest.name,
        "task_categories": ["text-generation"],
        "tags": ["token-weights", "data-curation", "selective-language-modeling"],
        "size_categories": [_size_category(totals.rows)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}]}],
    }
    environment = Environment(loader=PackageLoader("curator", "outputs"), undefined=StrictUndefined, autoescape=False)  # nosec B701  # Markdown, no HTML
    policy = yaml.safe_dump(manifest.spec["policy"], sort_keys=False).strip()
    body = environment.get_template("card.md").render(manifest=manifest, totals=totals, folder=folder, policy=policy)
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{body}"


def _size_category(rows: int) -> str:
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B"]
    return names[int(np.searchsorted([10**power for power in range(3, 10)], rows, side="right"))]


def make_report(job: Job, manifest: Manifest, summary: Summary) -> str:
    """The HTML report of a finished dataset, from its receipts and a few sample documents."""
    numbers = [entry.number for entry in manifest.shards]
    sampled = sorted({numbers[i * len(numbers) // _SAMPLED_SHARDS] for i in range(min(len(numbers), _SAMPLED_SHARDS))})
    data = ReportData(
        name=manifest.name,
        statistics=summary.statistics,
        totals=manifest.totals.model_dump() | {"lost_shards": len(manifest.lost_shards)},
        cuts=manifest.cuts,
        policy=manifest.spec["policy"],
        models={name: model.model_dump() for name, model in manifest.models.items()},
        quarantined=manifest.quarantined,
        samples=choose_samples(
            [_first_group(job.curated, number) for number in sampled], job.spec.policy, manifest.cuts
        ),
        stages=summary.rates,
        spec_yaml=yaml.safe_dump(manifest.spec, sort_keys=False, allow_unicode=True),
    )
    return render_report(data)


def rewrite_report(directory: str) -> str:
    """Write `report.html` of a finished dataset again; returns where it is."""
    manifest, plan = read_manifest(directory), read_plan(directory)
    if plan is None or manifest.content != "dataset":
        raise OutputError(f"{directory!r} is not the folder of a curated dataset with text; name one that `run` made")
    job = Job(CurationSpec.model_validate(plan.spec), plan, directory=directory)
    summary = _summarise(job, [entry.number for entry in manifest.shards])
    storage.replace(directory, REPORT, make_report(job, manifest, summary).encode())
    return storage.join(directory, REPORT)


def _first_group(folder: ShardFolder, number: int) -> pa.Table:
    with folder.open(number) as parquet:
        return parquet.read_row_group(0) if parquet.metadata.num_row_groups else parquet.read()
