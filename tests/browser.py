"""Open a page in headless Chromium, as a reader would, and say what happened."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The Chromium of this machine: what CHROMIUM names, or the first one on the path."""
    return next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *NAMES))), None)


@dataclass(frozen=True)
class Seen:
    """What happened when a page was opened.

    Attributes:
        seconds: from the start of the navigation to the end of its load event.
        width: of the whole page; more than the window's is a horizontal scroll.
        background: the colour of the body, as computed.
        errors: what the console and the page complained of.
        requests: every address that was asked for, the page's own among them.
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


def look(
    page_file: Path,
    width: int = 1280,
    theme: Literal["light", "dark"] = "light",
    *,
    unfold: bool = False,
    picture: Path | None = None,
    chromium: str | None = None,
) -> Seen:
    """Open a page in a window of this width; `unfold` opens what is folded."""
    errors: list[str] = []
    requests: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=chromium or find_chromium(), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=theme)
        page.on("console", lambda message: errors.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(f"failed: {request.url}"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.resolve().as_uri(), wait_until="load")
        milliseconds = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        if unfold:
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        seen = Seen(
            milliseconds / 1000,
            page.evaluate("document.documentElement.scrollWidth"),
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
            errors,
            requests,
            page.inner_text("body"),
            page.locator("body").aria_snapshot(),
        )
        if picture is not None:
            page.screenshot(path=picture, full_page=True)
        browser.close()
    return seen
