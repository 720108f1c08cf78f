"""A headless Chromium, and pages of it that remember everything that went wrong on them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

try:
    from playwright.sync_api import Browser, Page, expect, sync_playwright
except ImportError:  # the extra `browser` is not installed
    sync_playwright = None  # type: ignore[assignment]

WAIT_MS = 60_000
"""A model on a busy machine is slow; nothing here measures time."""
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb")


def missing() -> str | None:
    """What is not there that these tests need."""
    if sync_playwright is None:
        return "Playwright is not installed: pip install 'decoding-server[browser]'"
    if shutil.which("chromium") is None:
        return "there is no chromium on the PATH: apt-get install chromium"
    return None


def need_browser() -> None:
    """Skips with the reason, or fails where DECODING_SERVER_TEST_BROWSER=required."""
    reason = missing()
    if reason is None:
        return
    if os.environ.get("DECODING_SERVER_TEST_BROWSER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def chromium() -> "Iterator[Browser]":
    """The system's own browser: Playwright downloads none."""
    need_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page of the playground. faults: console errors and warnings, uncaught exceptions, requests to elsewhere."""

    def __init__(self, browser: "Browser", url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(WAIT_MS)
        expect.set_options(timeout=WAIT_MS)
        self.page: Page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self._console(message.type, message.text))
        self.page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        self.page.on("request", lambda request: self._request(request.url))

    def _console(self, kind: str, text: str) -> None:
        # The browser itself reports every answer of 400 and up; that is what a test of errors causes.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.faults.append(f"{kind}: {text}")

    def _request(self, url: str) -> None:
        if not url.startswith(self.url):
            self.faults.append(f"request to {url}")

    def open(self) -> "Visit":
        self.page.goto(self.url)
        expect(self.page.locator("#app")).to_be_visible()
        return self

    def settings(self) -> None:
        """Unfolds the settings, which a narrow page begins with folded."""
        if not self.page.locator("#model").is_visible():
            self.page.get_by_text("Settings", exact=True).click()

    def choose(self, slot: str, strategy: str, lane: str = "A") -> None:
        """A strategy for a slot of a lane."""
        self.page.locator(f"#{slot}-{lane}").select_option(strategy)

    def fill(self, path: str, value: str, lane: str = "A") -> None:
        """A field, by its place in the request."""
        field = self.page.get_by_label(f"Settings of {lane}").locator(f'[data-path="{path}"]')
        box = field.locator("xpath=ancestor::details[not(@id)]")
        if box.count() and not field.is_visible():
            box.first.locator("summary").first.click()
        if field.evaluate("one => one.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)

    def ask(self, text: str) -> None:
        self.page.get_by_label("Message").fill(text)
        self.page.get_by_role("button", name="Send").click()

    def finished(self, lane: str = "A") -> None:
        """Waits for the end of an answer."""
        expect(self.lane(lane).locator(".status")).to_contain_text("Done:")

    def lane(self, name: str = "A") -> Any:
        return self.page.locator(f'section[aria-label="Lane {name}"]')

    def part(self, name: str, lane: str = "A") -> Any:
        """A labelled part of a lane."""
        return self.lane(lane).get_by_label(name, exact=True)

    def answer(self, lane: str = "A") -> str:
        text: str = self.lane(lane).locator(".assistant .text").last.inner_text()
        return text

    def close(self) -> None:
        self.context.close()
