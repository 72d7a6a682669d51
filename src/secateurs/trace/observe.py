"""The modules of a model while they run: their numbers have provenance, and they say who runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from .calls import Calls
from .model import Attributes, caches
from .stand_in import standing_in
from .tagged import Attribute, TaggedFloat, TaggedInt


@contextlib.contextmanager
def observed(modules: dict[str, tuple[nn.Module, Attributes]], calls: Calls) -> Iterator[None]:
    """While open, modules hand out integer attributes with provenance, and tell when they run.

    Then all is as before.
    """
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    program = calls.program
    known = program.attributes
    try:
        # a shared module keeps its first path
        once = {id(module): path for path, (module, _) in reversed(modules.items())}
        for path in once.values():
            module, own = modules[path]
            attributes = module.__dict__
            saved.append((attributes, dict(attributes)))
            kept = caches(module)
            forward = standing_in(module)
            attributes["forward"] = (
                forward if _states_itself(module) else calls.within(path, forward)
            )
            for name, value in own:
                if type(value) is dict:  # what is put there meanwhile is gone with the copy
                    attributes[name] = (
                        {} if name in kept else _tagged_items(value, path, name, known)
                    )
                elif type(value) is int:
                    if value > 1:  # no smaller number is the size of something that can be cut
                        source = Attribute(path, name)
                        known[source] = value
                        attributes[name] = TaggedInt(value, source)
                elif type(value) is float:
                    program.floats[Attribute(path, name)] = value
                    attributes[name] = TaggedFloat(value, value)  # no cut changes it
                elif type(value) in (tuple, list) and set(map(type, value)) == {int}:
                    if max(value) <= 1:
                        continue
                    sources = [Attribute(path, name, i) for i in range(len(value))]
                    known.update(zip(sources, value, strict=True))
                    attributes[name] = type(value)(map(TaggedInt, value, sources))
        yield
    finally:
        for attributes, before in saved:
            attributes.clear()
            attributes.update(before)


def _tagged_items(
    value: dict[Any, Any], path: str, name: str, known: dict[Attribute, int]
) -> dict[Any, Any]:
    """A copy of a dict attribute that hands out the integers in it with provenance."""
    out = dict(value)
    for key, item in value.items():
        if type(item) is int and item > 1 and type(key) is str and key.isidentifier():
            source = Attribute(path, name, key)
            known[source] = item
            out[key] = TaggedInt(item, source)
    return out


def _states_itself(module: nn.Module) -> bool:
    """Whether a module says what a copy of it holds, which leaves out what it is given to run."""
    own = getattr(type(module), "__getstate__", None)
    return own is not getattr(nn.Module, "__getstate__", None)
