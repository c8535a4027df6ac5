"""Which engines `scoring.py` starts for the chosen sections, and what each is asked to time and to record.

Sections share processes: an engine that starts once is timed, checked for accuracy and asked for its batching together.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import workloads
from engines.jobs import Job

SECTIONS = ("speed", "limit", "features", "end_to_end", "accuracy", "batching", "growth", "random")
PEERS = ("plain", "stock", "curator_stock", "lm_eval")
MAIN = ("mix", "uniform_512", "uniform_2048")
BATCH_TOKENS = 4096  # of a step or batch, for everybody
BATCH_SIZES = (1, 2, 4, 8)
LENGTHS = (128, 512, 2048, 8192)
VOCABULARIES = (32_768, 131_072, 262_144)
MIXES = 3
RANDOM = "random 0.5B"
KERNELS = ("torch", "oneDNN, float32 results", "vLLM's oneDNN", "inductor, autotuned")

# What matters most comes first, as time may run out; what is compared to the percent stands side by side.
ORDER = (
    "vllm", "vllm, features", "transformers", "transformers, features", "vLLM itself", "plain forward", "limit",
    "vllm, eager", "end to end", "lm-eval", "vllm, prompt_logprobs", "oracle, float32", "vllm, float32",
    "transformers, float32", "vllm, 2 workers", "transformers, 2 workers",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The command line, resolved: models are paths, `plain_model` is a folder that every engine can read."""

    sections: tuple[str, ...]
    peers: tuple[str, ...]
    model: str
    plain_model: str
    tokenizer: str
    threads: int
    repetitions: int
    harness: Path
    kernels: tuple[str, ...] = KERNELS


@dataclass(frozen=True)
class Step:
    """Jobs that run at the same time, mostly one, for the section that asked first."""

    section: str
    jobs: list[Job]


def plan(options: Options) -> dict[str, Step]:
    """Steps by name, in the order of running; `end to end` has no job, as it is `curator run` itself."""
    steps: dict[str, Step] = {}
    for section in SECTIONS:
        if section in options.sections:
            _ASK[section](steps, options)
    known = {name: rank for rank, name in enumerate(ORDER)}
    return dict(sorted(steps.items(), key=lambda item: known.get(item[0], len(known))))


def ours(options: Options, engine: str, model: str | None = None, **fields: Any) -> Job:
    """One of this project's engines; `fields` are its config's."""
    return Job("ours", model or options.model, {"engine": engine, **fields}, threads=options.threads)


def plain(options: Options, model: str | None = None, sizes: tuple[int, ...] = BATCH_SIZES) -> Job:
    return Job("plain", model or options.plain_model, {"batch_sizes": sizes, "budget": BATCH_TOKENS},
               threads=options.threads)  # fmt: skip


def stock(options: Options, model: str | None = None) -> Job:
    fields = {"max_num_batched_tokens": BATCH_TOKENS, "kv_cache_memory_bytes": 1 << 30}
    return Job("stock", model or options.plain_model, fields, threads=options.threads)


def add(steps: dict[str, Step], section: str, name: str, job: Job) -> Job:
    """The job of that name, made unless another section has."""
    return steps.setdefault(name, Step(section, [job])).jobs[0]


def ask_speed(steps: dict[str, Step], options: Options) -> None:
    twice = dict.fromkeys(MAIN, options.repetitions)
    once = dict.fromkeys(MAIN, 1)
    often = once | {"mix": options.repetitions}
    add(steps, "speed", "vllm", ours(options, "vllm")).wants(twice)
    add(steps, "speed", "transformers", ours(options, "transformers")).wants(twice)
    eager = ours(options, "vllm", engine_args={"enforce_eager": True})
    add(steps, "speed", "vllm, eager", eager).wants({"mix": options.repetitions})
    if "plain" in options.peers:
        add(steps, "speed", "plain forward", plain(options)).wants(once)
    if "stock" in options.peers:
        add(steps, "speed", "vLLM itself", stock(options)).wants(often)
    if "curator_stock" in options.peers:
        job = ours(options, "vllm", engine_args={"scoring": "prompt_logprobs"})
        add(steps, "speed", "vllm, prompt_logprobs", job).wants({"mix": 1})
    if "lm_eval" in options.peers:
        fields = {"batch_sizes": (1, 4), "tokenizer": options.tokenizer}
        job = Job("lm_harness", options.plain_model, fields, threads=options.threads, python=str(options.harness))
        add(steps, "speed", "lm-eval", job).wants({"mix": 1})


def ask_random(steps: dict[str, Step], options: Options) -> None:
    """The random model of half a billion parameters, on few tokens of one length."""
    model = str(workloads.random_model("random-0.5b", workloads.HALF_BILLION))
    jobs = {"vllm": ours(options, "vllm", model), "transformers": ours(options, "transformers", model)}
    if "stock" in options.peers:
        jobs["vLLM itself"] = stock(options, model)
    if "plain" in options.peers:
        jobs["plain forward"] = plain(options, model, (1, 4))
    for name, job in jobs.items():
        repetitions = 1 if name == "plain forward" else 2
        add(steps, "random", f"{RANDOM}: {name}", job).wants({"random_512": repetitions})
    fast = tuple(kernel for kernel in options.kernels if not kernel.startswith("inductor"))  # it takes minutes
    add(steps, "random", f"{RANDOM}: limit", limit(options, model, fast, 20))


def limit(options: Options, model: str, kernels: tuple[str, ...], seconds: float) -> Job:
    fields = {"kernels": kernels, "rows": (1024, 4096), "seconds": seconds}
    return Job("matrices", model, fields, threads=options.threads)


def ask_limit(steps: dict[str, Step], options: Options) -> None:
    add(steps, "limit", "limit", limit(options, options.plain_model, options.kernels, 75))


def ask_features(steps: dict[str, Step], options: Options) -> None:
    workload = {"mix": max(2, options.repetitions)}
    for engine in ("vllm", "transformers"):
        add(steps, "features", engine, ours(options, engine)).wants(workload)
        job = ours(options, engine, features=["entropy", "rank"])
        add(steps, "features", f"{engine}, features", job).wants(workload)


def ask_end_to_end(steps: dict[str, Step], options: Options) -> None:
    add(steps, "end_to_end", "vllm", ours(options, "vllm")).wants({"mix": options.repetitions})
    steps["end to end"] = Step("end_to_end", [])


def ask_accuracy(steps: dict[str, Step], options: Options) -> None:
    """The oracle reads what the engine under test reads: a .gguf file holds more than bfloat16 keeps."""
    exact = [ours(options, "vllm", engine_args={"enforce_eager": True}), ours(options, "transformers")]
    jobs = {
        "vllm": ours(options, "vllm"),
        "vllm, eager": exact[0],
        "transformers": ours(options, "transformers"),
        "oracle, float32": replace(plain(options, options.model, (1,)), dtype="float32"),
        "vllm, float32": replace(exact[0], dtype="float32", time={}, record=[]),
        "transformers, float32": replace(exact[1], dtype="float32", time={}, record=[]),
    }
    if "curator_stock" in options.peers:
        jobs["vllm, prompt_logprobs"] = ours(options, "vllm", engine_args={"scoring": "prompt_logprobs"})
    if "stock" in options.peers:
        jobs["vLLM itself"] = stock(options)
    if "plain" in options.peers:
        jobs["plain forward"] = plain(options)
    for name, job in jobs.items():
        add(steps, "accuracy", name, job).wants(record=["accuracy"])


def ask_batching(steps: dict[str, Step], options: Options) -> None:
    for engine in ("vllm", "transformers"):
        job = add(steps, "batching", engine, ours(options, engine))
        job.wants(record=["alone", *(f"company_{k}" for k in range(MIXES))])
        job.alone = ["alone"]


def ask_growth(steps: dict[str, Step], options: Options) -> None:
    lengths = {name_of_length(length): 1 for length in LENGTHS}
    for engine in ("vllm", "transformers"):
        add(steps, "growth", engine, ours(options, engine)).wants(lengths | {"mix": options.repetitions})
        halves = [replace(ours(options, engine), threads=max(1, options.threads // 2)) for _ in range(2)]
        for number, job in enumerate(halves):
            job.wants({f"half_{number}": 1})
        steps[f"{engine}, 2 workers"] = Step("growth", halves)
    for size in VOCABULARIES:
        model = str(workloads.random_model(f"random-{size}", workloads.TINY_BODY | {"vocab_size": size}))
        jobs = {"transformers": ours(options, "transformers", model), "full logits": plain(options, model, (4,))}
        for name, job in jobs.items():
            add(steps, "growth", f"vocabulary {size}: {name}", job).wants({"vocabulary": 1})


def name_of_length(length: int) -> str:
    return f"uniform_{length}"


_ASK = {
    "speed": ask_speed, "limit": ask_limit, "features": ask_features, "end_to_end": ask_end_to_end,
    "accuracy": ask_accuracy, "batching": ask_batching, "growth": ask_growth, "random": ask_random,
}  # fmt: skip
