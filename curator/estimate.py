"""What a job will take, before it runs: tokens, disk and time, each with the assumption behind it.

Tokens come from the planning sample. Time comes from shards that were already scored with the same model, if there are
any in the work folder; else, on request, from scoring a few documents now where that takes seconds; else from the
model's size: a forward pass takes 2 x parameters FLOPs per token.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from curator import storage
from curator.data import IntArray, ModelIdentity
from curator.job import Job
from curator.manifest import ScoreReceipt
from curator.plan import read_sample
from curator.stages.score import score_documents
from curator.tokens.tokenizer import EncodedDocument, load_tokenizer

# Bytes per token on disk, measured on the noisy English mix (benchmarks/storage_size.py).
TOKENS_BYTES = 3.5
SCORES_BYTES = 1.9
CURATED_BYTES = 5.5

# Sustained rates assumed where nothing was measured: one CPU thread, one GPU (both in bfloat16).
CPU_THREAD_FLOPS = 1.5e11
GPU_FLOPS = 2.0e14
_RECEIPTS_READ = 20

# What is measured at once: engines that start in seconds, over this many tokens at most.
_QUICK_ENGINES = ("bigram", "transformers")
_QUICK_PARAMETERS = 1_500_000_000
_MEASURED_TOKENS = 2048


@dataclass(frozen=True)
class ModelEstimate:
    """Time for one model: `seconds` over all workers, or None where even the model's size is unknown."""

    name: str
    tokens_per_s: float | None
    seconds: float | None
    basis: str


@dataclass(frozen=True)
class Estimate:
    """What a job will take."""

    shards: int
    tokens: int
    disk_bytes: int
    free_bytes: int | None
    workers: int
    models: tuple[ModelEstimate, ...]

    @property
    def seconds(self) -> float | None:
        """Scoring time of all models, one after the other."""
        times = [model.seconds for model in self.models]
        return None if None in times else sum(time for time in times if time is not None)


def usable_workers(job: Job) -> int:
    """How many workers a job will use on this machine, or as many as it asks for."""
    run = job.spec.run
    fit = max((os.cpu_count() or 1) // run.threads_per_worker, 1)
    workers = min(fit, run.max_workers or fit) if run.workers == "auto" else run.workers
    return min(workers, len(job.plan.shards) or 1)


def estimate_job(job: Job, workers: int, *, measure: bool = False) -> Estimate:
    """Estimate a job.

    Args:
        job: a planned one.
        workers: actors per stage.
        measure: score a few documents with models of which nothing is known yet; otherwise nothing is run.
    """
    tokens = job.plan.tokens
    models = tuple(_estimate_model(job, name, identity, workers, measure) for name, identity in job.plan.models.items())
    text_bytes = job.plan.text_bytes * 0.5  # text compresses to about half or better; it is stored twice
    per_token = TOKENS_BYTES + CURATED_BYTES + SCORES_BYTES * 2 * len(models)
    return Estimate(
        shards=len(job.plan.shards),
        tokens=tokens,
        disk_bytes=int(tokens * per_token + 2 * text_bytes),
        free_bytes=storage.free_bytes(job.root),
        workers=workers,
        models=models,
    )


def _estimate_model(job: Job, name: str, identity: ModelIdentity, workers: int, measure: bool) -> ModelEstimate:
    folder, config = job.scores(name), job.spec.models[name]
    measured = [folder.receipt(number, ScoreReceipt) for number in sorted(folder.published())[:_RECEIPTS_READ]]
    seconds = sum(receipt.seconds for receipt in measured)
    if seconds > 0:
        rate = sum(receipt.tokens for receipt in measured) / seconds
        basis = f"measured on {len(measured)} shards"
    elif measure and _is_quick(job, name, identity) and (found := _measure(job, name, identity)) is not None:
        scored, seconds = found
        rate = scored / seconds
        basis = f"measured just now on {scored:,} tokens, one worker"
    elif identity.parameters:
        flops = GPU_FLOPS * config.gpus if config.gpus else CPU_THREAD_FLOPS * job.spec.run.threads_per_worker
        rate = flops / (2 * identity.parameters)
        basis = f"rough: 2 x {identity.parameters / 1e6:,.0f}M FLOPs per token at {flops / 1e12:g} TFLOP/s a worker"
    else:
        return ModelEstimate(name, None, None, "nothing known of this engine's speed")
    return ModelEstimate(name, rate * workers, job.plan.tokens / (rate * workers), basis)


def _is_quick(job: Job, name: str, identity: ModelIdentity) -> bool:
    small = (identity.parameters or 0) <= _QUICK_PARAMETERS and not job.spec.models[name].gpus
    return small and identity.engine in _QUICK_ENGINES and identity.tokenizer_fingerprint is None


def _measure(job: Job, name: str, identity: ModelIdentity) -> tuple[int, float] | None:
    """Tokens and seconds of scoring a few documents of the planning sample, engine start and first call left out.

    None if no document of the sample can be scored.
    """
    spec = job.spec
    tokenizer = load_tokenizer(job.plan.tokenizer.source, job.plan.tokenizer.revision, spec.tokens)
    sample = read_sample(spec.corpus, list(job.plan.sources), tokenizer)
    encoded = tokenizer.encode([document.text for document in sample.documents[:_MEASURED_TOKENS]])
    ids = list(_first_tokens([e.input_ids for e in encoded if isinstance(e, EncodedDocument)]))
    if not ids:
        return None
    engine = spec.models[name].build(identity, spec.run.threads_per_worker)
    has_bos = job.plan.tokenizer.bos_id is not None
    started_s = 0.0
    for documents in ([ids[0][:64]], ids):  # the first call warms up
        started_s = time.perf_counter()
        score_documents(engine, documents, identity.context, identity.left_context, has_bos, lambda _: None)
    return sum(len(ids_T) for ids_T in ids), max(time.perf_counter() - started_s, 1e-6)


def _first_tokens(documents: list[IntArray]) -> Iterator[IntArray]:
    left = _MEASURED_TOKENS
    for ids_T in documents:
        if left > 1 and len(ids_T):
            yield ids_T[:left]
            left -= len(ids_T)
