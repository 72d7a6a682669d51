"""`secateurs prune`: the greedy loop from a configuration."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..process.options import Options
from ..report.extra import check_installed, installed
from . import flags
from .config import Config, DataSection, PruneSection
from .job import configured, keep, opened, writable
from .keras_files import is_keras_file, own_options
from .report import PAGE
from .saved import CONFIG

if TYPE_CHECKING:
    from ..process.result import PruneResult

SECTIONS = ((DataSection, r"Data, \[data]"), (PruneSection, r"How to prune, \[prune]"))


@flags.with_sections(*SECTIONS)
def prune_model(
    context: typer.Context,
    config: flags.ConfigFile = None,
    model: flags.ModelFlag = None,
    original: flags.Original = None,
    weights: flags.Weights = None,
    input_shape: flags.InputShape = None,
    inputs: flags.Inputs = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE=VALUE",
            help="What to keep of macs, params or units: up to 1 a fraction, above it an absolute "
            "number; again for a further measure. Replaces all of [budget].",
        ),
    ] = None,
    out: flags.Out = None,
    resume: flags.Resume = False,
    overwrite: flags.Overwrite = False,
    report: Annotated[
        bool | None,
        typer.Option(
            "--report/--no-report",
            help="Write report.html beside the result; needs secateurs\\[report]. "
            "[default: where that is installed]",
            show_default=False,
        ),
    ] = None,
    progress: flags.Progress = True,
    **values: Any,
) -> None:
    """Prune a trained model to a budget: fine-tune, remove the least important units, repeat.

    From a configuration, whose values the flags override:

    ```
    secateurs prune run.toml
    secateurs prune run.toml --budget macs=0.1 --out runs/b
    ```

    Or from flags alone:

    ```
    secateurs prune --model my_model:build --input-shape 1,1,28,28 \\
        --train my_data:train --loss cross_entropy --evaluate my_data:accuracy \\
        --budget macs=0.2 --out runs/a
    ```

    A model and data of one's own, or what comes along:

    ```
    secateurs prune --model torchvision:resnet18 --weights resnet18.safetensors \\
        --train images:photos/train --evaluate images:photos/val --loss cross_entropy \\
        --budget macs=0.5 --out runs/b
    ```

    A Keras model, which is fine-tuned as it is compiled:

    ```
    secateurs prune --model trained.keras --train my_data:train --budget macs=0.5 --out runs/c
    ```

    `secateurs init` writes a configuration with every key, its meaning and its default. Relative
    paths in it start at its own folder; the modules that it names are searched for there and in
    the current directory.
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
        ("prune", PruneSection),
        values,
        budget=_budget(budget or []),
        out=out,
    )
    if report:
        check_installed()  # not after hours of work
    result = _run(given, resume=resume, overwrite=overwrite, progress=progress)
    command = shlex.join(["secateurs", *context.obj])
    result.origin = result.origin.model_copy(update={"command": command})
    _write(given, result)
    _report(given.out, result, wanted=report)
    raise typer.Exit(_verdict(given, result))


def _budget(texts: list[str]) -> dict[str, float]:
    """The budget that 'macs=0.2' spells."""
    out = {}
    for text in texts:
        measure, _, value = text.partition("=")
        try:
            out[measure.strip()] = float(value)
        except ValueError:
            raise ConfigError(
                f"--budget {text!r} must look like macs=0.2 (a fraction to keep) or "
                "params=100000 (an absolute number)"
            ) from None
    return out


def _run(config: Config, *, resume: bool, overwrite: bool, progress: bool) -> PruneResult:
    from .. import prune

    how = config.prune
    given, data = opened(config, how.seed)
    options = how.options
    if is_keras_file(config.model.path):
        options = own_options(options, Options().model_dump())
    writable(config.out, replace=resume or overwrite)
    verb: Callable[..., PruneResult] = prune
    return verb(
        *given,
        budget=config.budget.given,
        criterion=how.criterion,
        out=config.out,
        resume=resume,
        progress=progress,
        **data,
        **options,
    )


def _write(config: Config, result: PruneResult) -> None:
    from ..files.store import HISTORY, KERAS, PLAN, WEIGHTS
    from ..report.record import RECORD, SCORES

    keep(config, result, result.plan, (PAGE, RECORD, SCORES))
    folder = config.out
    typer.echo(f"{result}\n")
    for name, what in (
        (WEIGHTS, "weights of the pruned model"),
        (KERAS, "the pruned model"),
        (PLAN, "what was removed"),
        (HISTORY, "every step"),
        (RECORD, "what a report is made from"),
        (SCORES, "importance of every unit at every step"),
        (CONFIG, "how it was made"),
    ):
        if (folder / name).exists():
            typer.echo(f"{folder / name}  {what}")


def _report(folder: Path, result: PruneResult, *, wanted: bool | None) -> None:
    if wanted or (wanted is None and installed()):
        typer.echo(f"{result.report(folder / PAGE)}  all of it on one page")
    elif wanted is None:
        typer.echo("note: no page was written; pip install 'secateurs[report]'", err=True)


def _verdict(config: Config, result: PruneResult) -> int:
    """The exit code, and what to do next where the run stopped short."""
    if result.stopped == "interrupted":
        typer.echo("note: what is done is saved; go on with --resume", err=True)
        return 130
    if not result.proof.holds:
        return 1
    if result.stopped in ("nan", "exhausted"):
        why = {
            "nan": "the loss was not finite; the last good network is kept, try a smaller --lr",
            "exhausted": "nothing more may be removed",
        }
        typer.echo(f"note: stopped short of the budget: {why[result.stopped]}", err=True)
        return 1
    return 0
