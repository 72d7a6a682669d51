"""The flags that commands share, and those that are the options of the pruning loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

import typer

from ..process.options import Options

Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:callable (called without arguments; the current directory is "
        "searched), torchvision:NAME or timm:NAME.",
        show_default=False,
    ),
]
Weights: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="A safetensors file with the model's weights. "
        "Without it, models of torchvision and timm have random ones.",
        metavar="FILE",
        show_default=False,
    ),
]
InputShape: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="The shape of an example input, batch first; again for each further input. "
        "[default: 1,3,224,224 for torchvision:, the model's own for timm:]",
        metavar="N,C,H,W",
    ),
]
Inputs: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="A callable that returns example inputs (a tensor, a tuple of arguments, or a dict "
        "of keyword arguments), for what is not an array of floats.",
        metavar="PKG.MOD:NAME",
        show_default=False,
    ),
]

# What each option of the loop means on the command line, with its unit.
OPTIONS = {
    "step": "Units removed per step: below 1 a fraction of the original units, else a number.",
    "updates": "Weight updates after each removal.",
    "warmup": "Weight updates before the first removal.",
    "final": "Weight updates after the last removal.",
    "score_batches": "Batches that each ranking is made from.",
    "lr": "Learning rate of SGD with momentum 0.9.",
    "normalize": "How the scores of a group are scaled before groups are compared.",
    "flops_weight": "How much a unit's share of the MACs speaks for its removal.",
    "cost_power": "Scores are divided by what a unit costs to this power; 0.5 suits MACs budgets.",
    "only": "Prune only modules of this path, such as 'layer1.*'; may be repeated.",
    "ignore": "Leave modules of this path alone; may be repeated.",
    "min_keep": "Units that stay in every group.",
    "max_remove": "The largest fraction of a group's units that may go.",
    "round_to": "The size of every pruned group stays a multiple of this many units.",
    "exact_only": "Leave groups alone whose cut changes a statistic (such as a LayerNorm's).",
    "floor": "Stop before the metric crosses this value, and keep the network that held it.",
    "accumulate": "Batches per weight update.",
    "device": "cpu, cuda, cuda:1, mps …",
    "precision": "Mixed precision of the training.",
    "trackers": "An Accelerate tracker, such as tensorboard or wandb; may be repeated.",
    "seed": "Of everything that is drawn.",
}
UNSET = {
    "device": "what Accelerate finds",
    "floor": "none",
    "only": "all",
    "exact_only": "exact-only",
}
METAVARS = {"only": "PATTERN", "ignore": "PATTERN", "trackers": "NAME"}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes **options one flag for each field of `Options`."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = [_parameter(name) for name in Options.model_fields]
    command.__signature__ = signature.replace(parameters=own + flags)  # type: ignore[attr-defined]
    return command


def _parameter(name: str) -> inspect.Parameter:
    field = Options.model_fields[name]
    kind: Any = field.annotation
    several = get_origin(kind) is tuple
    default = UNSET.get(name, "none" if several else field.default)
    # no default of its own: what is not given must not hide the value of the configuration
    text = f"{OPTIONS[name]} [default: {default}]"
    # a choice is checked where the configuration is, with the same words
    choices = "|".join(get_args(kind)) if get_origin(kind) is Literal else None
    if choices or several:
        kind = list[str] if several else str
    option = typer.Option(
        help=text, metavar=METAVARS.get(name, choices), rich_help_panel=r"How to prune, \[prune]"
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )
