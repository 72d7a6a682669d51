"""`secateurs init`: a configuration with every key, what it means and its default."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..errors import FileError
from .config import SECTIONS, Config, keys

WIDTH = 96
HEAD = """\
What `secateurs prune` needs to know. Relative paths start at the folder of this file. A line that \
starts with '#' and a key shows a default, or an example where the comment says so: take the '#' \
away to set it.
"""
# What a key that has no default starts with.
START: dict[tuple[str, str], Any] = {
    ("", "out"): "runs/a",
    ("model", "path"): "my_model:build",
    ("data", "train"): "my_data:train",
    ("data", "loss"): "cross_entropy",
    ("budget", "macs"): 0.2,
}


def init_config(
    path: Annotated[
        Path, typer.Argument(metavar="[PATH]", help="The file to write; never one that is there.")
    ] = Path("secateurs.toml"),
) -> None:
    """Write a configuration for `secateurs prune`: every key, what it means and its default.

    ```
    secateurs init run.toml
    secateurs prune run.toml
    ```
    """
    from ..atomic import write_text

    if os.path.lexists(path):
        raise FileError(f"{path} is there already; give another path, or remove it first")
    write_text(path, template())
    typer.echo(f"{path}  set model, data and budget in it; then: secateurs prune {path}")


def template() -> str:
    """The configuration that `secateurs init` writes."""
    parts = [_comment(HEAD), *_keys("", Config)]
    for name, section in SECTIONS.items():
        parts.append(f"\n{_comment(section.__doc__ or '')}[{name}]\n")
        parts.extend(_keys(name, section))
    return "\n".join(parts)


def _keys(section: str, model: type[BaseModel]) -> list[str]:
    return [
        _key(section, name, field) for name, field in keys(model).items() if name not in SECTIONS
    ]


def _key(section: str, name: str, field: FieldInfo) -> str:
    """One key: a comment, and the line that sets it."""
    about, mark = field.description or "", "#"
    if (section, name) in START:
        value, mark = START[section, name], ""
    elif field.default not in (None, ()):
        value = field.default
    else:
        value, about = (field.examples or [None])[0], f"{about} Not set by default; an example:"
    # strings, numbers, booleans and lists are written alike in JSON and in TOML
    return f"{_comment(about)}{mark}{name} = {json.dumps(value)}\n"


def _comment(text: str) -> str:
    return textwrap.indent(textwrap.fill(" ".join(text.split()), WIDTH, break_on_hyphens=False), "# ") + "\n"
