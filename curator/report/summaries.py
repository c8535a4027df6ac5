"""Numbers of the report as rows of text: headline figures, sources, cuts, models, doubling bins.

What is folded is counted in the row's own name; nothing is left out without a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curator.data import Cut
from curator.report.charts import Bar, format_count, format_share
from curator.report.counts import GroupStatistics, LogBins, ShardStatistics, fold_sources, sum_groups

SHOWN_SOURCES = 200
SHOWN_CUTS = 200


@dataclass(frozen=True)
class Figure:
    """One headline figure: a label, a value, and a note below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class SourceRow:
    """One source of the table: its name, its counts, and its mean loss under each model in nats."""

    name: str
    group: GroupStatistics
    share: float
    losses: tuple[str, ...]


def headline_figures(
    statistics: ShardStatistics,
    cuts: Mapping[str, Cut],
    policy: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    quarantined: Mapping[str, int],
    totals: Mapping[str, Any],
) -> list[Figure]:
    """The figures at the head of the report."""
    total = statistics.total
    duplicates = totals.get("duplicate_ids", 0)
    bad, lost = sum(quarantined.values()), totals.get("lost_shards", 0)
    note = f"rows, for {len(quarantined)} reason{'s' if len(quarantined) > 1 else ''}" if bad else "no row was lost"
    if lost:
        note = f"rows, and {lost:,} whole shards lost"
    settings = " · ".join(
        f"{key} {value}" for key, value in policy.items() if key not in ("kind", value) and value is not None
    )
    return [
        Figure("Kept", format_share(total.kept, total.scored), f"{format_count(total.kept)} of the scored tokens"),
        Figure("Tokens", format_count(total.tokens), f"{format_count(total.scored)} scored"),
        Figure("Documents", format_count(total.documents), f"{total.without_kept:,} without a kept token"),
        Figure("Text", format_bytes(total.text_bytes), f"{total.text_bytes / max(total.tokens, 1):.2f} bytes a token"),
        Figure(
            "Weight sum", format_count(total.weight_sum), f"{total.weight_sum / max(total.kept, 1):.3f} a kept token"
        ),
        _cut_figure(statistics, cuts),
        Figure("Policy", str(policy.get("kind", "–")), settings),
        Figure("Models", str(len(models)), ", ".join(models) or "no model was needed"),
        Figure("Quarantined", f"{bad:,}", note),
        Figure("Duplicate ids", f"{duplicates:,}", "all rows are kept"),
    ]


def _cut_figure(statistics: ShardStatistics, cuts: Mapping[str, Cut]) -> Figure:
    near = ""
    if statistics.near_cut_of:
        near = f"{format_share(statistics.near_cut, statistics.near_cut_of)} of tokens within noise"
    if set(cuts) == {""}:
        return Figure("Cut", f"{cuts[''].value:+.3f}", near)
    return Figure("Cuts", f"{len(cuts):,}" if cuts else "none", near or ("see below" if cuts else ""))


def format_bytes(size: float) -> str:
    """A size in three digits with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} PB"


def source_rows(statistics: ShardStatistics) -> tuple[list[SourceRow], SourceRow | None, bool]:
    """Rows of the largest sources; one row for all others; whether shards had already folded some of these."""
    models = sorted(statistics.losses)
    named, rest, count = fold_sources(statistics.sources, SHOWN_SOURCES)
    rows = [_source_row(name or "(no source)", group, models) for name, group in named.items()]
    folded = statistics.others_sources
    if not count + folded:
        return rows, None, False
    about = "up to " if folded else ""
    return (
        rows,
        _source_row(f"({about}{count + folded:,} other sources)", sum_groups([rest, statistics.others]), models),
        folded > 0,
    )


def _source_row(name: str, group: GroupStatistics, models: list[str]) -> SourceRow:
    sums = [group.losses.get(model) for model in models]
    losses = tuple(f"{entry.total / entry.tokens:.3f}" if entry and entry.tokens else "–" for entry in sums)
    return SourceRow(name, group, group.kept / max(group.scored, 1), losses)


def bin_bars(bins: LogBins) -> list[Bar]:
    """Kept share for each doubling bin, from the first to the last that holds a scored token."""
    bars = []
    filled = [number for number, scored in enumerate(bins.scored) if scored]
    for number in range(filled[0], filled[-1] + 1) if filled else ():
        first, last = (2 ** (number - 1), 2**number - 1) if number else (0, 0)
        tokens, scored, kept = bins.tokens[number], bins.scored[number], bins.kept[number]
        counts = (f"{bins.documents[number]:,}", f"{tokens:,}", f"{scored:,}", f"{kept:,}", format_share(kept, scored))
        label = str(first) if first == last else f"{_short(first)}–{_short(last + 1)}"
        bars.append(Bar(label, kept / max(scored, 1), 0.0, counts, _short(first)))
    return bars


def _short(number: int) -> str:
    return str(number) if number < 1024 else f"{number // 1024}k" if number < 2**20 else f"{number // 2**20}M"


def cut_rows(cuts: Mapping[str, Cut]) -> tuple[list[tuple[str, str, str]], int]:
    """Scope, value and share kept of the ties for the first cuts by name, and how many more there are."""
    named = sorted(cuts.items())
    rows = [(key or "(whole corpus)", f"{cut.value:+.4f}", f"{100 * cut.share:.1f}%") for key, cut in named]
    return rows[:SHOWN_CUTS], len(rows[SHOWN_CUTS:])


def model_rows(models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each model's name and the facts known of it, in words."""
    return [
        (name, [(key.replace("_", " "), str(value)) for key, value in facts.items() if value is not None])
        for name, facts in models.items()
    ]
