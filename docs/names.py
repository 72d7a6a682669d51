"""The public names, and which of them say nothing of themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any

import secateurs

_CALLED = (staticmethod, classmethod, property, cached_property)


def public() -> set[str]:
    """Every function, class, method and property that is public, as 'secateurs.Plan.save'."""
    out = set()
    for name in secateurs.__all__:
        out.add(f"secateurs.{name}")
        thing = getattr(secateurs, name)
        if inspect.isclass(thing):
            out |= {f"secateurs.{name}.{member}" for member, _ in members(thing)}
    return out


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself."""
    for name, member in vars(cls).items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, _CALLED)):
            yield name, member


def silent() -> set[str]:
    """The public names without a docstring, and the fields that their class does not explain."""
    out = set()
    for name in secateurs.__all__:
        thing = getattr(secateurs, name)
        own = thing.__dict__.get("__doc__") if inspect.isclass(thing) else inspect.getdoc(thing)
        if not own or own.startswith(f"{name}("):  # what a dataclass writes of itself is none
            out.add(name)
        if inspect.isclass(thing):
            out |= {f"{name}.{n}" for n, member in members(thing) if not inspect.getdoc(member)}
        if is_dataclass(thing):
            out |= {f"{name}.{f.name}" for f in fields(thing) if not f.name.startswith("_")} - {
                f"{name}.{told}" for told in explained(own or "")
            }
    return out


def explained(docstring: str) -> set[str]:
    """The names under 'Attributes:' of a docstring."""
    section = re.search(r"^ *Attributes:\n((?: {4,}.*\n?|\n)*)", docstring, flags=re.M)
    heads = re.findall(r"^ {8}(\w[\w, ]*):", section[1], flags=re.M) if section else []
    return {name.strip() for head in heads for name in head.split(",")}
