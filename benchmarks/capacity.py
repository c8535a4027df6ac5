"""What a run takes, from one machine to a thousand GPUs: the tables of docs/capacity.md.

    python benchmarks/capacity.py [--write]

Prints the tables, or writes them into the page, between their markers. The equations are in `capacity_model`.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from capacity_model import (
    ASSUMED,
    CORPUS_TOKENS,
    GPUS,
    H100,
    MODELS,
    SHARD_TOKENS,
    Measured,
    disk_bytes_per_token,
    driver_share,
    limits,
    measured,
    read_results,
    stage_hours,
    tokens_per_s,
)

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
FLEETS = (1, 8, 64, 512, 1000)
SHARDS = (10, 100, 1_000, 10_000, 100_000)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits, or whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def hours_table(of: Measured) -> str:
    """Fleets by models: hours of scoring and of everything, and the share of the steps that the driver does alone."""
    rows = []
    for model in MODELS:
        near = min(limits(model, of).items(), key=lambda item: item[1])
        for gpus in FLEETS:
            hours = stage_hours(model, gpus, of)
            total = sum(hours.values())
            others = {name: value for name, value in hours.items() if name != "score"}
            largest = max(others.items(), key=lambda item: item[1])
            rows.append(
                [
                    model.name, str(gpus), number(hours["score"]), number(total),
                    f"{largest[0]}, {largest[1] / total:.1%}", f"{gpus / near[1]:.1%} of {near[0]}",
                ]
            )  # fmt: skip
    head = [
        "model",
        "H100s",
        "hours of scoring",
        "hours in all",
        "largest other step",
        "busiest beside the GPUs while scoring",
    ]
    return table(head, rows)


def limits_table(of: Measured) -> str:
    """What saturates at how many GPUs."""
    names = list(limits(MODELS[1], of))[:3]
    rows = []
    for model in MODELS:
        found = limits(model, of)
        alone_s = of.plan_s + of.publish_s
        one_percent = 0.01 * SHARD_TOKENS / tokens_per_s(model, H100) / alone_s
        rows.append([model.name, *(number(found[name]) for name in names), number(one_percent)])
    return table(["model", *names, "planning and publishing take 1% of the scoring time"], rows)


def cost_table(_: Measured) -> str:
    """What a billion tokens cost, by model and GPU."""
    rows = []
    for model in MODELS:
        cells = []
        for gpu in GPUS:
            rate = tokens_per_s(model, gpu)
            cells += [f"{rate:,.0f}", f"{1e9 / rate / 3600 * gpu.usd_per_hour:.2f}"]
        rows.append([model.name, *cells])
    return table(["model", *(f"{gpu.name} {what}" for gpu in GPUS for what in ("tokens/s", "USD"))], rows)


def disk_table(of: Measured) -> str:
    """Terabytes by corpus and number of models."""
    rows = []
    for tokens in (1e9, 4e11, CORPUS_TOKENS):
        cells = [number(tokens * disk_bytes_per_token(of, models) / 1e12) for models in (1, 2, 3)]
        copied_h = tokens * (of.curated_bytes + of.scores_bytes) / ASSUMED.serve_bytes_per_s / 3600
        rows.append([f"{tokens / 1e9:,.0f} billion", *cells, number(tokens * of.text_bytes / 1e12), number(copied_h)])
    head = [
        "tokens",
        "TB, 1 model",
        "TB, 2 models",
        "TB, 3 models",
        "TB of text read",
        "hours to serve (2 models), one process",
    ]
    return table(head, rows)


def driver_table(of: Measured) -> str:
    """What the driver needs, by shards."""
    rows = []
    for shards in (100, 10_000, 100_000, 2_500_000):
        text = shards * SHARD_TOKENS * of.text_bytes
        asked_s = 6 * shards * ASSUMED.answer_s / ASSUMED.answers_at_once
        rows.append(
            [
                f"{shards:,}", number(shards * SHARD_TOKENS / 1e9), number(shards * of.plan_bytes / 1e6),
                number(shards * of.memory_bytes / 1e9), number(shards * of.hand_out_s * 5 / 3600),
                number(shards * of.publish_s / 3600), number(asked_s / 3600),
                number(text / of.plan_jsonl_bytes_per_s / 3600), number(text / of.plan_gz_bytes_per_s / 3600),
            ]
        )  # fmt: skip
    head = ["shards", "billion tokens", "plan, MB", "memory, GB", "handing out, h", "publishing, h",
            "its answers from an object store, h", "planning jsonl, h", "planning jsonl.gz, h"]  # fmt: skip
    return table(head, rows)


def share_table(of: Measured) -> str:
    """The figure to show."""
    rows = [
        [model.name, f"{tokens_per_s(model, H100):,.0f}", f"{SHARD_TOKENS / tokens_per_s(model, H100):.1f}",
         f"{driver_share(model, of):.3%}"]
        for model in MODELS
    ]  # fmt: skip
    return table(["model", "tokens/s on an H100", "seconds a shard", "driver's CPU time, share of scoring"], rows)


def measured_table(_: Measured) -> str:
    """What `scale.json` holds, for one shard."""
    scale = read_results("scale")
    steps = {
        "cut and key the plan": ("plan", "cut_s"), "write it": ("plan", "write_s"), "read it": ("plan", "read_s"),
        "merge counts, once": ("merge", "merge_s"), "scan on resuming": ("publish", "scan_s"),
        "publish": ("publish", "publish_s"),
    }  # fmt: skip
    rows = []
    for name, (section, key) in steps.items():
        cells = [scale[section].get(str(n), {}).get(key) for n in SHARDS]
        rows.append([name, *("" if s is None else f"{s / n * 1e3:.3f}" for s, n in zip(cells, SHARDS, strict=True))])
    memory = [scale["publish"].get(str(n), {}).get("peak_memory_bytes") for n in SHARDS]
    rows.append(["peak memory while publishing, MB", *("" if m is None else f"{m / 1e6:.0f}" for m in memory)])
    handed = [
        f"{one['driver_s'] / max(20 * int(n.split()[0]), 2000) * 1e3:.2f} ({n})" for n, one in scale["hand_out"].items()
    ]
    rows.append(["hand out, once", *handed, *[""] * (len(SHARDS) - len(handed))])
    return table(["ms a shard, of", *(f"{n:,} shards" for n in SHARDS)], rows)


TABLES: dict[str, Callable[[Measured], str]] = {
    "hours": hours_table, "limits": limits_table, "cost": cost_table, "disk": disk_table, "driver": driver_table,
    "share": share_table, "measured": measured_table,
}  # fmt: skip


def fill(page: str, of: Measured) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n)(?:.*?\n)??(<!-- end -->)"
        page, found = re.subn(pattern, rf"\g<1>{make(of)}\n\g<2>", page, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"{PAGE} has {found} places for table {name!r}; it needs one")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/capacity.md")
    of = measured()
    if parser.parse_args().write:
        PAGE.write_text(fill(PAGE.read_text("utf-8"), of), "utf-8")
    for name, make in TABLES.items():
        print(f"{name}\n\n{make(of)}\n")


if __name__ == "__main__":
    main()
