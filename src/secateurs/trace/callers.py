"""Whose code runs in a frame, and how it was come to.

A function can be replaced for one module only where the code looks it up on that module: `forward`,
which PyTorch calls, or a method that is called as `self.<name>(...)`. An alias of it, a hook, a
call through the class or through `super()` would run the old one. What must be written where is
noted while the model runs, and looked up in the source when it matters.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import nn

from .program import Caller, Site

_OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


class Sites:
    """Finds sites among the frames of a model that runs.

    Args:
        paths: the path of every module, by its id.
        own: what each module has in its own dictionary, by name, by the path of the module.
    """

    def __init__(self, paths: Mapping[int, str], own: Mapping[str, Iterable[tuple[str, Any]]]):
        self.paths, self.own = paths, own

    def find(self, frame: FrameType) -> tuple[str | None, Site | None]:
        """The module whose code runs in a frame, and the site, if what runs can be replaced."""
        owner, site = self._method(frame)
        if owner is None and frame.f_back is not None:
            return self._helped(frame, frame.f_back)
        return owner, site

    def _method(self, frame: FrameType) -> tuple[str | None, Site | None]:
        code, caller = frame.f_code, frame.f_back
        first = code.co_varnames[:1]
        owner: Any = frame.f_locals.get(first[0]) if first else None
        path = self.paths.get(id(owner)) if owner is not None else None
        if path is None or caller is None:
            return path, None
        called = caller.f_code.co_filename.startswith(_OURS)  # in the place of PyTorch
        name = "forward" if called else code.co_name
        function = self._looked_up(owner, path, name)
        if function is None or function.__code__ is not code:
            return path, None
        texts = (f"{here}.{name}" for here in self._names(caller, path))
        callers = () if called else (_caller(caller, texts),)
        return path, Site(path, name, "", function, callers)

    def _helped(self, frame: FrameType, caller: FrameType) -> tuple[str | None, Site | None]:
        """The same of a plain function that a method calls by its name."""
        code = frame.f_code
        helper = named(caller, code.co_name)
        if not isinstance(helper, FunctionType) or helper.__code__ is not code:
            return None, None
        path, method = self._method(caller)
        if method is None:
            return path, None
        callers = (_caller(caller, [code.co_name]), *method.callers)
        return path, Site(method.owner, method.method, code.co_name, helper, callers)

    def _looked_up(self, owner: nn.Module, path: str, name: str) -> FunctionType | None:
        """The function of its class that a module finds under a name, if it has none of its own."""
        if name.startswith("__") or has_its_own(dict(self.own[path]), name):
            return None
        held = (vars(kind)[name] for kind in type(owner).__mro__ if name in vars(kind))
        function = next(held, None)
        return function if isinstance(function, FunctionType) else None

    def _names(self, frame: FrameType, path: str) -> list[str]:
        """What a module can be called by in a frame: a name, or what hangs from one."""
        out = []
        for name, value in frame.f_locals.items():
            above = self.paths.get(id(value))
            if above == path:
                out.append(name)
            elif above is not None and (not above or path.startswith(f"{above}.")):
                out.append(f"{name}.{path[len(above) :].lstrip('.')}")
        return out


def has_its_own(attributes: Mapping[str, Any], name: str) -> bool:
    """Whether the attributes of a module hide the method of its class; what is ours calls that."""
    held = (attributes.get(key) for key in (name, f"_plain_{name}"))
    return any(value is not None and not _is_ours(value) for value in held)


def _is_ours(value: Any) -> bool:
    code = getattr(getattr(value, "__func__", None), "__code__", None)
    return isinstance(code, CodeType) and code.co_filename.startswith(_OURS)


def _caller(frame: FrameType, texts: Any) -> Caller:
    return Caller(frame.f_code, frame.f_lineno, frame.f_lasti, frozenset(texts))


def named(frame: FrameType, name: str) -> Any:
    """What a name is in a frame that does not bind it itself."""
    code = frame.f_code
    if name in code.co_freevars:
        return frame.f_locals.get(name)
    bound = name in code.co_varnames or name in code.co_cellvars
    return None if bound else frame.f_globals.get(name)
