"""Whatever a text holds, its heat map holds it as text, and nothing in it becomes markup."""

import json
from html import unescape
from html.parser import HTMLParser
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.data import IntArray
from curator.errors import OutputError
from curator.report.heatmap import HeatScale, find_group_stops, render_heatmap
from curator.report.visible_text import as_shown

OUR_ELEMENTS = {"div", "b", "s", "u", "i"}
OUR_ATTRIBUTES = {"class", "data-facts", "role", "dir", "aria-label"}

NASTY = [
    "<script>alert(1)</script>",
    "</div></pre></style></script><h1>owned</h1>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!-- comment --> <![CDATA[ x ]]> <?php ?>",
    "&amp; &lt;b&gt; &#60; &#x3c; &copy &notin; &",
    "javascript:alert(1) {{ 7 * 7 }} {% raw %} ${x}",
    "\nfirst line feed and last\n\n",
    "carriage\r\nreturn\rand\ttab",
    "\x00 nul \x1b[31m escape \x7f del \x85 next line \x9f",
    "right-to-left \u202eevil\u202c and isolates \u2066x\u2069, marks \u200e\u200f",
    "invisible \u200b\u00ad\ufeff\u2060 separators \u2028\u2029 noncharacters \ufffe\U0001ffff\ufdd0 \ufffd",
    "emoji 🎉 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 combining e\u0301 a\u0308\u0323 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤",
    "العربية עברית हिन्दी ไทย 中文 日本語 한국어 ελληνικά русский አማርኛ ᏣᎳᎩ 𓂀 𝔘𝔫𝔦",
    "   leading and trailing spaces   ",
    "",
]


class Reader(HTMLParser):
    """Collects text, elements and attribute names, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.elements, self.attributes = "", [], set[str]()
        self.open: list[str] = []
        self.odd: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.odd.append(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def split_bytes(text: str, seed: int, longest: int = 5) -> IntArray:
    """Cut the text's bytes into tokens at random places, also within characters, with some of no bytes."""
    left, sizes, random = len(text.encode()), [0], np.random.default_rng(seed)
    while left:
        sizes.append(min(left, int(random.integers(0, longest))))
        left -= sizes[-1]
    return np.array([*sizes, 0], np.int32)


def render(text: str, token_bytes_T: IntArray, seed: int = 0) -> str:
    random = np.random.default_rng(seed)
    score_T = random.standard_normal(len(token_bytes_T)).astype(np.float32)
    score_T[:1] = np.nan
    logprobs = {"base": -np.abs(score_T), "reference": -2 * np.abs(score_T)}
    weights_T = (score_T > 0.2).astype(np.float32)
    return render_heatmap(
        text=text, token_bytes_T=token_bytes_T, weights_T=weights_T, score_T=score_T, logprobs=logprobs, label=text
    )


def check(text: str, seed: int) -> None:
    html = render(text, split_bytes(text, seed), seed)
    reader = Reader(html)
    assert reader.text == as_shown(text)
    assert {tag for tag, _ in reader.elements} <= OUR_ELEMENTS
    assert reader.attributes <= OUR_ATTRIBUTES
    assert not reader.odd
    assert not reader.open
    assert "\r" not in html  # a browser would turn a bare one into a line feed
    facts = json.loads(reader.elements[0][1]["data-facts"])
    assert sum(facts.get("groups", [1] * len(facts["score"]))) == len(facts["score"]) == len(facts["loss"]["base"])


@pytest.mark.parametrize("text", NASTY)
def test_nasty_texts_come_back_as_text(text: str) -> None:
    for seed in range(8):
        check(text, seed)


@given(st.text(st.characters(codec="utf-8")), st.integers(0, 1000))
def test_any_text_comes_back_as_text(text: str, seed: int) -> None:
    check(text, seed)


@given(
    st.lists(st.sampled_from([*NASTY, "<", "&", "</", "lt;", "#13;", "\r", "é", "🎉"]), max_size=8), st.integers(0, 9)
)
def test_payloads_that_tokens_cut_anywhere_come_back_as_text(parts: list[str], seed: int) -> None:
    check("".join(parts), seed)


def test_every_character_is_itself_but_for_controls() -> None:
    """States the mapping: C0 -> its picture, DEL -> U+2421, C1 -> U+2426, everything else unchanged."""
    for code in [*range(0xD800), *range(0xE000, 0x11000), 0x1F389, 0x10FFFF]:
        if code in (9, 10, 13) or 0x20 <= code < 0x7F or code > 0x9F:
            expected = chr(code)
        elif code < 0x20:
            expected = chr(0x2400 + code)
        else:
            expected = "\u2421" if code == 0x7F else "\u2426"
        assert as_shown(chr(code)) == expected


def test_a_character_of_several_tokens_is_shown_once_with_all_their_numbers() -> None:
    score_T = np.array([np.nan, 0.1, 2.0, -1.0, 0.3, 0.4], np.float32)
    html = render_heatmap(
        text="a🎉b",
        token_bytes_T=np.array([1, 1, 1, 1, 1, 1], np.int32),
        weights_T=np.array([0, 0, 1, 0, 0, 0], np.float32),
        score_T=score_T,
        logprobs={"base": score_T - 3},
    )
    assert html.count("🎉") == 1
    assert "<u>a</u>" in html
    assert '<b class="p5">🎉</b>' in html  # one of its tokens is kept: the strongest speaks for the character
    facts = json.loads(unescape(html.split('data-facts="')[1].split('"')[0]))
    assert facts["groups"] == [1, 4, 1]
    assert facts["score"] == [None, 0.1, 2.0, -1.0, 0.3, 0.4]
    assert facts["loss"]["base"] == [None, 2.9, 1.0, 4.0, 2.7, 2.6]


def test_groups_end_where_a_character_ends() -> None:
    for seed in range(50):
        text = "añ中🎉" * 9
        token_bytes_T = split_bytes(text, seed)
        encoded, ends = text.encode(), np.cumsum(token_bytes_T).tolist()
        expected = []
        for number, end in enumerate(ends):
            try:
                encoded[:end].decode()
            except UnicodeDecodeError:
                continue
            expected.append(number + 1)
        assert find_group_stops(encoded, token_bytes_T).tolist() == expected


def test_kept_dropped_and_unscored_differ_without_colour() -> None:
    html = render_heatmap(
        text="abcd",
        token_bytes_T=np.ones(4, np.int32),
        weights_T=np.array([0, 1, 0, 0.5], np.float32),
        score_T=np.array([np.nan, 2, -2, 0.6], np.float32),
        logprobs={},
        scale=HeatScale(centre=0.5, spread=2.0),
    )
    assert '<u>a</u><b class="p4">b</b><s class="n5">c</s><b class="p1">d</b>' in html


def test_infinite_scores_are_shown() -> None:
    score_T = np.array([np.nan, np.inf, -np.inf], np.float32)
    html = render_heatmap(
        text="abc",
        token_bytes_T=np.ones(3, np.int32),
        weights_T=np.array([0, 1, 0], np.float32),
        score_T=score_T,
        logprobs={"base": score_T},
    )
    assert '<b class="p5">b</b><s class="n5">c</s>' in html


def test_tokens_that_do_not_partition_the_text_are_an_error() -> None:
    with pytest.raises(OutputError, match="cover 3 of the text's 4 bytes"):
        render("abcd", np.array([1, 2], np.int32))
    one = np.ones(1, np.float32)
    with pytest.raises(OutputError, match=r"base has shape \(2,\)"):
        render_heatmap(
            text="a",
            token_bytes_T=np.ones(1, np.int32),
            weights_T=one,
            score_T=one,
            logprobs={"base": np.ones(2, np.float32)},
        )


def test_two_thousand_tokens_are_quick_and_small() -> None:
    text = "The quick brown fox jumps over <b>the</b> lazy dog, 日本語.\n" * 150
    token_bytes_T = split_bytes(text, 0, longest=10)
    render(text, token_bytes_T)
    started = perf_counter()
    html = render(text, token_bytes_T)
    assert (perf_counter() - started) / len(token_bytes_T) < 100e-6  # 10 us on an idle core
    assert len(html) / len(token_bytes_T) < 80
