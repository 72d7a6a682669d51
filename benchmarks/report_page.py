"""Open the reports of two runs in headless Chromium, measure them and take their pictures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import torch
import typer
from playwright.sync_api import Browser
from tests.browser import chromium, find_chromium, look
from torch import nn
from vision import torchvision_models

import secateurs as sc
from demo import prune_lenet
from lenet import pretrained
from secateurs.process.result import PruneResult
from secateurs.tables import render

WIDTHS, THEMES, OPENED = (390, 1280), ("light", "dark"), 5


def lenet() -> PruneResult:
    """The demo's run with few updates: the page matters here, not the network."""
    return prune_lenet(pretrained(0), 0.2, 0, updates=10, final=100, latency=True)


def resnet50() -> PruneResult:
    """A ResNet-50 on noise, to 40% of its MACs."""
    torch.manual_seed(0)
    model = torchvision_models().resnet50(num_classes=10)
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    return sc.prune(
        model,
        images[:1],
        train=list(zip(images.split(16), labels.split(16), strict=True)),
        loss=nn.CrossEntropyLoss(reduction="none"),
        budget={"macs": 0.4},
        evaluate=lambda net: float((net(images).argmax(1) == labels).float().mean()),
        metric="accuracy",
        updates=2,
        final=2,
        score_batches=1,
        latency=True,
    )


def main(
    out: Annotated[Path, typer.Option(help="Where pages and pictures go.")] = Path("runs/report"),
) -> None:
    """Make both reports, and print what a browser makes of them."""
    if find_chromium() is None:
        raise SystemExit("no Chromium is installed: install one, or name it in CHROMIUM")
    pages = [lenet().report(out / "LeNet-5.html"), resnet50().report(out / "ResNet-50.html")]
    windows = list(itertools.product(pages, WIDTHS, THEMES))
    with chromium() as browser:
        rows = [measure(browser, *window) for window in windows]
    columns = ("page", "window", "theme", "kB", "load (ms)", "width", "complaints", "requests")
    print(render(f"reports in headless Chromium; slowest of {OPENED}", columns, rows))
    print(f"pages and pictures: {out}")


def measure(browser: Browser, page: Path, width: int, theme: str) -> tuple[object, ...]:
    """What is told of a page in one window, and its picture beside it."""
    picture = page.with_name(f"{page.stem}-{width}-{theme}.png")
    seen = [look(browser, page, width, theme, picture=picture) for _ in range(OPENED)]
    return (
        page.stem,
        width,
        theme,
        f"{page.stat().st_size / 1000:.0f}",
        f"{1000 * max(one.seconds for one in seen):.0f}",
        max(one.width for one in seen),
        sum(len(one.errors) for one in seen),
        max(len(one.requests) for one in seen) - 1,
    )


if __name__ == "__main__":
    typer.run(main)
