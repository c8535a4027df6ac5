"""The last step of a run: card and report, then the manifest, which makes the dataset finished.

Everything here is derived from receipts and published shards, so a run killed while publishing just publishes again. The
manifest is created once and last; it holds no times, so equal content gives equal manifests.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

import curator
from curator import storage, tables
from curator.data import BadRow
from curator.job import Calibration, Job
from curator.manifest import (
    MANIFEST,
    CuratedReceipt,
    Manifest,
    ScoreReceipt,
    ShardEntry,
    ShardFolder,
    TokenReceipt,
    Totals,
    read_manifest,
)
from curator.report.html import ReportData, render_report
from curator.report.samples import choose_samples
from curator.report.statistics import ShardStatistics, merge_all
from curator.spec import digest

QUARANTINE = "quarantine.jsonl"
_IDS_PER_PASS = 50_000_000
_SAMPLED_SHARDS = 3


def publish_dataset(job: Job, calibration: Calibration) -> Manifest:
    """Write quarantine list, card, report and, last, the manifest; returns the manifest that stands."""
    numbers = [shard.number for shard in job.plan.shards if shard.number not in calibration.lost]
    receipts = [job.curated.receipt(number, CuratedReceipt) for number in numbers]
    reasons = _write_quarantine(job)
    manifest = _make_manifest(job, calibration, receipts, reasons)
    storage.replace(job.root, "README.md", dataset_card(manifest).encode())
    if manifest.content == "dataset":
        storage.replace(job.root, "report.html", make_report(job, manifest).encode())
    storage.clear_staging(job.root)
    storage.write_once(job.root, MANIFEST, manifest.model_dump_json(indent=1).encode())
    return read_manifest(job.root)


def _write_quarantine(job: Job) -> Counter[str]:
    """One line per quarantined row, in plan order; counts by reason. Shards are streamed, the lines are small."""
    reasons: Counter[str] = Counter()
    lines = []
    for bad in _bad_rows(job):
        reasons[bad.reason] += 1
        lines.append(bad.model_dump_json())
    if lines:
        storage.replace(job.root, QUARANTINE, ("\n".join(lines) + "\n").encode())
    return reasons


def _bad_rows(job: Job) -> Iterator[BadRow]:
    yield from job.plan.damage
    for number in sorted(job.tokens.published()):
        yield from job.tokens.receipt(number, TokenReceipt).quarantined


def _make_manifest(
    job: Job, calibration: Calibration, receipts: list[CuratedReceipt], reasons: Counter[str]
) -> Manifest:
    statistics = merge_all([receipt.statistics for receipt in receipts])
    plan = job.plan
    keys = {
        "plan": plan.plan_key,
        "tokens": plan.tokens_key,
        "scores": {name: plan.scores_key(name) for name in plan.models},
        "select": digest(plan.spec["policy"]),
    }
    return Manifest(
        name=plan.spec["name"],
        content="weights" if job.weights_only else "dataset",
        curator_version=curator.__version__,
        spec=plan.spec,
        keys=keys,
        tokenizer=plan.tokenizer.model_dump(mode="json"),
        models=plan.models,
        cuts=calibration.cuts,
        weight_scale=calibration.scale,
        shards=tuple(_entry(job.curated, receipt) for receipt in receipts),
        lost_shards=calibration.lost,
        totals=_totals(job, receipts, statistics, reasons),
        quarantined=dict(sorted(reasons.items())),
    )


def _entry(folder: ShardFolder, receipt: CuratedReceipt) -> ShardEntry:
    fields = receipt.model_dump(include=set(ShardEntry.model_fields) - {"file"})
    return ShardEntry(file=folder.file(receipt.number), **fields)


def _totals(job: Job, receipts: list[CuratedReceipt], statistics: ShardStatistics, reasons: Counter[str]) -> Totals:
    return Totals(
        rows=sum(receipt.rows for receipt in receipts),
        tokens=sum(receipt.tokens for receipt in receipts),
        scored_tokens=statistics.total.scored,
        kept_tokens=sum(receipt.kept_tokens for receipt in receipts),
        weight_sum=float(np.sum([receipt.weight_sum for receipt in receipts])),
        rows_without_kept_tokens=statistics.total.without_kept,
        text_bytes=statistics.total.text_bytes,
        quarantined_rows=sum(reasons.values()),
        duplicate_ids=count_duplicate_ids(job.curated, [receipt.number for receipt in receipts]),
    )


def count_duplicate_ids(folder: ShardFolder, numbers: list[int], ids_per_pass: int = _IDS_PER_PASS) -> int:
    """Rows whose doc_id an earlier row already had, by 64-bit hash; several passes bound the memory."""
    rows = sum(folder.receipt(number, CuratedReceipt).rows for number in numbers)
    passes = max(1, -(-rows // ids_per_pass))
    duplicates = 0
    for part in range(passes):
        hashes = [_hash_ids(folder.uri(number), part, passes) for number in numbers]
        together = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        duplicates += len(together) - len(np.unique(together))
    return duplicates


def _hash_ids(uri: str, part: int, passes: int) -> np.ndarray:
    with storage.open_read(uri) as file:
        ids = tables.open_parquet(file).read(columns=["doc_id"]).column("doc_id").to_pylist()
    digests = b"".join(hashlib.blake2b(doc_id.encode(), digest_size=8).digest() for doc_id in ids)
    hashes = np.frombuffer(digests, np.uint64)
    return hashes[hashes % np.uint64(passes) == part]


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
    environment = Environment(loader=PackageLoader("curator", "outputs"), undefined=StrictUndefined, autoescape=False)
    policy = yaml.safe_dump(manifest.spec["policy"], sort_keys=False).strip()
    body = environment.get_template("card.md").render(manifest=manifest, totals=totals, folder=folder, policy=policy)
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{body}"


def _size_category(rows: int) -> str:
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B"]
    return names[int(np.searchsorted([10**power for power in range(3, 10)], rows, side="right"))]


def make_report(job: Job, manifest: Manifest) -> str:
    """The HTML report of a finished dataset, from its receipts and a few sample documents."""
    numbers = [entry.number for entry in manifest.shards]
    receipts = [job.curated.receipt(number, CuratedReceipt) for number in numbers]
    chosen = [numbers[i * len(numbers) // _SAMPLED_SHARDS] for i in range(min(len(numbers), _SAMPLED_SHARDS))]
    data = ReportData(
        name=manifest.name,
        totals=manifest.totals.model_dump(),
        statistics=merge_all([receipt.statistics for receipt in receipts]),
        cuts=manifest.cuts,
        policy=manifest.spec["policy"],
        models={name: model.model_dump() for name, model in manifest.models.items()},
        quarantined=manifest.quarantined,
        samples=choose_samples([_first_group(job.curated.uri(number)) for number in sorted(set(chosen))]),
        stages=_stage_rates(job),
        spec_yaml=yaml.safe_dump(json.loads(json.dumps(manifest.spec)), sort_keys=False),
    )
    return render_report(data)
