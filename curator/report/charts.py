"""Small charts as inline SVG, with a data table for whoever cannot or will not look at them.

Coordinates are percentages, so that a chart fills any width while its text keeps its size. Kept parts are filled,
dropped parts are outlined: the difference does not rest on colour. Colours and strokes come from the style sheet's
classes; no attribute holds style, which the report's content policy forbids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from curator.report.histogram import EDGES, STEPS_PER_UNIT, CountArray, Histogram, quantile_bin

_TAIL = 0.002
"""Share of the tokens at each end that a histogram may leave out; it says how many those are."""
_MOST_BARS = 112


@dataclass(frozen=True)
class Bar:
    """One bar: what it is, its kept and dropped height as shares, its row of the data table, its label on the axis."""

    label: str
    kept: float
    dropped: float
    cells: tuple[str, ...] = ()
    tick: str = ""


def format_count(value: float) -> str:
    """A count in full up to 99,999, else in three digits with K, M, B or T."""
    for limit, divisor, unit in ((99_999.5, 1, ""), (999_500, 1e3, " K"), (999.5e6, 1e6, " M"), (999.5e9, 1e9, " B")):
        if value < limit:
            scaled = value / divisor
            digits = 0 if divisor == 1 or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
            return f"{scaled:,.{digits}f}{unit}"
    return f"{value / 1e12:,.2f} T"


def format_share(part: float, whole: float) -> str:
    """A part in percent; a dash where there is no whole."""
    return f"{100 * part / whole:.1f}%" if whole else "–"


def share_bar(share: float, label: str) -> Markup:
    """A horizontal bar from 0 to 100% for a table cell that also holds the number."""
    width = f"{100 * min(max(share, 0.0), 1.0):.2f}%"
    return Markup(
        '<svg class="bar" role="img" height="10" width="100%" aria-label="{}">'
        '<rect class="rail" width="100%" height="10" rx="2"/><rect class="kept" width="{}" height="10" rx="2"/></svg>'
    ).format(label, width)


def draw_columns(bars: Sequence[Bar], *, title: str, description: str, head: Sequence[str]) -> Markup:
    """Columns of equal width, from 0 to 1 (shares), each with its label below; every second label when crowded."""
    step = 100 / max(len(bars), 1)
    parts = [_grid([(share, f"{100 * share:.0f}%") for share in (0, 0.25, 0.5, 0.75, 1)])]
    every = 1 if len(bars) <= 8 else 2 if len(bars) <= 16 else 3
    for number, bar in enumerate(bars):
        x = number * step
        parts.append(_rect("kept", x + step * 0.12, step * 0.76, 0, bar.kept, bar.label))
        if number % every == 0:
            parts.append(_text("tick", x + step / 2, 100, bar.tick or bar.label, dy=18))
    return _figure(parts, bars, title, description, head)


def draw_histogram(
    histogram: Histogram,
    *,
    title: str,
    description: str,
    unit: str,
    cut: float | None = None,
    height: int = 240,
    like: Histogram | None = None,
) -> Markup:
    """Kept and dropped tokens by value, with the cut drawn; heights are shares of all counted tokens.

    The drawn range is that of `like`, where given, so that charts side by side can be compared.
    """
    bars, (low, high), note = _histogram_bars(histogram, cut, like or histogram)
    top = _round_up(max(bar.kept + bar.dropped for bar in bars))
    parts = [_grid([(part, f"{100 * part * top:.3g}%") for part in (0, 0.25, 0.5, 0.75, 1)])]
    step = 100 / len(bars)
    for number, bar in enumerate(bars):
        x, tip = number * step, f"{bar.label}: {bar.cells[2]} of tokens, {bar.cells[3]} of them kept"
        parts.append(_rect("dropped", x + step * 0.06, step * 0.88, bar.kept / top, bar.dropped / top, tip))
        parts.append(_rect("kept", x + step * 0.06, step * 0.88, 0, bar.kept / top, tip))
    parts += [_text("tick", 100 * (tick - low) / (high - low), 100, f"{tick:g}", dy=18) for tick in _ticks(low, high)]
    if cut is not None and low <= cut <= high:
        parts.append(_cut_line(100 * (cut - low) / (high - low), cut))
    head = (unit, "tokens", "kept", "share of all", "kept share")
    return _figure(parts, bars, title, f"{description} {note}".strip(), head, height=height)


def _histogram_bars(
    histogram: Histogram, cut: float | None, like: Histogram
) -> tuple[list[Bar], tuple[float, float], str]:
    """Bars of equal width, the range that they cover, and a note on what lies outside of it.

    Where the stored bins are wider than a bar, a bin's tokens are spread evenly over its bars.
    """
    counts = histogram.expand()
    total = int(counts[0].sum())
    low, high, width = _choose_range(like.expand()[0], cut)
    edges = np.arange(low, high + width / 2, width)
    scored, kept = (np.diff(np.rint(np.interp(edges, EDGES, np.cumsum(count)[:-1]))).tolist() for count in counts)
    bars = []
    for start, count, count_kept in zip(edges.tolist(), scored, map(min, kept, scored), strict=False):
        cells = (f"{count:,.0f}", f"{count_kept:,.0f}", format_share(count, total), format_share(count_kept, count))
        shares = count_kept / max(total, 1), (count - count_kept) / max(total, 1)
        bars.append(Bar(f"{start:g} to {start + width:g}", *shares, cells))
    outside = total - int(sum(scored))
    note = f"{outside:,} tokens ({format_share(outside, total)}) lie outside the drawn range." if outside else ""
    return bars, (low, high), note


def _choose_range(scored: CountArray, cut: float | None) -> tuple[float, float, float]:
    """First edge, last edge and bar width in the histogram's unit: a power of two, at least a bin wide."""
    low, _ = quantile_bin(scored, _TAIL)
    _, high = quantile_bin(scored, 1 - _TAIL)
    if cut is not None and np.isfinite(cut):
        low, high = min(low, cut), max(high, cut)
    width = 1 / STEPS_PER_UNIT
    while (high - low) / width > _MOST_BARS:
        width *= 2
    low, high = float(np.floor(low / width) * width), float(np.ceil(high / width) * width)
    return low, max(high, low + 4 * width), width


def _round_up(value: float) -> float:
    """The next of a few multiples of a power of ten whose quarters are short numbers: the axis end."""
    power = 10.0 ** np.floor(np.log10(value)) if value > 0 else 1.0
    return float(
        next(power * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if power * step >= value * 0.9999)
    )


def _ticks(low: float, high: float) -> list[float]:
    """About eight round values within the range."""
    raw = (high - low) / 8
    power = 10.0 ** np.floor(np.log10(raw))
    step = float(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw))
    first = int(np.ceil(low / step))
    return [round(number * step, 10) for number in range(first, int(np.floor(high / step)) + 1)]


def _rect(css: str, x: float, width: float, base: float, share: float, tip: str) -> Markup:
    if share <= 0:
        return Markup("")
    frame = '<rect class="{}" x="{:.3f}%" y="{:.3f}%" width="{:.3f}%" height="{:.3f}%"><title>{}</title></rect>'
    return Markup(frame).format(css, x, 100 * (1 - base - share), width, 100 * share, tip)  # nosec B704  # a constant; format escapes


def _text(css: str, x: float, y: float, text: str, dy: int = 0, anchor: str = "middle") -> Markup:
    frame = '<text class="{}" x="{:.3f}%" y="{:.3f}%" dy="{}" text-anchor="{}">{}</text>'
    return Markup(frame).format(css, x, y, dy, anchor, text)  # nosec B704  # a constant; format escapes


def _grid(lines: Sequence[tuple[float, str]]) -> Markup:
    """Horizontal lines at parts of the height, each with its value left of the plot."""
    frame = '<line class="grid" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/><text class="tick" x="-8" y="{0:.2f}%" '
    frame += 'dy="4" text-anchor="end">{1}</text>'
    return Markup("").join(Markup(frame).format(100 * (1 - part), label) for part, label in lines)  # nosec B704  # constants


def _cut_line(x: float, cut: float) -> Markup:
    line = Markup('<line class="cut" x1="{0:.3f}%" x2="{0:.3f}%" y1="-14" y2="100%"/>').format(x)
    return line + _text("cut-label", x, 0, f"cut {cut:.3f}", dy=-18, anchor="start" if x < 50 else "end")


def _figure(
    parts: Sequence[Markup],
    bars: Sequence[Bar],
    title: str,
    description: str,
    head: Sequence[str],
    height: int = 200,
) -> Markup:
    cells = Markup("").join(
        Markup("<tr><th scope=row>{}</th>{}</tr>").format(
            bar.label, Markup("").join(Markup("<td>{}</td>").format(cell) for cell in bar.cells)
        )
        for bar in bars
    )
    columns = Markup("").join(Markup("<th scope=col>{}</th>").format(name) for name in head)
    return Markup(
        '<figure class="chart"><figcaption><strong>{title}</strong> <span>{description}</span></figcaption>'
        '<div class="plot"><svg role="img" width="100%" height="{height}"><title>{title}</title>'
        "<desc>{description}</desc>{parts}</svg></div>"
        '<details><summary>Data</summary><div class="scroll" tabindex="0" role="region" aria-label="{title}, data">'
        "<table><thead><tr>{columns}</tr></thead><tbody>{cells}</tbody></table></div></details></figure>"
    ).format(
        title=title,
        description=description,
        height=height,
        parts=Markup("").join(parts),
        columns=columns,
        cells=cells,
    )
