"""`secateurs verify`: the law of the cut on a saved result, and that its weights load and run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import FileError, LawError, TraceError
from . import flags
from .keras_files import is_keras_file, load_keras
from .models import build, example_inputs, parse_shape
from .objects import importable
from .saved import original_of, recorded

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..gates import Proof
    from ..plan import Plan


def verify_saved(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `secateurs prune` or sc.save wrote.")
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="What the folder was cut from, as for inspect; needed where it does not say.",
            show_default=False,
        ),
    ] = None,
    input_shape: flags.InputShape = None,
    inputs: flags.Inputs = None,
    weights: flags.Weights = None,
    float64: Annotated[
        bool,
        typer.Option(
            "--float64/--float32", help="The precision of the proof.", show_default="float64"
        ),
    ] = True,
) -> None:
    """Check a saved result against the original model, by the law of the cut.

    The plan must fit the model; cutting must equal zeroing the removed units where they are
    read; and the saved weights must load into the cut model, which must run. Exit code 1 if the
    law is broken.

    ```
    secateurs verify runs/a
    secateurs verify runs/a my_model:build --input-shape 1,1,28,28
    secateurs verify runs/b trained.keras
    ```
    """
    import torch

    importable([Path.cwd()])
    plan = _plan(directory)
    shapes = [parse_shape(text) for text in input_shape or ()]
    model = original_of(str(directory), model, mend="MODEL")
    network = build(model, weights)
    if is_keras_file(model):
        raise typer.Exit(_verify_keras(directory, network, plan, shapes, inputs, model))
    plan.check(network)
    dtype = torch.float64 if float64 else torch.float32
    network = network.to(dtype)
    if not shapes and inputs is None and (record := recorded(str(directory))) is not None:
        shapes = list(record.input_shape)
    example = _cast(example_inputs(model, network, shapes, inputs), dtype)
    typer.echo(f"the plan fits {model}: {len(plan)} units in {len(plan.groups)} groups go")
    try:
        proof = _prove(network, plan, example)
        typer.echo(proof)
        if proof.holds:
            _run_saved(directory, network, example, dtype)
    except LawError as error:
        typer.echo(f"the law of the cut is BROKEN: {error}")
        raise typer.Exit(1) from error
    except TraceError as error:
        hint = "; if the model fixes its precision, try --float32" if float64 else ""
        raise TraceError(f"{error}{hint}") from error
    raise typer.Exit(0 if proof.holds else 1)


def _verify_keras(
    directory: Path,
    network: Any,
    plan: Plan,
    shapes: list[tuple[int, ...]],
    inputs: str | None,
    model: str,
) -> int:
    """The same for a Keras model, in the precision that it has; the exit code."""
    from .. import apply, verify
    from ..files.store import KERAS
    from ..gates import deviation, tensors_of
    from ..keras.module import Module, inputs_for
    from ..trace.model import as_call

    example = inputs_for(network, example_inputs(model, network, shapes, inputs))
    small = apply(network, plan)
    proof = verify(network, small, plan, example)
    typer.echo(f"the plan fits {model}: {len(plan)} units in {len(plan.groups)} groups go")
    typer.echo(proof)
    if not proof.holds:
        return 1
    saved = load_keras(str(directory / KERAS))
    args, kwargs = as_call(example)
    given, wanted = (tensors_of(Module(own)(*args, **kwargs)) for own in (saved, small))
    if [t.shape for t in given] != [t.shape for t in wanted]:
        typer.echo("the saved model gives tensors of other shapes than the plan makes")
        return 1
    if deviation(given, given)[0] != 0:
        typer.echo("the saved model gives values that are not finite")
        return 1
    outputs = ", ".join(str(tuple(tensor.shape)) for tensor in given)
    typer.echo(
        f"the saved model loads and runs: {saved.count_params():,} weights, output {outputs}"
    )
    return 0


def _plan(directory: Path) -> Plan:
    from .. import Plan
    from ..files.store import PLAN

    if not (directory / PLAN).is_file():
        raise FileError(
            f"{directory} holds no {PLAN}; name the folder that prune wrote with --out, or sc.save"
        )
    return Plan.load(directory / PLAN)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Example inputs with their floats in this precision."""
    import torch
    from torch.utils import _pytree as pytree

    return pytree.tree_map_only(
        torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs
    )


def _prove(network: nn.Module, plan: Plan, example: Any) -> Proof:
    from .. import apply, verify

    return verify(network, apply(network, plan), plan, example)


def _run_saved(directory: Path, network: nn.Module, example: Any, dtype: torch.dtype) -> None:
    """Load the saved weights into a copy of the original, and run it.

    Raises:
        LawError: it does not run, or gives values that are not finite.
    """
    import torch
    from torch.utils import _pytree as pytree

    from .. import load
    from ..trace.model import as_call

    small = load(directory, copy.deepcopy(network)).to(dtype).eval()
    args, kwargs = as_call(example)
    try:
        with torch.no_grad():
            given = small(*args, **kwargs)
    except Exception as error:
        raise LawError(
            f"the saved network does not run: {type(error).__name__}: {error}"
        ) from error
    leaves = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]
    if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves):
        raise LawError("the saved network gives values that are not finite")
    count = sum(p.numel() for p in small.parameters())
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
    typer.echo(f"the saved weights load and run: {count:,} parameters, output {shapes}")
