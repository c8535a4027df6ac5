"""The report: one self-contained HTML file that shows what was kept, what was dropped and why.

The file asks nobody for anything: style and script are inlined, and its content policy allows just these two, by
their digests. Whatever the corpus holds is text in it. It holds no time of day, so the same dataset gives the same
report.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from curator.data import Cut
from curator.report.charts import draw_columns, draw_histogram, format_count, format_share, share_bar
from curator.report.counts import NOISE_NATS, ShardStatistics
from curator.report.heatmap import HeatScale, render_heatmap
from curator.report.histogram import add_histograms, quantile_bin
from curator.report.samples import SampleDocument
from curator.report.summaries import bin_bars, cut_rows, headline_figures, model_rows, source_rows
from curator.report.visible_text import as_shown

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows.

    Attributes:
        name: the dataset's name.
        statistics: of all its shards, merged.
        totals: the manifest's totals; only `duplicate_ids` and `lost_shards` are not in `statistics`.
        cuts: by scope key: "" for the corpus, a source's name, a shard's number.
        policy: the policy's settings as in the spec.
        models: by name, the fields of its `ModelIdentity`.
        quarantined: rows by reason.
        samples: documents to show token by token, see `choose_samples`.
        stages: (name, tokens, seconds, workers) each; seconds of wall time.
        spec_yaml: the whole spec.
        score_name: what the policy's score is, with its unit; None: derived from the policy's kind.
    """

    name: str
    statistics: ShardStatistics
    totals: Mapping[str, Any] = field(default_factory=dict)
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quarantined: Mapping[str, int] = field(default_factory=dict)
    samples: Sequence[SampleDocument] = ()
    stages: Sequence[tuple[str, int, float, float]] = ()
    spec_yaml: str = ""
    score_name: str | None = None


_SCORE_NAMES = {
    "excess_loss": "excess loss in nats",
    "loss": "loss score in nats",
    "noise": "fit in nats",
    "random": "random number",
}


def render_report(data: ReportData) -> str:
    """Render the report as one HTML document."""
    style, script = ((_FOLDER / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: as_shown(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": format_count}
    named, other, folded = source_rows(data.statistics)
    return environment.get_template("report.html").render(
        data=data,
        total=data.statistics.total,
        style=Markup(style),  # nosec B704  # this package's own file
        script=Markup(script),  # nosec B704  # this package's own file
        policy_csp=f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'",
        figures=headline_figures(data.statistics, data.cuts, data.policy, data.models, data.quarantined, data.totals),
        samples=render_samples(data),
        score_chart=_draw_score(data),
        loss_charts=_draw_losses(data.statistics),
        position_chart=_draw_positions(data.statistics),
        length_chart=_draw_lengths(data.statistics),
        sources=named,
        other_source=other,
        sources_folded=folded,
        model_names=sorted(data.statistics.losses),
        cuts=cut_rows(data.cuts),
        models=model_rows(data.models),
        lost_shards=data.totals.get("lost_shards", 0),
        noise=NOISE_NATS,
        near_share=format_share(data.statistics.near_cut, data.statistics.near_cut_of),
        share=format_share,
        share_bar=share_bar,
    )


def render_samples(data: ReportData) -> list[dict[str, Any]]:
    """Token heat maps with their headings, for the template; one colour scale for all of them."""
    scale = _choose_scale(data)
    rendered = []
    for sample in data.samples:
        centre = scale.centre if sample.cut is None else sample.cut
        shown, tokens = len(sample.token_bytes), sample.total_tokens or len(sample.token_bytes)
        scored = int(np.count_nonzero(~np.isnan(sample.score)))
        share = np.count_nonzero(sample.weights > 0) / max(scored, 1)
        heat = render_heatmap(
            text=sample.text,
            token_bytes_T=sample.token_bytes,
            weights_T=sample.weights,
            score_T=sample.score,
            logprobs=sample.logprobs,
            scale=replace(scale, centre=centre, is_cut=scale.is_cut or sample.cut is not None),
            label=f"Tokens of {sample.doc_id}",
        )
        rendered.append(
            {
                "sample": sample,
                "heat": Markup(heat),  # nosec B704  # heatmap.py has escaped the text
                "kept": format_share(share if sample.kept_share is None else sample.kept_share, 1),
                "extent": f"tokens 0–{shown:,} of {tokens:,}" if shown < tokens else f"all {tokens:,} tokens",
                "is_cut": shown < tokens,
            }
        )
    return rendered


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _score_name(data: ReportData) -> str:
    return data.score_name or _SCORE_NAMES.get(str(data.policy.get("kind")), "score")


def _choose_scale(data: ReportData) -> HeatScale:
    """Colours that use their whole range on nearly all tokens: strongest from the 95th percentile on."""
    cut = data.cuts.get("")
    centre = 0.0 if cut is None or not np.isfinite(cut.value) else cut.value
    scored, _ = data.statistics.score.expand()
    (low, _), (_, high) = quantile_bin(scored, 0.05), quantile_bin(scored, 0.95)
    losses = [quantile_bin(histogram.expand()[0], 0.95)[1] for histogram in data.statistics.losses.values()]
    weights = [float(sample.weights.max(initial=0)) for sample in data.samples]
    return HeatScale(
        centre=centre,
        is_cut=cut is not None,
        spread=max(abs(low - centre), abs(high - centre), 1 / 16),
        loss_max=max([*losses, 1.0]),
        weight_max=max([*weights, 1e-6]),
    )


def _draw_score(data: ReportData) -> Markup:
    cut = data.cuts.get("")
    name = _score_name(data)
    return draw_histogram(
        data.statistics.score,
        title=f"Tokens by {name}",
        description="Kept tokens are filled, dropped ones outlined.",
        unit=name,
        cut=None if cut is None else cut.value,
        height=280,
    )


def _draw_losses(statistics: ShardStatistics) -> list[Markup]:
    charts = []
    together = add_histograms(statistics.losses.values())
    for model, histogram in sorted(statistics.losses.items()):
        sums = statistics.total.losses[model]
        kept = f"{sums.kept_total / sums.kept_tokens:.3f}" if sums.kept_tokens else "–"
        mean = f"{sums.total / sums.tokens:.3f}" if sums.tokens else "–"
        described = f"Mean {mean} nats over all scored tokens, {kept} over the kept ones."
        charts.append(
            draw_histogram(
                histogram, title=f"Loss under {model}", description=described, unit="loss in nats", like=together
            )
        )
    return charts


def _draw_positions(statistics: ShardStatistics) -> Markup:
    return draw_columns(
        bin_bars(statistics.positions),
        title="By position in the document",
        description="Kept share of the scored tokens at position t. Columns begin at the number below.",
        head=("position", "documents", "tokens", "scored", "kept", "kept share"),
    )


def _draw_lengths(statistics: ShardStatistics) -> Markup:
    return draw_columns(
        bin_bars(statistics.lengths),
        title="By length of the document",
        description="Kept share of the scored tokens in documents of this length. Columns begin at the number below.",
        head=("tokens in document", "documents", "tokens", "scored", "kept", "kept share"),
    )
