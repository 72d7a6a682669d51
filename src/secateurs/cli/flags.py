"""The flags that commands share, and those that are the keys of a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

MODELS = (
    "package.module:callable (called without arguments; the current directory is searched), "
    "torchvision:NAME, timm:NAME, a folder that `secateurs prune` or sc.save wrote, or a .pt2, "
    ".keras or .h5 file."
)
Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=MODELS,
        show_default=False,
    ),
]
Original: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--class",
        help="What the saved folder was cut from, where it does not say: package.module:callable, "
        "torchvision:NAME or timm:NAME.",
        metavar="MODEL",
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

ConfigFile: TypeAlias = Annotated[
    Path | None,
    typer.Argument(
        metavar="CONFIG.toml",
        help="The configuration, as `secateurs init` writes it; flags override it.",
    ),
]
ModelFlag: TypeAlias = Annotated[str | None, typer.Option("--model", metavar="MODEL", help=MODELS)]
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Where the weights, the plan, the history and checkpoints go."
    ),
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint in --out, if there is one.")
]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace the result that --out holds already.")
]
Progress: TypeAlias = Annotated[bool, typer.Option(help="Show live progress on stderr.")]

# How a key is known on the command line, where its type does not tell.
METAVARS = {
    "train": "DATA",
    "evaluate": "DATA",
    "loss": "NAME",
    "only": "PATTERN",
    "ignore": "PATTERN",
    "trackers": "NAME",
    "criteria": "NAME",
    "forms": "FORM",
    "budgets": "FRACTION",
    "sensitivity": "FRACTION",
    "turns": "PATTERN",
    "band": "LOW,HIGH",
    "pattern": "N:M",
    "mean": "N,N,N",
    "std": "N,N,N",
}
UNSET = {
    "normalize": "by the saliency",
    "turns": "all together",
    "device": "what Accelerate finds",
    "only": "all",
    "criteria": "all",
}


def with_sections(*sections: tuple[type[BaseModel], str]) -> Callable[..., Callable[..., None]]:
    """Give a command that takes **values one flag for each key of some sections.

    Args:
        sections: (section of the configuration, the title of its flags in the help).
    """
    flags = [
        _parameter(name, field, title)
        for section, title in sections
        for name, field in section.model_fields.items()
    ]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        command.__signature__ = signature.replace(parameters=own + flags)  # type: ignore[attr-defined]
        return command

    return give


def _parameter(name: str, field: FieldInfo, title: str) -> inspect.Parameter:
    kind: Any = field.annotation
    several = get_origin(kind) is tuple and name not in ("mean", "std", "band")
    # no default of its own: what is not given must not hide the value of the configuration
    text = f"{' '.join((field.description or '').split())}{_default(name, field)}"
    # a choice is checked where the configuration is, with the same words
    choices = "|".join(get_args(kind)) if get_origin(kind) is Literal else None
    if several:
        kind = list[_element(kind)]  # type: ignore[misc]
    elif choices or get_origin(kind) is tuple:
        kind = str
    option = typer.Option(
        help=f"{text} May be repeated." if several else text,
        metavar=METAVARS.get(name, choices),
        show_default=False,
        rich_help_panel=title,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _element(kind: Any) -> type:
    """What a tuple holds: int, float, or else str."""
    inner = get_args(kind)[0]
    plain = get_args(inner)[0] if get_origin(inner) is Annotated else inner
    return plain if plain in (int, float) else str


def _default(name: str, field: FieldInfo) -> str:
    if name not in UNSET and (field.is_required() or field.default in (None, ())):
        return ""
    value = UNSET.get(name, field.default)
    if isinstance(value, bool):
        value = f"{'' if value else 'no-'}{name.replace('_', '-')}"
    elif isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f" [default: {value}]"
