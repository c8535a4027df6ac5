"""What the measurements of `scoring.py` say: pure functions from raw results to the figures of each section.

A raw result is what `engines/child.py` wrote: seconds per workload, variant and repetition, tokens per workload, peaks,
and files of recorded log-probs. Whatever was not measured is absent from the figures, never zero.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scoring_plan import LENGTHS, MAIN, MIXES, RANDOM, VOCABULARIES, name_of_length

Raw = Mapping[str, Any]
OURS = ("vllm", "transformers")
ENGINE_ROWS: dict[str, tuple[str, str | None]] = {  # rows of the table of speeds: job and variant
    "vllm": ("vllm", None),
    "vllm, eager": ("vllm, eager", None),
    "transformers": ("transformers", None),
    "vLLM itself, prefill only": ("vLLM itself", "prefill only"),
    "vLLM itself, prompt_logprobs": ("vLLM itself", "prompt_logprobs"),
    "vllm, scoring: prompt_logprobs": ("vllm, prompt_logprobs", None),
    "plain forward + log_softmax": ("plain forward", None),
    "lm-evaluation-harness": ("lm-eval", None),
}


def rate(raw: Raw, job: str, workload: str, variant: str | None = None) -> float | None:
    """Best tokens per second of a workload over repetitions, and over variants unless one is named."""
    timings = raw.get(job, {}).get("timings", {}).get(workload)
    if timings is None:
        return None
    seconds = [one for name, all_s in timings.items() for one in all_s if variant in (None, name)]
    return raw[job]["tokens"][workload] / min(seconds) if seconds else None


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def present(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was not measured."""
    return {name: value for name, value in figures.items() if value is not None and value != {}}


def speed(raw: Raw) -> dict[str, Any]:
    figures: dict[str, Any] = {"engines": {}}
    for name, (job, variant) in ENGINE_ROWS.items():
        if job not in raw:
            continue
        rates = present({workload: rate(raw, job, workload, variant) for workload in MAIN})
        figures["engines"][name] = {"tokens_per_s": rates} | present(
            {key: raw[job].get(key) for key in ("start_s", "start_peak_bytes", "scoring_peak_bytes", "threads")}
        )
    return figures | {"ratios": speed_ratios(raw)}


def speed_ratios(raw: Raw) -> dict[str, float]:
    """The issue's ratios on the mix, and real lengths against uniform ones."""
    rates = {engine: rate(raw, engine, "mix") for engine in OURS}
    faster = max((value for value in rates.values() if value is not None), default=None)
    stock, plain = rate(raw, "vLLM itself", "mix", "prompt_logprobs"), rate(raw, "plain forward", "mix")
    limit = raw.get("limit", {}).get("measured", {}).get("tokens_per_s")
    figures = {
        "vllm / stock": ratio(rates["vllm"], stock),
        "faster / stock": ratio(faster, stock),
        "transformers / plain": ratio(rates["transformers"], plain),
        "faster / limit": ratio(faster, limit),
    }
    for engine in OURS:
        figures[f"{engine}: mix / uniform 512"] = ratio(rates[engine], rate(raw, engine, "uniform_512"))
    return present(figures)


def limit(raw: Raw) -> dict[str, Any]:
    return present({"model": raw.get("limit", {}).get("measured")})


def random(raw: Raw) -> dict[str, Any]:
    """The random model of half a billion parameters: speeds by the names of `ENGINE_ROWS`, ratios, its limit."""
    rates: dict[str, float | None] = {}
    for name, (job, variant) in ENGINE_ROWS.items():
        rates[name] = rate(raw, f"{RANDOM}: {job}", "random_512", variant)
    faster = max((rates[engine] or 0.0 for engine in OURS), default=0.0) or None
    limit = raw.get(f"{RANDOM}: limit", {}).get("measured")
    ratios = {
        "vllm / stock": ratio(rates["vllm"], rates["vLLM itself, prompt_logprobs"]),
        "faster / stock": ratio(faster, rates["vLLM itself, prompt_logprobs"]),
        "transformers / plain": ratio(rates["transformers"], rates["plain forward + log_softmax"]),
        "faster / limit": ratio(faster, (limit or {}).get("tokens_per_s")),
    }
    return present({"engines": present(rates), "ratios": present(ratios), "limit": limit})


def features(raw: Raw) -> dict[str, Any]:
    """Share of the time that entropy and rank add."""

    def cost(engine: str) -> float | None:
        slower = ratio(rate(raw, engine, "mix"), rate(raw, f"{engine}, features", "mix"))
        return None if slower is None else slower - 1

    return present({engine: cost(engine) for engine in OURS})


def end_to_end(raw: Raw) -> dict[str, Any]:
    run = raw.get("end to end", {})
    bare = rate(raw, "vllm", "mix")
    return present(
        {
            **run,
            "bare_tokens_per_s": bare,
            "score_stage_share": ratio(run.get("score_tokens_per_s"), bare),
            "all_stages_share": ratio(run.get("all_stages_tokens_per_s"), bare),
        }
    )


def load(raw: Raw, job: str, name: str) -> np.ndarray | None:
    path = raw.get(job, {}).get("recorded", {}).get(name)
    return None if path is None else np.load(path)


def accuracy(raw: Raw) -> dict[str, Any]:
    """Mean |difference| in nats to the oracle, each document alone in float32; and its 99th percentile."""
    exact = load(raw, "oracle, float32", "accuracy")
    figures: dict[str, Any] = {}
    for job in raw if exact is not None else ():
        found = load(raw, job, "accuracy")
        if found is not None and job != "oracle, float32":
            difference = np.abs(found - exact)
            difference = difference[np.isfinite(exact)]
            figures[job] = {"mean": float(difference.mean()), "p99": float(np.percentile(difference, 99))}
    return figures | ({"tokens": int(np.isfinite(exact).sum())} if exact is not None else {})


def batching(raw: Raw, lengths: list[list[int]], places: list[list[int]], targets: list[int]) -> dict[str, Any]:
    """The same tokens alone and in other company: percentiles of |difference| in nats.

    Args:
        raw: results with recorded log-probs.
        lengths: of the documents of each company, in their order.
        places: where the targets stand in each company.
        targets: lengths of the targets.
    """
    figures: dict[str, Any] = {}
    for engine in OURS:
        alone = load(raw, engine, "alone")
        mixed = [load(raw, engine, f"company_{k}") for k in range(MIXES)]
        if alone is None or any(one is None for one in mixed):
            continue
        assert len(alone) == sum(targets)
        pieces = [np.split(one, np.cumsum(size)[:-1]) for one, size in zip(mixed, lengths, strict=True)]  # type: ignore[arg-type]
        found = [np.concatenate([parts[i] for i in order]) for parts, order in zip(pieces, places, strict=True)]
        difference = np.abs(np.stack(found) - alone)[:, np.isfinite(alone)].ravel()
        percentiles = {f"p{p}": float(np.percentile(difference, p)) for p in (50, 90, 99)}
        figures[engine] = percentiles | {
            "max": float(difference.max()), "mean": float(difference.mean()),
            "equal": float((difference == 0).mean()), "pairs": len(difference),
        }  # fmt: skip
    return figures


def growth(raw: Raw) -> dict[str, Any]:
    figures: dict[str, Any] = {"length": {}, "workers": {}, "vocabulary": {}}
    for engine in OURS:
        figures["length"][engine] = present({str(n): rate(raw, engine, name_of_length(n)) for n in LENGTHS})
        parts = raw.get(f"{engine}, 2 workers", {}).get("parts", [])
        rates = present({"1 worker, all threads": rate(raw, engine, "mix")})
        if parts and all(part.get("timings") for part in parts):
            seconds = [next(iter(one.values()))[0] for part in parts for one in part["timings"].values()]
            rates["2 workers, half the threads each"] = sum(sum(p["tokens"].values()) for p in parts) / max(seconds)
        figures["workers"][engine] = rates
    for size in VOCABULARIES:
        for name in ("transformers", "full logits"):
            job = f"vocabulary {size}: {name}"
            one = present({
                "tokens_per_s": rate(raw, job, "vocabulary"),
                "scoring_peak_bytes": raw.get(job, {}).get("scoring_peak_bytes"),
                "start_peak_bytes": raw.get(job, {}).get("start_peak_bytes"),
            })  # fmt: skip
            if one:
                figures["vocabulary"].setdefault(str(size), {})[name] = one
    return figures
