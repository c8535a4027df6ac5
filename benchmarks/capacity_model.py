"""How long a run takes and what saturates first: the equations of docs/capacity.md.

Every constant is either measured (read from `results/`), or an assumption that stands in `ASSUMED`, `GPUS` or `MODELS`
below and in the page. Nothing here was measured on a GPU.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CORPUS_TOKENS = 10e12
SHARD_TOKENS = 4e6


@dataclass(frozen=True)
class Model:
    """A model's arithmetic for one token, and the share of a GPU's peak that its linear layers are assumed to reach."""

    name: str
    linear_flops: float
    attention_flops: float  # for each token of document length: 2 x layers x heads x head size
    utilisation: float


@dataclass(frozen=True)
class Gpu:
    """Dense bfloat16 peak, and what an hour is assumed to cost (November 2026; put in your own)."""

    name: str
    peak_flops: float
    usd_per_hour: float


@dataclass(frozen=True)
class Assumed:
    """What is neither measured here nor a model's own."""

    attention_utilisation: float = 0.3
    document_tokens: float = 2048
    frontend_s: float = 1.0e-6  # CPU of the engine's front end for a token, one thread: measured once, on a CPU
    cores_per_gpu: int = 16
    put_per_s: float = 3500  # S3, one partitioned prefix
    get_per_s: float = 5500
    puts_per_shard: int = 2  # its file and its receipt
    gets_per_shard: int = 4
    network_bytes_per_s: float = 1.5e9  # of a node with eight GPUs, 12 Gbit/s sustained
    answer_s: float = 0.03  # of an object store
    answers_at_once: int = 32
    serve_bytes_per_s: float = 3.3e9  # results/downloads.json


MODELS = (
    Model("135M", 268_959_744, 2 * 30 * 576, 0.30),  # SmolLM2-135M: 30 layers of 9 heads of 64
    Model("1B", 2 * 1.236e9, 2 * 16 * 2048, 0.40),  # Llama-3.2-1B: 16 layers of 32 heads of 64
    Model("7B", 2 * 6.607e9, 2 * 32 * 4096, 0.50),  # Llama-2-7B: 32 layers of 32 heads of 128
)
GPUS = (Gpu("A100", 312e12, 1.80), Gpu("H100", 989e12, 2.80), Gpu("L40S", 362e12, 1.10))
H100 = GPUS[1]
ASSUMED = Assumed()


# ------------------------------------------------------------------------------------------------ measured


@dataclass(frozen=True)
class Measured:
    """Costs of this code, from `results/`: CPU seconds of one core, and bytes."""

    plan_s: float
    hand_out_s: float
    merge_s: float
    publish_s: float
    memory_bytes: float
    plan_bytes: float
    tokenize_bytes_per_s: float
    count_tokens_per_s: float
    select_tokens_per_s: float
    plan_gz_bytes_per_s: float
    plan_jsonl_bytes_per_s: float
    text_bytes: float
    tokens_bytes: float
    scores_bytes: float
    curated_bytes: float


def read_results(name: str) -> dict[str, Any]:
    """One of the result files."""
    found: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text())
    return found


def slope(section: dict[str, Any], key: str, low: int, high: int) -> float:
    """What one more shard costs."""
    return float((section[str(high)][key] - section[str(low)][key]) / (high - low))


def measured() -> Measured:
    """What `scale.py` and `storage_size.py` found."""
    scale, stored = read_results("scale"), read_results("storage_size")
    plan, publish, core = scale["plan"], scale["publish"], scale["stages"]["one core"]

    def per_token(folder: str) -> float:
        return float((sum(stored[folder]["columns"].values()) + stored[folder]["footer"]) / stored["tokens"])

    most = max(int(n) for n in publish)
    return Measured(
        plan_s=sum(slope(plan, key, 10, most) for key in ("cut_s", "write_s", "read_s")),
        hand_out_s=max(
            one["driver_s"] / max(20 * int(name.split()[0]), 2000) for name, one in scale["hand_out"].items()
        ),
        merge_s=slope(scale["merge"], "merge_s", 10, max(int(n) for n in scale["merge"])),
        publish_s=slope(publish, "publish_s", 10, most),
        memory_bytes=slope(publish, "peak_memory_bytes", 10, most),
        plan_bytes=slope(plan, "plan_bytes", 10, most),
        tokenize_bytes_per_s=core["tokenize_bytes_per_s"],
        count_tokens_per_s=core["count_tokens_per_s"],
        select_tokens_per_s=core["select_tokens_per_s"],
        plan_gz_bytes_per_s=core["plan_jsonl_gz_bytes_per_s"],
        plan_jsonl_bytes_per_s=core["plan_jsonl_bytes_per_s"],
        text_bytes=core["text_bytes_per_token"],
        tokens_bytes=per_token("tokens/"),
        scores_bytes=per_token("scores/"),
        curated_bytes=per_token("curated/"),
    )


# ------------------------------------------------------------------------------------------------ the model


def tokens_per_s(model: Model, gpu: Gpu) -> float:
    """What one GPU scores: arithmetic at the assumed share of its peak, or what the engine's front end can feed."""
    linear_s = model.linear_flops / (model.utilisation * gpu.peak_flops)
    attention_s = model.attention_flops * ASSUMED.document_tokens / (ASSUMED.attention_utilisation * gpu.peak_flops)
    return 1 / max(linear_s + attention_s, ASSUMED.frontend_s)


def stage_hours(model: Model, gpus: int, of: Measured) -> dict[str, float]:
    """Hours of each step of a run over the whole corpus that scores it with one model on H100s."""
    tokens, shards, cores = CORPUS_TOKENS, CORPUS_TOKENS / SHARD_TOKENS, gpus * ASSUMED.cores_per_gpu
    seconds = {
        "tokenize": tokens * of.text_bytes / of.tokenize_bytes_per_s / cores,
        "score": tokens / tokens_per_s(model, H100) / gpus,
        "calibrate": max(2 * tokens / of.count_tokens_per_s / cores, shards * (2 * of.hand_out_s + of.merge_s)),
        "select": tokens / of.select_tokens_per_s / cores,
        "driver alone": shards * (of.plan_s + of.publish_s),
    }
    return {name: value / 3600 for name, value in seconds.items()}


def limits(model: Model, of: Measured) -> dict[str, float]:
    """GPUs at which something else than the GPUs is busy all the time while scoring."""
    shards_per_s = tokens_per_s(model, H100) / SHARD_TOKENS
    node_bytes = 8 * tokens_per_s(model, H100) * (of.tokens_bytes + of.scores_bytes)
    found = {
        "the driver's core": 1 / (shards_per_s * of.hand_out_s),
        "PUTs on one prefix": ASSUMED.put_per_s / (shards_per_s * ASSUMED.puts_per_shard),
        "GETs on one prefix": ASSUMED.get_per_s / (shards_per_s * ASSUMED.gets_per_shard),
    }
    if node_bytes > ASSUMED.network_bytes_per_s:
        found["a node's network"] = 1.0
    return found


def driver_share(model: Model, of: Measured, stages: int = 5) -> float:
    """CPU time of the driver for a shard, all stages, beside the GPU time of scoring it once on an H100."""
    return (of.plan_s + stages * of.hand_out_s + 2 * of.merge_s + of.publish_s) / (
        SHARD_TOKENS / tokens_per_s(model, H100)
    )


def disk_bytes_per_token(of: Measured, models: int) -> float:
    """Token shards, each model's scores, and the published shards, which hold the scores of every model again."""
    return of.tokens_bytes + models * of.scores_bytes + of.curated_bytes + (models - 1) * of.scores_bytes
