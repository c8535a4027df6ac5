"""What a job will take, before it runs: tokens, disk and time, each with the assumption behind it.

Tokens come from the planning sample. Time comes from shards that were already scored with the same model, if there are
any in the work folder, else from the model's size: a forward pass takes 2 x parameters FLOPs per token.
"""

from dataclasses import dataclass

from curator import storage
from curator.data import ModelIdentity
from curator.job import Job
from curator.manifest import ScoreReceipt

# Bytes per token on disk, measured on the noisy English mix (benchmarks/storage_size.py).
TOKENS_BYTES = 3.5
SCORES_BYTES = 1.9
CURATED_BYTES = 5.5

# Sustained rates assumed where nothing was measured: one CPU thread, one GPU (both in bfloat16).
CPU_THREAD_FLOPS = 1.5e11
GPU_FLOPS = 2.0e14
_RECEIPTS_READ = 20


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


def estimate_job(job: Job, workers: int) -> Estimate:
    """Estimate a job for a number of workers; reads receipts, runs nothing."""
    tokens = job.plan.tokens
    models = tuple(_estimate_model(job, name, identity, workers) for name, identity in job.plan.models.items())
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


def _estimate_model(job: Job, name: str, identity: ModelIdentity, workers: int) -> ModelEstimate:
    folder, config = job.scores(name), job.spec.models[name]
    measured = [folder.receipt(number, ScoreReceipt) for number in sorted(folder.published())[:_RECEIPTS_READ]]
    seconds = sum(receipt.seconds for receipt in measured)
    if seconds > 0:
        rate = sum(receipt.tokens for receipt in measured) / seconds
        basis = f"measured on {len(measured)} shards"
    elif identity.parameters:
        flops = GPU_FLOPS * config.gpus if config.gpus else CPU_THREAD_FLOPS * job.spec.run.threads_per_worker
        rate = flops / (2 * identity.parameters)
        basis = f"rough: 2 x {identity.parameters / 1e6:,.0f}M FLOPs per token at {flops / 1e12:g} TFLOP/s a worker"
    else:
        return ModelEstimate(name, None, None, "nothing known of this engine's speed")
    return ModelEstimate(name, rate * workers, job.plan.tokens / (rate * workers), basis)
