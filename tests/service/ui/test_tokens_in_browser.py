"""The token map on a real job: layers, samples, the movable cut, the keyboard, and how fast it all is."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow
FIRST = ".document:first-of-type .tokens [role=option]"


@pytest.fixture
def page(shared: Any, browse: Any, finished: dict[str, Any]) -> Page:
    opened: Page = browse(shared, viewport={"width": 1280, "height": 900}).open(f"/jobs/{finished['id']}/tokens", FIRST)
    expect(opened.locator("#kept-share")).to_have_text("60.0%")
    return opened


@pytest.fixture
def look(shared: Any, finished: dict[str, Any]) -> Any:
    def ask(what: str) -> Any:
        with shared.client() as client:
            return client.get(f"/v1/jobs/{finished['id']}/{what}").raise_for_status().json()

    return ask


def marks(page: Page, document: int) -> list[str]:
    """k, d or u for each token of a document."""
    read = "nodes => nodes.map(node => node.className.split(' ')[0])"
    found: list[str] = page.locator(".document").nth(document).locator("[role=option]").evaluate_all(read)
    return found


def test_the_map_shows_text_and_decisions_of_the_job(page: Page, look: Any) -> None:
    documents = look("preview?select=all&limit=6")["documents"]
    assert page.locator(".document").count() == len(documents) == 6
    for number, document in enumerate(documents):
        box = page.locator(".document").nth(number).locator("[role=listbox]")
        shown = box.evaluate("node => node.textContent")
        assert shown == "".join(document["tokens"])
        if document["groups"] is None:
            scored = [value is not None for value in document["layers"]["score"]]
            weights = zip(document["weights"], scored, strict=True)
            assert marks(page, number) == ["k" if weight > 0 else "d" if known else "u" for weight, known in weights]


def test_decisions_show_without_colour(page: Page) -> None:
    kept, dropped, unscored = (page.locator(f".document .tokens .{state}").first for state in "kdu")
    style = "(node, name) => getComputedStyle(node)[name]"
    assert "inset" in kept.evaluate(style, "boxShadow")
    assert dropped.evaluate(style, "textDecorationLine") == "line-through"
    assert unscored.evaluate(style, "outlineStyle") == "dotted"
    assert kept.get_attribute("aria-selected") == "true"
    assert dropped.get_attribute("aria-selected") == "false"


def test_layers_change_colours_and_leave_decisions(page: Page, look: Any) -> None:
    document = look("preview?select=all&limit=6")["documents"][0]
    before = marks(page, 0)
    read = "nodes => nodes.map(node => getComputedStyle(node).backgroundColor)"
    drawn = {"score": page.locator(FIRST).evaluate_all(read)}
    for label, layer in (("Loss of reference", "loss_reference"), ("Loss of base", "loss_base"), ("Weight", "weight")):
        page.get_by_role("radio", name=label).check(force=True)
        drawn[layer] = page.locator(FIRST).evaluate_all(read)
        assert marks(page, 0) == before
    assert len({tuple(colours) for colours in drawn.values()}) == 4
    # equal values look equal, and the extremes of a layer do not
    losses = document["layers"]["loss_reference"]
    known = [index for index, loss in enumerate(losses) if loss is not None]
    low, high = min(known, key=losses.__getitem__), max(known, key=losses.__getitem__)
    assert drawn["loss_reference"][low] != drawn["loss_reference"][high]


def test_samples(page: Page, look: Any) -> None:
    for label, select in (("Most kept", "kept"), ("Most dropped", "dropped"), ("Near the cut", "near")):
        page.get_by_role("radio", name=label).check(force=True)
        first = look(f"preview?select={select}&limit=6")["documents"][0]
        expect(page.locator(".document h3").first).to_contain_text(first["doc_id"])


def test_the_slider_shows_the_kept_share_at_once_and_marks_tokens(page: Page, look: Any) -> None:
    histogram = look("histograms")["score"]
    documents = look("preview?select=all&limit=6")["documents"]
    slider = page.get_by_role("slider")
    slider.focus()
    for key in ("PageDown", "End", "Home", "ArrowRight", "PageUp"):
        page.keyboard.press(key)
        cut = float(slider.input_value())
        share = share_above(histogram["edges"], histogram["scored"], cut)
        shown = "<0.1%" if 0 < share < 0.001 else ">99.9%" if 0.999 < share < 1 else f"{100 * share:.1f}%"
        expect(page.locator("#kept-share")).to_have_text(shown)
        expect(page.locator("#threshold-value")).to_have_text(f"{cut:+.3f}".replace("-", "−"))
        assert (slider.get_attribute("aria-valuetext") or "").endswith(f", {shown} kept")
        scores = documents[0]["layers"]["score"]
        assert marks(page, 0) == ["u" if score is None else "k" if score >= cut else "d" for score in scores]
    expect(page.locator("#use-cut-text")).to_contain_text(f'"keep": {round(share, 4)!r}')
    page.get_by_role("button", name="Back to the job’s cut").click()
    expect(page.locator("#kept-share")).to_have_text("60.0%")
    assert marks(page, 0) == [
        "u" if s is None else "k" if w > 0 else "d" for s, w in zip(scores, documents[0]["weights"], strict=True)
    ]


def share_above(edges: list[float], counts: list[int], cut: float) -> float:
    """Tokens above a cut, spread evenly within a bin: counted from below, as the page does not."""
    below = 0.0
    for low, high, tokens in zip(edges[:-1], edges[1:], counts, strict=True):
        below += tokens * min(max((cut - low) / (high - low), 0.0), 1.0)
    return 1 - below / sum(counts)


def test_the_cut_moves_by_source_too(page: Page, look: Any) -> None:
    sources = [source for source in look("histograms")["sources"] if source["score"]]
    rows = page.locator("#sources tbody tr")
    expect(rows).to_have_count(len(sources))
    for number, source in enumerate(sources):
        kept = source["counts"]["kept"] / source["counts"]["scored"]
        expect(rows.nth(number).locator("td").last).to_have_text(f"{100 * kept:.1f}%")
    page.get_by_role("slider").focus()
    page.keyboard.press("PageUp")
    cut = float(page.get_by_role("slider").input_value())
    for number, source in enumerate(sources):
        share = share_above(source["score"]["edges"], source["score"]["scored"], cut)
        expect(rows.nth(number).locator("td").last).to_have_text(f"{100 * share:.1f}%")


def test_tokens_are_read_by_keyboard(page: Page, look: Any) -> None:
    document = look("preview?select=all&limit=6")["documents"][0]
    page.locator(FIRST).first.focus()
    for key, expected in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", len(document["tokens"]) - 1),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        focused = page.evaluate("[...document.activeElement.parentNode.children].indexOf(document.activeElement)")
        assert focused == expected
        expect(page.locator("#readout")).to_contain_text(f"token{expected}")
    page.keyboard.press("ArrowRight")
    described = page.evaluate(
        "document.getElementById(document.activeElement.getAttribute('aria-describedby')).textContent"
    )
    assert f"{document['weights'][1]:.3f}" in described
    assert f"{document['layers']['loss_reference'][1]:.3f}" in described
    assert ("kept" if document["weights"][1] > 0 else "dropped") in described
    top = page.evaluate("document.activeElement.getBoundingClientRect().top")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > top
    assert page.locator(".document:first-of-type [role=option][tabindex='0']").count() == 1
    page.keyboard.press("Tab")  # one stop for each document, not one for each token
    assert page.evaluate("document.activeElement.closest('.document') === document.querySelectorAll('.document')[1]")


def test_two_thousand_tokens_are_fast(page: Page) -> None:
    """Drawn and laid out under 200 ms, a layer changed under 50 ms; the bounds here leave room for a busy machine."""
    measured = page.evaluate((Path(__file__).parent / "speed.js").read_text())
    medians = {what: sorted(times)[len(times) // 2] for what, times in measured.items()}
    print("2,000 tokens, median ms with layout:", {what: round(ms, 1) for what, ms in medians.items()})
    assert medians["draw"] < 400 and medians["layer"] < 150 and medians["cut"] < 150
