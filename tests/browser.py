"""Open a page in headless Chromium, as a reader would, and say what happened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, sync_playwright

WIDTH = "document.documentElement.scrollWidth"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The Chromium of this machine: what CHROMIUM names, or the first one on the path."""
    return next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *NAMES))), None)


@dataclass(frozen=True)
class Seen:
    """What happened when a page was opened.

    Attributes:
        seconds: from the start of the navigation to the end of its load event.
        width: of the whole page, folded or not; more than the window's is a horizontal scroll.
        background: the colour of the body, as computed.
        errors: what the console and the page complained of.
        requests: every address that was asked for, the page's own first.
        text: what a reader can read.
        roles: the accessibility tree, as text.
    """

    seconds: float
    width: int
    background: str
    errors: list[str]
    requests: list[str]
    text: str
    roles: str


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


def look(
    browser: Browser,
    file: Path,
    width: int = 1280,
    theme: Literal["light", "dark"] = "light",
    *,
    picture: Path | None = None,
) -> Seen:
    """Open a page in a window of this width, then unfold all that is folded."""
    errors: list[str] = []
    requests: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=theme)
    page.on("console", lambda message: errors.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"failed: {request.url}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.resolve().as_uri(), wait_until="load")
    milliseconds = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    widths = [page.evaluate(WIDTH)]
    if picture is not None:
        page.screenshot(path=picture, full_page=True)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    widths.append(page.evaluate(WIDTH))
    seen = Seen(
        milliseconds / 1000,
        max(widths),
        page.evaluate("getComputedStyle(document.body).backgroundColor"),
        errors,
        [request for request in requests if not request.startswith("data:")],
        page.inner_text("body"),
        page.locator("body").aria_snapshot(),
    )
    page.close()
    return seen
