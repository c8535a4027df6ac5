"""The figures of `scoring.py` as one table in Markdown, each beside the goal it is held against."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAIN = ("mix", "uniform_512", "uniform_2048")


@dataclass(frozen=True)
class Goal:
    """A figure that is held against a bound: where it lies in the sections, and whether more or less is better."""

    label: str
    path: tuple[str, ...]
    bound: float
    at_least: bool = True
    form: str = ".2f"


SHARES = [
    Goal(f"mix / uniform 512, {engine}", ("speed", "ratios", f"{engine}: mix / uniform 512"), 0.9)
    for engine in ("vllm", "transformers")
]
GOALS = (
    Goal("vllm / stock prompt_logprobs", ("speed", "ratios", "vllm / stock"), 2.5),
    Goal("faster engine / stock prompt_logprobs", ("speed", "ratios", "faster / stock"), 3.0),
    Goal("transformers / plain forward", ("speed", "ratios", "transformers / plain"), 1.6),
    Goal("faster engine / limit", ("speed", "ratios", "faster / limit"), 0.6),
    *SHARES,
    Goal("random 0.5B, vllm / stock", ("random", "ratios", "vllm / stock"), 2.5),
    Goal("random 0.5B, faster engine / stock", ("random", "ratios", "faster / stock"), 3.0),
    Goal("random 0.5B, transformers / plain", ("random", "ratios", "transformers / plain"), 1.6),
    Goal("random 0.5B, faster engine / limit", ("random", "ratios", "faster / limit"), 0.6),
    Goal("entropy and rank, vllm", ("features", "vllm"), 0.05, False, ".1%"),
    Goal("entropy and rank, transformers", ("features", "transformers"), 0.05, False, ".1%"),
    Goal("curator run, all stages / bare engine", ("end_to_end", "all_stages_share"), 0.9, True, ".1%"),
    Goal("mean error, vllm, bfloat16", ("accuracy", "vllm", "mean"), 0.028, False, ".4f"),
    Goal("mean error, transformers, bfloat16", ("accuracy", "transformers", "mean"), 0.028, False, ".4f"),
    Goal("mean error, vllm, float32", ("accuracy", "vllm, float32", "mean"), 1e-4, False, ".1e"),
    Goal("mean error, transformers, float32", ("accuracy", "transformers, float32", "mean"), 1e-4, False, ".1e"),
)


def look_up(sections: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = sections
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def judge(sections: Mapping[str, Any], goal: Goal) -> tuple[str, str, str]:
    """Measured, wanted, and the verdict."""
    value = look_up(sections, goal.path)
    wanted = f"{'>=' if goal.at_least else '<'} {goal.bound:{goal.form}}"
    if value is None:
        return "not measured", wanted, ""
    reached = value >= goal.bound if goal.at_least else value < goal.bound
    return f"{value:{goal.form}}", wanted, "reached" if reached else "missed"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown with aligned columns: text to the left, figures to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "| " + " | ".join([row[0].ljust(widths[0]), *cells[1:]]) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def number(value: Any, scale: float = 1, form: str = ",.0f") -> str:
    return "" if value is None else f"{value / scale:{form}}"


def speed_table(sections: Mapping[str, Any]) -> str:
    speed = sections.get("speed", {})
    rows = []
    for name, one in speed.get("engines", {}).items():
        rates = [number(one["tokens_per_s"].get(workload)) for workload in MAIN]
        other = number(look_up(sections, ("random", "engines", name)))
        memory = number(one.get("scoring_peak_bytes"), 2**20)
        rows.append([name, *rates, other, number(one.get("start_s")), memory])
    best = number(look_up(sections, ("limit", "model", "tokens_per_s")))
    random = number(look_up(sections, ("random", "limit", "tokens_per_s")))
    rows.append(["the limit", best, best, best, random, "", ""])
    head = ["tokens/s", "mix", "512", "2048", "random 0.5B, 512", "start, s", "peak, MiB"]
    return table(head, rows)


def growth_lines(growth: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("length", "workers"):
        for engine, rates in growth.get(kind, {}).items():
            yield f"{kind}, {engine}: " + ", ".join(f"{name}: {value:,.0f} tokens/s" for name, value in rates.items())
    for size, both in growth.get("vocabulary", {}).items():
        parts = []
        for name, one in both.items():
            memory = number(one.get("scoring_peak_bytes"), 2**20)
            parts.append(f"{name} {number(one.get('tokens_per_s'))} tokens/s in {memory} MiB")
        yield f"vocabulary {int(size):,}: " + ", ".join(parts)


def detail_lines(sections: Mapping[str, Any]) -> Iterator[str]:
    accuracy = sections.get("accuracy", {})
    for job, one in accuracy.items():
        if isinstance(one, Mapping):
            yield f"error, {job}: mean {one['mean']:.2e}, p99 {one['p99']:.2e} nats over {accuracy['tokens']:,} tokens"
    for engine, one in sections.get("batching", {}).items():
        if isinstance(one, Mapping):
            yield (
                f"other company, {engine}: |difference| p50 {one['p50']:.4f}, p90 {one['p90']:.4f}, "
                f"p99 {one['p99']:.4f}, largest {one['max']:.3f} nats; equal {one['equal']:.0%}"
            )
    yield from growth_lines(sections.get("growth", {}))
    end = sections.get("end_to_end", {})
    if "wall_s" in end:
        yield (
            f"curator run: {end['tokens']:,} tokens in {end['wall_s']:.0f} s with all starts; scoring "
            f"{end['score_tokens_per_s']:,.0f}, all stages {end['all_stages_tokens_per_s']:,.0f} tokens/s"
        )
    for name, path in {"model": ("limit", "model"), "random 0.5B": ("random", "limit")}.items():
        one: Any = look_up(sections, path)
        if one is not None:
            best = [
                f"{layer} {max(r.values()) / 1e9:,.0f} ({one['best'][layer]})"
                for layer, r in one["flops_per_s"].items()
            ]
            yield f"matrix rates, {name}, GFLOP/s: " + ", ".join(best)


def report(results: Mapping[str, Any]) -> str:
    """The whole report: speeds, goals, then what has no goal, and what was left out."""
    sections = results["sections"]
    goals = [[goal.label, *judge(sections, goal)] for goal in GOALS]
    lines = [speed_table(sections), "", table(["", "measured", "goal", ""], goals), ""]
    lines += [f"- {line}" for line in detail_lines(sections)]
    for run in results["runs"].values():
        versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        machine = (
            f"{run['cpu']}, {run['cores']} cores, {run['threads']} threads, load {run['load_at_start']:.1f} at start"
        )
        lines.append(f"- {run['run']}: {run['model']}; {machine}; {versions}")
        lines += [
            f"- left out: {one['name']}: {one['reason']}"
            for one in run["left_out"]
            if sections.get(one["section"], {}).get("run") == run["run"]
        ]
    return "\n".join(lines)
