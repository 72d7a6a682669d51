"""`secateurs report`: a saved run, or a comparison, as a page, as pictures, or as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

PAGE = "report.html"
COMPARISON = "comparison.jsonl"


@dataclass(frozen=True)
class Shown:
    """What is known of a record: where its page goes by default, and how each form is made."""

    page: Path
    write: Callable[[Path], Path]
    figures: Callable[[Path], list[Path]]
    text: Callable[[], str]


def report_saved(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help=f"What `secateurs prune` or `secateurs compare` wrote, or {COMPARISON}.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Where the page goes. [default: DIR/{PAGE}]"),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the pictures there, as SVG and PNG."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Print the report; no further package is needed.")
    ] = False,
) -> None:
    """Show how a pruned network came about, or which criterion suits one: one self-contained page.

    Of a run: before and after, what went from each layer, the metric against the budget, the
    importance of every unit, what was frozen and why, the proof, and how to make it again. Of a
    comparison: which criterion to use and how sure that is, and all that it rests on. With
    --figures or --text the page is only written where --out says so.

    ```
    secateurs report runs/a
    secateurs report runs/a --text
    secateurs report runs/a --figures runs/a/figures
    secateurs report runs/compared/comparison.jsonl
    ```
    """
    shown = _comparison(path) if is_comparison(path) else _run(path)
    if out is not None or not (figures or text):
        typer.echo(shown.write(out or shown.page))
    if figures is not None:
        for one in shown.figures(figures):
            typer.echo(one)
    if text:
        typer.echo(shown.text())


def is_comparison(path: Path) -> bool:
    """Whether a comparison is meant: a file, or a folder that holds one and no run."""
    from ..report.record import RECORD

    if path.is_dir():
        return (path / COMPARISON).is_file() and not (path / RECORD).is_file()
    return path.is_file()


def _run(directory: Path) -> Shown:
    from ..report.record import Record

    record = Record.load(directory)

    def write(path: Path) -> Path:
        from ..report.page import write_page

        return write_page(record, path)

    def figures(folder: Path) -> list[Path]:
        from ..report.figures import write_figures

        return write_figures(record, folder)

    return Shown(directory / PAGE, write, figures, lambda: str(record))


def _comparison(path: Path) -> Shown:
    from ..compare.comparison import Comparison
    from ..report.comparison_page import render_text

    lines = path / COMPARISON if path.is_dir() else path
    comparison = Comparison.load(lines)
    return Shown(
        lines.with_name(PAGE) if path.is_dir() else lines.with_suffix(".html"),
        comparison.report,
        comparison.figures,
        lambda: render_text(comparison),
    )
