"""`secateurs report`: a saved run as a page, as pictures, or as text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PAGE = "report.html"


def report_saved(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `secateurs prune` or result.save wrote.")
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
    """Show how a pruned network came about: one self-contained HTML page.

    Before and after, what went from each layer, the metric against the budget, the importance of
    every unit, what was frozen and why, the proof, and how to make it again. With --figures or
    --text the page is only written where --out says so.

    ```
    secateurs report runs/a
    secateurs report runs/a --text
    secateurs report runs/a --figures runs/a/figures
    ```
    """
    from ..report.record import Record

    record = Record.load(directory)
    if out is not None or not (figures or text):
        from ..report.page import write_page

        typer.echo(write_page(record, out or directory / PAGE))
    if figures is not None:
        from ..report.figures import write_figures

        for path in write_figures(record, figures):
            typer.echo(path)
    if text:
        typer.echo(record)
