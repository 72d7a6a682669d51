"""`secateurs sparsify`: single weights pruned and spliced, from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from . import flags
from .config import Config, DataSection, SparsifySection
from .job import configured, keep, opened, writable
from .keras_files import is_keras_file, own_options
from .report import PAGE

if TYPE_CHECKING:
    from ..process.sparsify_result import SparsifyResult

SECTIONS = ((DataSection, r"Data, \[data]"), (SparsifySection, r"How to prune, \[sparsify]"))


@flags.with_sections(*SECTIONS)
def sparsify_model(
    config: flags.ConfigFile = None,
    model: flags.ModelFlag = None,
    original: flags.Original = None,
    weights: flags.Weights = None,
    input_shape: flags.InputShape = None,
    inputs: flags.Inputs = None,
    out: flags.Out = None,
    resume: flags.Resume = False,
    overwrite: flags.Overwrite = False,
    progress: flags.Progress = True,
    **values: Any,
) -> None:
    """Prune single weights of a trained model while it trains on, and splice some back.

    ```
    secateurs sparsify run.toml --compression 100
    secateurs sparsify --model my_model:build --input-shape 1,1,28,28 \\
        --train my_data:train --loss cross_entropy --evaluate my_data:accuracy \\
        --compression 100 --out runs/a
    ```

    Give one of --compression, --sparsity and --pattern. Zeros make a network neither smaller nor
    faster by themselves.
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
        ("sparsify", SparsifySection),
        values,
        out=out,
    )
    result = _run(given, resume=resume, overwrite=overwrite, progress=progress)
    _write(given, result)
    if result.stopped in ("done", "floor"):
        return
    if result.stopped == "interrupted":
        typer.echo("note: what is done is saved; go on with --resume", err=True)
        raise typer.Exit(130)
    typer.echo("note: the loss was not finite; the last good network is kept, try a smaller --lr",
               err=True)  # fmt: skip
    raise typer.Exit(1)


def _run(config: Config, *, resume: bool, overwrite: bool, progress: bool) -> SparsifyResult:
    from .. import sparsify
    from ..process.options import SparsifyOptions

    how = config.sparsify
    given, data = opened(config, how.seed)
    options = how.model_dump()
    if is_keras_file(config.model.path):
        options = own_options(options, SparsifyOptions().model_dump())
    writable(config.out, replace=resume or overwrite)
    verb: Callable[..., SparsifyResult] = sparsify
    return verb(
        *given,
        out=config.out,
        resume=resume,
        progress=progress,
        **data,
        **options,
    )


def _write(config: Config, result: SparsifyResult) -> None:
    from ..files.store import HISTORY, KERAS, WEIGHTS
    from ..plan import Plan
    from ..report.record import RECORD, SCORES

    keep(config, result, Plan({}, {}, {}), (PAGE, RECORD, SCORES))
    typer.echo(f"{result}\n")
    weights = KERAS if is_keras_file(config.model.path) else WEIGHTS
    typer.echo(f"{config.out / weights}  weights, zero where they are gone")
    typer.echo(f"{config.out / HISTORY}  every evaluation and every change of the masks")
