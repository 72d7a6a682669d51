"""`secateurs compare`: which criterion suits a network, by experiment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import FileError
from ..report.extra import check_installed, installed
from . import flags
from .config import CompareSection, Config, DataSection
from .job import configured, opened
from .report import COMPARISON

COMPARISON_PAGE = "comparison.html"
SECTIONS = ((DataSection, r"Data, \[data]"), (CompareSection, r"How to compare, \[compare]"))


@flags.with_sections(*SECTIONS)
def compare_criteria(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.toml",
            help="The configuration, as `secateurs init` writes it; flags override it.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help=flags.MODELS)] = None,
    original: flags.Original = None,
    weights: flags.Weights = None,
    input_shape: flags.InputShape = None,
    inputs: flags.Inputs = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the experiments and the page go."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the experiments that --out lacks.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the comparison that --out holds already.")
    ] = False,
    report: Annotated[
        bool | None,
        typer.Option(
            "--report/--no-report",
            help=f"Write {COMPARISON_PAGE} beside it; needs secateurs\\[report]. "
            "[default: where that is installed]",
            show_default=False,
        ),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show live progress on stderr.")] = True,
    **values: Any,
) -> None:
    """Compare criteria: how well each agrees with the oracle, and what it leaves after pruning.

    The model, the data and the configuration are those of `secateurs prune`:

    ```
    secateurs compare run.toml --out runs/compared
    secateurs compare --model my_model:build --input-shape 1,1,28,28 \\
        --train my_data:train --loss cross_entropy --evaluate my_data:accuracy --out runs/compared
    ```

    In two processes, with fewer criteria, or at length:

    ```
    secateurs compare run.toml --engine processes --jobs 2
    secateurs compare run.toml --criteria taylor --criteria weight --preset full
    ```
    """
    given = configured(
        config,
        {
            "path": model,
            "class": original,
            "weights": weights,
            "input_shape": input_shape or None,
            "inputs": inputs,
        },
        ("compare", CompareSection),
        values,
        out=out,
    )
    if report:
        check_installed()  # not after hours of work
    try:
        comparison = _run(given, resume=resume, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        typer.echo("note: what is done is saved; go on with --resume", err=True)
        raise typer.Abort from None
    typer.echo(f"{comparison}\n")
    typer.echo(f"{given.out / COMPARISON}  every experiment")
    if report or (report is None and installed()):
        typer.echo(f"{comparison.report(given.out / COMPARISON_PAGE)}  all of it on one page")
    elif report is None:
        typer.echo("note: no page was written; pip install 'secateurs[report]'", err=True)


def _run(config: Config, *, resume: bool, overwrite: bool, progress: bool) -> Any:
    from .. import compare

    how = config.compare
    given, data = opened(config, 0, "data")
    lines = config.out / COMPARISON
    if lines.exists() and not resume:
        if not overwrite:
            raise FileError(
                f"{lines} is there already; go on with --resume, give another --out, or --overwrite"
            )
        lines.unlink()
    verb: Callable[..., Any] = compare
    return verb(
        *given,
        criteria=how.criteria or "all",
        preset=how.preset,
        out=config.out,
        resume=resume,
        engine=None if how.engine == "none" else how.engine,
        jobs=how.jobs,
        progress=progress,
        **data,
        **how.options,
    )
