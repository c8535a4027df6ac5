"""The report is one file that asks nobody for anything, shows the numbers, and takes every text as text."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import curator.report
from curator.data import Cut
from curator.report.counts import GroupStatistics, merge
from curator.report.heatmap import LEVEL_EDGES
from curator.report.html import ReportData, render_report
from curator.report.samples import SampleDocument
from curator.report.statistics import ShardStatistics, measure_shard
from curator.report.visible_text import as_shown

EVIL = '</title></script></style></pre><script>alert("x")</script><img src=x onerror=y>&amp;\x00{{ 7 * 7 }}'
VOID = {"meta", "input"}


class Page(HTMLParser):
    """The page as a browser would see it: elements in order, and text by the class of its element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.heats: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.depth_of_heat = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self.open.append(tag)
        if dict(attrs).get("class") == "heat":
            self.depth_of_heat = len(self.open)
            self.heats.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if len(self.open) < self.depth_of_heat:
            self.depth_of_heat = 0

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.depth_of_heat:
            self.heats[-1] += data


def make_data(text: str = "Two and two are four.\n", name: str = "math-web", source: str = "books") -> ReportData:
    size = len(text.encode())
    random = np.random.default_rng(0)
    score_T = random.standard_normal(size).astype(np.float32)
    score_T[0] = np.nan
    weights_T = np.where(score_T > 0.125, np.float32(1.25), np.float32(0))
    logprobs = {"base": -np.abs(score_T) - 1, "reference": -np.abs(score_T)}
    statistics = measure_shard(
        sources=[source],
        offsets=np.array([0, size]),
        token_bytes_T=np.ones(size, np.int32),
        score_T=score_T,
        weights_T=weights_T,
        logprobs=logprobs,
        cut=0.125,
    )
    sample = SampleDocument(
        doc_id=name,
        source=source,
        text=text,
        token_bytes=np.ones(size, np.int32),
        weights=weights_T,
        score=score_T,
        logprobs=logprobs,
        reason="among the most kept",
        total_tokens=12_345,
    )
    return ReportData(
        name=name,
        statistics=statistics,
        totals={"duplicate_ids": 3},
        cuts={"": Cut(value=0.125, share=0.5)},
        policy={"kind": "excess_loss", "keep": 0.6, "scope": "corpus", "soft": None},
        models={"base": {"id": name, "engine": "bigram"}, "reference": {"id": "tiny", "engine": "bigram"}},
        quarantined={"invalid_utf8": 2, source: 1},
        samples=[sample],
        stages=[("tokenize", 1_000_000, 2.0, 2), ("score base", 1_000_000, 0.0, 1)],
        spec_yaml=f"name: {name}\n",
    )


def test_every_text_stays_text() -> None:
    page = Page(render_report(make_data(text=EVIL * 3, name=EVIL, source=EVIL)))
    assert page.heats == [as_shown(EVIL * 3)]
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "audio", "video", "image", "use"} & {
        tag for tag, _ in page.elements
    }
    assert not page.open
    assert page.text.count(as_shown(EVIL)) >= 8  # title, heading, sample, table of sources, model, spec, ...
    assert "49" not in page.text.split("math")[0][:500]
    assert "\x00" not in page.text


def test_it_asks_nobody_for_anything() -> None:
    html = render_report(make_data())
    page = Page(html)
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "style", "action", "data", "poster", "ping", "background"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            assert name != "href" or (value or "").startswith("#"), (tag, value)
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", html)
    assert not re.search(r"\b(fetch|XMLHttpRequest|innerHTML|eval|import)\b\s*[(=]", html)


def test_its_content_policy_allows_its_own_style_and_script_alone() -> None:
    html = render_report(make_data())
    policy = next(attributes["content"] for tag, attributes in Page(html).elements if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_it_shows_the_numbers() -> None:
    data = make_data()
    text = Page(render_report(data)).text
    total = data.statistics.total
    for expected in (
        "math-web",
        f"{100 * total.kept / total.scored:.1f}%",
        "+0.125",
        "cut 0.125",
        "excess_loss",
        "keep 0.6 · scope corpus",
        "tokens 0–22 of 12,345",
        "among the most kept",
        "500 K",  # tokens a second
        f"Mean {total.losses['base'].total / total.losses['base'].tokens:.3f} nats",
        "invalid_utf8",
        "arXiv:2404.07965",
    ):
        assert expected in text, expected
    assert render_report(data) == render_report(data)


def test_a_report_without_models_samples_or_cut_says_so() -> None:
    empty = ReportData(name="empty", statistics=ShardStatistics(), policy={"kind": "keep_all"})
    text = " ".join(Page(render_report(empty)).text.split())
    for expected in ("No document is shown", "None: every row", "Not recorded", "no model was needed", "none"):
        assert expected in text, expected


def test_lost_shards_are_named() -> None:
    text = " ".join(Page(render_report(replace(make_data(), totals={"lost_shards": 2}, quarantined={}))).text.split())
    assert "2 shards failed after all retries" in text
    assert "and 2 whole shards lost" in text
    assert "every row of the corpus" not in text


def test_many_sources_and_cuts_are_folded_with_a_word() -> None:
    group = GroupStatistics(documents=1, tokens=10, scored=9, kept=3)
    sources = {f"s{number:04d}": group for number in range(450)}
    statistics = ShardStatistics(total=group, sources=sources)
    data = replace(make_data(), statistics=statistics, cuts={name: Cut(value=1, share=0) for name in sources})
    text = " ".join(Page(render_report(data)).text.split())
    assert "180 more sources, and the rest" in text
    assert "(250 other sources)" in text
    assert "450 cuts, by scope" in text
    assert "250 more cuts are in manifest.json" in text
    folded = merge(statistics, ShardStatistics(others=group, others_sources=7))
    text = " ".join(Page(render_report(replace(data, statistics=folded))).text.split())
    assert "(up to 257 other sources)" in text
    assert "more sources than shards name each" in text


def test_script_and_page_agree_on_colour_levels() -> None:
    script = (Path(curator.report.__file__).parent / "report.js").read_text()
    assert f"EDGES = {list(LEVEL_EDGES)};" in script


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_text_colour_has_the_contrast_of_wcag_aa(mode: str) -> None:
    style = (Path(curator.report.__file__).parent / "report.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", style.split("prefers-color-scheme: dark")[mode == "dark"]))
    levels = [f"{kind}{level}" for kind in "npq" for level in range(1, 6)]
    pairs = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("paper", "panel")]
    pairs += [("ink", level) for level in levels] + [
        ("faded", level) for level in [*levels, "paper"] if level[:2] not in ("p4", "p5")
    ]
    for ink, ground in pairs:
        light, dark = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)
