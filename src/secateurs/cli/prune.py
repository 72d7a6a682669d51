"""`secateurs prune`: the greedy loop from a configuration."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, FileError
from ..report.extra import check_installed, installed
from . import flags
from .config import Config, make_config
from .models import ZOOS, build, example_inputs
from .objects import find_function, find_loss, importable, made
from .report import PAGE

if TYPE_CHECKING:
    from ..process.result import PruneResult

DATA = r"Data, \[data]"


@flags.with_options
def prune_model(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG.toml", help="The configuration; flags override it."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="package.module:callable, torchvision:NAME or timm:NAME.",
        ),
    ] = None,
    weights: flags.Weights = None,
    input_shape: flags.InputShape = None,
    inputs: flags.Inputs = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MOD:NAME",
            help="Returns batches (input, target): a DataLoader, or a list.",
            rich_help_panel=DATA,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A loss of torch.nn.functional, such as cross_entropy, or PKG.MOD:NAME, a "
            "function (output, target) -> one value per example.",
            rich_help_panel=DATA,
        ),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MOD:NAME",
            help="A function (model) -> the metric, called after every step.",
            rich_help_panel=DATA,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What the metric is called. [default: metric]", rich_help_panel=DATA),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="max|min",
            help="Whether more or less of it is better. [default: max]",
            rich_help_panel=DATA,
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE=VALUE",
            help="What to keep of macs, params or units: up to 1 a fraction, above it an absolute "
            "number; again for a further measure. Replaces all of [budget].",
        ),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            help="What decides which units go: taylor, weight, activation or random. "
            "[default: taylor]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the weights, the plan, the history and checkpoints go."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --out, if there is one.")
    ] = False,
    report: Annotated[
        bool | None,
        typer.Option(
            "--report/--no-report",
            help="Write report.html beside the result; needs secateurs\\[report]. "
            "[default: where that is installed]",
            show_default=False,
        ),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show live progress on stderr.")] = True,
    **options: Any,
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

    A configuration. Relative paths in it start at its own folder; the modules that it names are
    searched for there and in the current directory:

    ```
    out = "runs/a"

    [model]
    path = "my_model:build"
    weights = "trained.safetensors"
    input_shape = [1, 1, 28, 28]

    [data]
    train = "my_data:train"
    loss = "cross_entropy"
    evaluate = "my_data:accuracy"
    metric = "accuracy"

    [budget]
    macs = 0.2                      # keep 20% of the multiply-accumulates

    [prune]
    updates = 50                    # any flag under 'How to prune'
    ```
    """
    given = make_config(
        config,
        {
            "model": {
                "path": model,
                "weights": weights,
                "input_shape": input_shape or None,
                "inputs": inputs,
            },
            "data": {
                "train": train,
                "loss": loss,
                "evaluate": evaluate,
                "metric": metric,
                "mode": mode,
            },
            "budget": _budget(budget or []),
            "prune": {"criterion": criterion, **{k: v for k, v in options.items() if v != []}},
            "out": out,
        },
    )
    if report:
        check_installed()  # not after hours of work
    importable(([config.parent] if config else []) + [Path.cwd()])
    result = _run(given, resume=resume, progress=progress)
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


def _run(config: Config, *, resume: bool, progress: bool) -> PruneResult:
    from .. import prune

    data, how = config.data, config.prune
    network = build(config.model.path, config.model.weights, how.seed)
    if config.model.weights is None and config.model.path.partition(":")[0] in ZOOS:
        typer.echo("note: the weights are random; --weights takes trained ones", err=True)
    shapes = config.model.input_shape
    inputs = example_inputs(config.model.path, network, shapes, config.model.inputs)
    train, loss = made(data.train, "train"), find_loss(data.loss)
    evaluate = None if data.evaluate is None else find_function(data.evaluate, "evaluate")
    _writable(config.out)
    return prune(
        network,
        inputs,
        train=train,
        loss=loss,
        budget=config.budget.given,
        criterion=how.criterion,
        evaluate=evaluate,
        metric=data.metric,
        mode=data.mode,
        out=config.out,
        resume=resume,
        progress=progress,
        **how.options,
    )


def _writable(folder: Path) -> None:
    """Make the output directory now: hours later is too late to learn that it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot write to {folder}: {error.strerror}; give another --out"
        ) from error


def _write(config: Config, result: PruneResult) -> None:
    from ..atomic import write_text
    from ..files.store import HISTORY, PLAN, WEIGHTS
    from ..report.record import RECORD, SCORES

    folder = result.save(config.out)
    write_text(folder / "config.json", config.model_dump_json(indent=1))
    typer.echo(f"{result}\n")
    for name, what in (
        (WEIGHTS, "weights of the pruned model"),
        (PLAN, "what was removed"),
        (HISTORY, "every step"),
        (RECORD, "what a report is made from"),
        (SCORES, "importance of every unit at every step"),
        ("config.json", "how it was made"),
    ):
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
