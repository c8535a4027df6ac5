"""Draw `results/scoring.json` as bars, in an SVG that reads on light and dark pages alike.

python benchmarks/plot_scoring.py > docs/scoring.svg
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, LABELS, VALUES = 760, 240, 70
BAR, GAP, TOP, BOTTOM = 20, 8, 62, 34
OURS = ("vllm", "vllm, eager", "transformers")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.note { font-size: 12px; fill: #57606a }
.ours { fill: #0969da } .other { fill: #9aa4ae } .limit { stroke: #cf222e; stroke-dasharray: 5 4 }
.limit-text { fill: #cf222e; font-size: 12px }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9198a1 }
  .ours { fill: #4493f8 } .other { fill: #656c76 } .limit { stroke: #ff7b72 } .limit-text { fill: #ff7b72 }
}"""


def bars(sections: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Name and tokens per second on the mix, the fastest first."""
    engines = sections.get("speed", {}).get("engines", {})
    found = [(name, one["tokens_per_s"]["mix"]) for name, one in engines.items() if "mix" in one["tokens_per_s"]]
    return sorted(found, key=lambda bar: -bar[1])


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def draw(results: Mapping[str, Any]) -> str:
    """The SVG's source."""
    sections = results["sections"]
    rows = bars(sections)
    limit = sections.get("limit", {}).get("model", {}).get("tokens_per_s")
    run = results["runs"].get(sections.get("speed", {}).get("run"), {})
    height = TOP + len(rows) * (BAR + GAP) + BOTTOM
    scale = (WIDTH - LABELS - VALUES) / max([1.0, *(value for _, value in rows), limit or 0.0])
    model = run.get("model", "").partition(".")[0]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="Tokens scored per second">',
        f"<style>{STYLE}</style>",
        text(12, 24, "Tokens scored per second", "title"),
        text(12, 44, f"{model}, bfloat16, documents of the mix, {run.get('threads', '')} threads", "note"),
    ]
    for i, (name, value) in enumerate(rows):
        y = TOP + i * (BAR + GAP)
        kind = "ours" if name in OURS else "other"
        parts += [
            text(LABELS - 10, y + 15, name, "", "end"),
            f'<rect x="{LABELS}" y="{y}" width="{value * scale:.1f}" height="{BAR}" rx="3" class="{kind}"/>',
            text(LABELS + value * scale + 6, y + 15, f"{value:,.0f}"),
        ]
    if limit and rows:
        x, end = LABELS + limit * scale, height - BOTTOM
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{end}" class="limit"/>')
        parts.append(text(x, TOP - 14, f"limit of the matrix products: {limit:,.0f}", "limit-text", "end"))
    parts.append(text(12, height - 12, f"{run.get('cpu', '')}; engines of this project in blue", "note"))
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    print(draw(json.loads((Path(__file__).parent / "results" / "scoring.json").read_text())), end="")
