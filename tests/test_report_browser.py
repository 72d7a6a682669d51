"""The report in a real browser: nothing is asked for, complained of, or wider than the window."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser
from tests import cli_fixtures, comparisons
from tests.browser import chromium, find_chromium, look

import secateurs as sc


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        if os.environ.get("SECATEURS_BROWSER") == "required":
            pytest.fail("no Chromium is installed: install one, or name it in CHROMIUM")
        pytest.skip("no Chromium is installed (`make test-browser` insists on one)")
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = sc.prune(
        cli_fixtures.build(), torch.zeros(1, 1, 8, 8), train=cli_fixtures.train(),
        loss=cli_fixtures.loss, budget={"macs": 0.5}, evaluate=cli_fixtures.accuracy,
        metric="accuracy", updates=2, final=2, progress=False,
    )  # fmt: skip
    return result.report(tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_opens_in_peace(browser: Browser, page: Path, width: int, theme: str) -> None:
    seen = look(browser, page, width, theme)
    assert seen.errors == []
    assert seen.requests == [page.as_uri()]
    assert seen.width == width
    assert "Before and after" in seen.text
    assert "conv1.weight [2, 3]" in seen.text
    dark = max(map(int, seen.background[4:-1].split(", "))) < 64
    assert dark == (theme == "dark")


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_of_a_comparison_opens_in_peace(
    browser: Browser, tmp_path: Path, width: int, theme: str
) -> None:
    page = comparisons.typical().report(tmp_path / "comparison.html")
    seen = look(browser, page, width, theme)
    assert seen.errors == []
    assert seen.requests == [page.as_uri()]
    assert seen.width == width
    assert "Use taylor" in seen.text
    for line in (
        'heading "Which criterion for Net?" [level=1]',
        'heading "Beside the oracle" [level=2]',
        'img "One-shot, then fine-tuned: taylor from',
        "rowheader",
    ):
        assert line in seen.roles
    dark = max(map(int, seen.background[4:-1].split(", "))) < 64
    assert dark == (theme == "dark")


def test_the_page_is_there_in_a_second(browser: Browser, page: Path) -> None:
    assert min(look(browser, page).seconds for _ in range(3)) < 1


def test_a_screen_reader_finds_its_way(browser: Browser, page: Path) -> None:
    roles = look(browser, page).roles
    for line in (
        "- banner:",
        "- main:",
        'heading "Small, pruned" [level=1]',
        'heading "Units per layer" [level=2]',
        "rowheader",
        'img "accuracy against MACs:',
    ):
        assert line in roles


def test_a_page_that_is_not_so_is_found_out(browser: Browser, tmp_path: Path) -> None:
    """The negative control: what the tests above look for is seen where it is."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><title>bad</title><img src='missing.png'><div style='width:2000px'>wide"
        "</div><script>console.error('loud'); throw new Error('thrown')</script>"
    )
    seen = look(browser, bad, 390)
    assert seen.width >= 2000
    assert any("loud" in error for error in seen.errors)
    assert any("thrown" in error for error in seen.errors)
    assert (tmp_path / "missing.png").as_uri() in seen.requests
