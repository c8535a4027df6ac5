"""The curves as an SVG that reads on light and dark pages alike: loss against positions forwarded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

WIDTH, HEIGHT, LEFT, TOP, GAP, LEGEND = 900, 380, 56, 44, 64, 22
COLORS = (
    "#57606a", "#0969da", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#bf3989", "#0a7ea4", "#e16f24", "#7cb518",
    "#116329", "#953800",
)  # fmt: skip
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-size: 14px; font-weight: 600; fill: #24292f } .axis { stroke: #d0d7de }
@media (prefers-color-scheme: dark) { text { fill: #9198a1 } .title { fill: #e6edf3 } .axis { stroke: #3d444d } }"""


def draw(summary: Mapping[str, Any], file: Path) -> None:
    """Two panels side by side, target and held-out mix, with a legend below."""
    names = list(summary["curves"])
    height = HEIGHT + LEGEND * -(-len(names) // 3) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Loss against tokens forwarded, by arm</title>", f"<style>{STYLE}</style>",
    ]  # fmt: skip
    panel = (WIDTH - 2 * LEFT - GAP) // 2
    for number, (part, title) in enumerate((("target", "Target test set"), ("retain", "Held-out mix"))):
        parts += _panel(summary, part, f"{title}, nats per token", LEFT + number * (panel + GAP), panel)
    for number, name in enumerate(names):
        x, y = LEFT + number % 3 * (WIDTH - LEFT) // 3, HEIGHT + 8 + LEGEND * (number // 3)
        label = escape(summary["arms"][name]["label"])
        parts.append(f'<path d="M{x} {y - 4}h22" stroke-width="3" {_stroke(number)}/>')
        parts.append(f'<text x="{x + 28}" y="{y}">{label}</text>')
    file.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _stroke(number: int) -> str:
    dashes = ' stroke-dasharray="5 3"' if number >= len(COLORS) else ""
    return f'stroke="{COLORS[number % len(COLORS)]}"{dashes}'


def _panel(summary: Mapping[str, Any], part: str, title: str, left: int, width: int) -> list[str]:
    curves = summary["curves"]
    values = np.concatenate([curve[part] for curve in curves.values()])
    low, high = float(values.min()), float(values.max())
    most = max(curve["tokens"][-1] for curve in curves.values())
    bottom = HEIGHT - 40

    def place(tokens: float, loss: float) -> str:
        return f"{left + width * tokens / most:.1f} {TOP + (bottom - TOP) * (high - loss) / (high - low):.1f}"

    lines = [
        f'<text x="{left}" y="{TOP - 18}" class="title">{title}</text>',
        f'<path d="M{left} {TOP}V{bottom}H{left + width}" fill="none" class="axis"/>',
        f'<text x="{left + width}" y="{bottom + 18}" text-anchor="end">{most / 1e6:g} M tokens forwarded</text>',
    ]
    for loss in np.linspace(low, high, 5):
        y = place(0, loss).split()[1]
        lines.append(f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
    for number, curve in enumerate(curves.values()):
        points = " L".join(place(t, loss) for t, loss in zip(curve["tokens"], curve[part], strict=True))
        lines.append(f'<path d="M{points}" fill="none" stroke-width="1.8" {_stroke(number)}/>')
    return lines
