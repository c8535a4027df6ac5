"""What WCAG 2.2 AA asks and a program can check: contrast, names, structure, keyboard, themes, small screens."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow
PAGES = ("/", "/jobs/{id}", "/jobs/{id}/tokens", "/keys")
READY = {
    "/": "table.jobs",
    "/jobs/{id}": "#shard-rows tr",
    "/jobs/{id}/tokens": ".document [role=option]",
    "/keys": "#key-rows tr",
}

LOW_CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
STRUCTURE = (Path(__file__).parent / "structure.js").read_text()


def open_page(browser: Any, path: str, job: dict[str, Any]) -> Page:
    page: Page = browser.open(path.format(id=job["id"]), READY[path])
    page.wait_for_timeout(300)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(shared: Any, browse: Any, finished: dict[str, Any], scheme: str) -> None:
    browser = browse(shared, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    for path in PAGES:
        page = open_page(browser, path, finished)
        layers = page.locator("#layers input").count()
        for number in range(max(layers, 1)):
            if layers:
                page.locator("#layers input").nth(number).check(force=True)
            measured = page.evaluate(LOW_CONTRAST)
            assert measured["checked"] > 10
            assert measured["found"] == [], f"{path} in {scheme}"
    login = browse(shared, signed_in=False, color_scheme=scheme).open("/login")
    assert login.evaluate(LOW_CONTRAST)["found"] == []


def test_names_and_structure(shared: Any, browse: Any, finished: dict[str, Any]) -> None:
    browser = browse(shared, viewport={"width": 1280, "height": 900})
    for path in PAGES:
        assert open_page(browser, path, finished).evaluate(STRUCTURE) == [], path
    assert browse(shared, signed_in=False).open("/login").evaluate(STRUCTURE) == []


def test_a_walk_by_keyboard_alone(shared: Any, browse: Any, finished: dict[str, Any]) -> None:
    """From signing in to reading a token, without a pointer; whatever has the focus shows it."""
    page = browse(shared, signed_in=False, viewport={"width": 1280, "height": 900}).open("/login")
    page.keyboard.type(shared.key)
    page.keyboard.press("Enter")
    page.wait_for_selector("table.jobs")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    walk_to(page, "finished")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/job_*")
    walk_to(page, "Tokens and cut")
    page.keyboard.press("Enter")
    page.wait_for_selector(".document [role=option]")
    walk_to(page, None, "threshold")
    before = page.locator("#kept-share").inner_text()
    page.keyboard.press("PageUp")
    expect(page.locator("#kept-share")).not_to_have_text(before)
    walk_to(page, None, "layer")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.value") == "loss_reference"
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "option":
            break
    page.keyboard.press("ArrowRight")
    expect(page.locator("#readout")).to_be_visible()
    expect(page.locator("#readout")).to_contain_text("token1")


def walk_to(page: Page, text: str | None, field: str | None = None) -> None:
    for _ in range(80):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => {
              const node = document.activeElement;
              const ring = node.matches(".segments input") ? node.nextElementSibling : node;
              const { outlineStyle } = getComputedStyle(ring);
              return { text: node.textContent.trim(), field: node.id || node.name || "", ring: outlineStyle };
            }"""
        )
        assert at["ring"] != "none", f"no visible focus on {at}"
        if (text and text in at["text"]) or (field and field == at["field"]):
            return
    raise AssertionError(f"{text or field} cannot be reached by Tab")


def test_the_theme_is_kept(shared: Any, browse: Any) -> None:
    browser = browse(shared, color_scheme="light")
    page = browser.open("/")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
    button.click()
    assert page.evaluate(ground) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) == dark


def test_pages_read_without_script(shared: Any, browse: Any, finished: dict[str, Any]) -> None:
    browser = browse(shared, java_script_enabled=False)
    page = browser.open("/")
    expect(page.get_by_role("link", name="finished")).to_be_visible()
    page.get_by_label("Name holds").fill("nothing like it")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#jobs")).to_contain_text("No job matches")
    page = browser.open(f"/jobs/{finished['id']}")
    expect(page.locator(".funnel").get_by_role("row", name="kept")).to_contain_text("60.0%")
    expect(page.locator("#log")).to_contain_text("publish: done")
    page = browser.open(f"/jobs/{finished['id']}/tokens")
    expect(page.locator("noscript .notice")).to_be_visible()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(
    shared: Any, browse: Any, finished: dict[str, Any], width: int, tmp_path: Path
) -> None:
    browser = browse(shared, viewport={"width": width, "height": 800})
    for path in PAGES:
        page = open_page(browser, path, finished)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_nothing_moves_for_those_who_asked(start: Any, browse: Any, job_spec: Any) -> None:
    service = start(CURATOR_MAX_RUNNING_JOBS="0")
    service.submit(job_spec())
    moving = "document.getAnimations().length"
    page = browse(service, reduced_motion="reduce").open("/", "table.jobs")
    page.evaluate("document.querySelector('.badge .icon').classList.add('turn')")
    assert page.evaluate(moving) == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == 1
