"""Real Chromium on a real service; every page is watched for what must never happen.

A page that violates its policy, asks another host for anything, throws, opens a dialog or lets corpus text run fails
its test, whatever the test is about.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WATCH = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`VIOLATED ${event.violatedDirective} ${event.blockedURI}`);
});
Object.defineProperty(window, "executed", { set() { console.error("EXECUTED"); } });
"""


@dataclass
class Watched:
    """A browser's context on one service, and what it did wrong."""

    context: BrowserContext
    url: str
    faults: list[str] = field(default_factory=list)

    def open(self, path: str, ready: str = "main") -> Page:
        """A new page of the service."""
        page = self.context.new_page()
        page.goto(self.url + path)
        page.wait_for_selector(ready)
        return page

    def sign_in(self, key: str | None) -> None:
        """Sign in by the form."""
        page = self.open("/login")
        page.get_by_label("API key").fill(key or "")
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(self.url + "/")
        page.close()

    def check(self) -> None:
        """Fail if anything was wrong."""
        assert not self.faults


OpenBrowser = Callable[..., Watched]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Browser) -> Iterator[OpenBrowser]:
    """Open watched browsers: `browse(service, key=..., **options of the context)`."""
    opened: list[Watched] = []

    def begin(service: Any, *, key: str | None = None, signed_in: bool = True, **options: Any) -> Watched:
        context = chromium.new_context(**options)
        watched = Watched(context, service.url)
        if options.get("java_script_enabled", True):
            context.add_init_script(WATCH)
        _listen(context, watched)
        opened.append(watched)
        if signed_in:
            watched.sign_in(key or service.key)
        return watched

    yield begin
    try:
        for watched in opened:
            watched.check()
    finally:
        for watched in opened:
            watched.context.close()


def _listen(context: BrowserContext, watched: Watched) -> None:
    host = urlsplit(watched.url).netloc

    def refuse_dialog(dialog: Any) -> None:
        watched.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def look_at_request(request: Any) -> None:
        if urlsplit(request.url).netloc != host and not request.url.startswith("data:"):
            watched.faults.append(f"outside request: {request.url}")

    def look_at_message(message: Any) -> None:
        if any(word in message.text for word in ("Content Security Policy", "VIOLATED", "EXECUTED")):
            watched.faults.append(f"console: {message.text}")

    context.on("dialog", refuse_dialog)
    context.on("request", look_at_request)
    context.on("console", look_at_message)
    context.on("weberror", lambda error: watched.faults.append(f"error: {error.error}"))


@pytest.fixture(scope="module")
def finished(shared: Any, job_spec: Any) -> dict[str, Any]:
    """A finished job of the shared service."""
    job = shared.wait(shared.submit(job_spec(name="finished"))["id"])
    assert job["status"] == "completed", job["error"]
    return dict(job)
