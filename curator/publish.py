"""The last step of a run: card and report, then the manifest, which makes the dataset finished.

Everything here is derived from receipts and published shards, so a run killed while publishing just publishes again.
The manifest is created once and last; it holds no times, so equal content gives equal manifests.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

import curator
from curator import interrupts, storage, tables
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

_IDS_PER_PASS = 50_000_000
_SAMPLED_SHARDS = 3


def publish_dataset(job: Job, calibration: Calibration) -> Manifest:
    """Write quarantine list, card, report and, last, the manifest; returns the manifest that stands."""
    numbers = [shard.number for shard in job.shards(calibration.lost)]
    receipts = [job.curated.receipt(number, CuratedReceipt) for number in numbers]
    reasons = _write_quarantine(job)
    manifest = _make_manifest(job, calibration, receipts, reasons)
    storage.replace(job.root, CARD, dataset_card(manifest).encode())
    if manifest.content == "dataset":
        storage.replace(job.root, REPORT, make_report(job, manifest).encode())
    interrupts.check()
    storage.write_once(job.root, MANIFEST, manifest.model_dump_json(indent=1).encode())
    job.clear_staging()
    return read_manifest(job.root)


def _write_quarantine(job: Job) -> Counter[str]:
    """One line per quarantined row, in plan order; counts by reason. Shards are streamed, the lines are small."""
    reasons: Counter[str] = Counter()
    lines = []
    for bad in bad_rows(job):
        reasons[bad.reason] += 1
        lines.append(bad.model_dump_json())
    if lines:
        storage.replace(job.root, QUARANTINE, ("\n".join(lines) + "\n").encode())
    return reasons


def bad_rows(job: Job) -> Iterator[BadRow]:
    """All rows known to be bad so far, in plan order: found while planning, then while tokenising."""
    yield from job.plan.damage
    for number in sorted(job.tokens.receipts()):
        yield from job.tokens.receipt(number, TokenReceipt).quarantined


def _make_manifest(
    job: Job, calibration: Calibration, receipts: list[CuratedReceipt], reasons: Counter[str]
) -> Manifest:
    statistics = merge_all([receipt.statistics for receipt in receipts])
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
        shards=tuple(shard_entry(job.curated, receipt) for receipt in receipts),
        lost_shards=calibration.lost,
        totals=_totals(job, receipts, statistics, reasons),
        quarantined=dict(sorted(reasons.items())),
    )


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


def _hash_ids(uri: str, part: int, passes: int) -> npt.NDArray[np.uint64]:
    with storage.open_read(uri) as file:
        ids = tables.open_parquet(file).read(columns=["doc_id"]).column("doc_id").to_pylist()
    digests = b"".join(hashlib.blake2b(doc_id.encode(), digest_size=8).digest() for doc_id in ids)
    hashes = np.frombuffer(digests, np.uint64)
    chosen: npt.NDArray[np.uint64] = hashes[hashes % np.uint64(passes) == part]
    return chosen


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
    sampled = sorted({numbers[i * len(numbers) // _SAMPLED_SHARDS] for i in range(min(len(numbers), _SAMPLED_SHARDS))})
    data = ReportData(
        name=manifest.name,
        statistics=merge_all([receipt.statistics for receipt in receipts]),
        totals=manifest.totals.model_dump() | {"lost_shards": len(manifest.lost_shards)},
        cuts=manifest.cuts,
        policy=manifest.spec["policy"],
        models={name: model.model_dump() for name, model in manifest.models.items()},
        quarantined=manifest.quarantined,
        samples=choose_samples(
            [_first_group(job.curated.uri(number)) for number in sampled], job.spec.policy, manifest.cuts
        ),
        stages=_stage_rates(job, numbers),
        spec_yaml=yaml.safe_dump(manifest.spec, sort_keys=False, allow_unicode=True),
    )
    return render_report(data)


def rewrite_report(directory: str) -> str:
    """Write `report.html` of a finished dataset again; returns where it is."""
    manifest, plan = read_manifest(directory), read_plan(directory)
    if plan is None or manifest.content != "dataset":
        raise OutputError(f"{directory!r} is not the folder of a curated dataset with text; name one that `run` made")
    job = Job(CurationSpec.model_validate(plan.spec), plan, directory=directory)
    storage.replace(directory, REPORT, make_report(job, manifest).encode())
    return storage.join(directory, REPORT)


def _first_group(uri: str) -> pa.Table:
    with storage.open_read(uri) as file:
        parquet = tables.open_parquet(file)
        return parquet.read_row_group(0) if parquet.metadata.num_row_groups else parquet.read()


def _stage_rates(job: Job, numbers: list[int]) -> list[tuple[str, int, float, float]]:
    """Tokens, seconds and workers of each stage, from the receipts; seconds as if no worker ever waited."""
    stages: list[tuple[str, ShardFolder, type[Receipt]]] = [("tokenize", job.tokens, TokenReceipt)]
    stages += [(f"score {name}", job.scores(name), ScoreReceipt) for name in job.plan.models]
    stages.append(("select", job.curated, CuratedReceipt))
    rates = []
    for name, folder, kind in stages:
        present = folder.published()
        receipts = [folder.receipt(number, kind) for number in numbers if number in present]
        workers = len({receipt.worker for receipt in receipts}) or 1
        seconds = sum(receipt.seconds for receipt in receipts) / workers
        rates.append((name, sum(receipt.tokens for receipt in receipts), seconds, float(workers)))
    return rates
