"""Classes whose methods say other numbers, for the modules that a cut rewrites.

A module that is cut becomes one of a subclass that has copies of the methods, as it becomes one of
`torch.nn.utils.parametrize`. They work on whichever module they are called on, a copy or a replica
too; and a pickle holds the numbers and the name of the class that the module came from, from whose
source the copies are made again.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Iterable
from types import FunctionType
from typing import Any, TypeAlias

from torch import nn

from ..errors import FileError
from ..trace.callers import has_its_own
from .edits import Edit, Numbers, edited_method
from .source import Spot

Changes: TypeAlias = frozenset[tuple[tuple[str, str, Spot], int]]  # (method, helper, spot) -> new
_CHANGES = "__secateurs_changes__"


def rewritten(module: nn.Module, edits: Iterable[Edit]) -> Any:
    """The class that a module must become one of; None if what it runs does not have these."""
    edits = list(edits)
    if any(has_its_own(module.__dict__, edit.method) for edit in edits):
        return None
    own: Any = type(module)
    before = own.__dict__.get(_CHANGES)
    changes = dict(before or ())
    changes.update(((edit.method, edit.helper, edit.spot), edit.new) for edit in edits)
    return _class_for(own if before is None else own.__bases__[0], frozenset(changes.items()))


@functools.lru_cache(maxsize=1024)
def _class_for(base: Any, changes: Changes) -> Any:
    wanted: dict[str, dict[str, Numbers]] = {}
    for (method, helper, spot), new in changes:
        wanted.setdefault(method, {}).setdefault(helper, {})[spot] = new
    methods: dict[str, Any] = {}
    for name, edits in wanted.items():
        function = inspect.getattr_static(base, name, None)
        methods[name] = edited_method(function, edits) if _is_function(function) else None
    if None in methods.values():
        return None
    named = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    own = {**named, _CHANGES: changes, "__reduce_ex__": _reduce}
    return type(base.__name__, (base,), {**own, **methods})


def _is_function(value: Any) -> bool:
    return isinstance(value, FunctionType)


def _reduce(self: Any, protocol: Any) -> Any:
    """How to make such a module again: of the class that it came from.

    Raises:
        FileError: that class makes its modules in a way of its own.
    """
    own = type(self)
    changes = own.__dict__.get(_CHANGES)
    if changes is None:  # it was given yet another class meanwhile, which must know how
        return nn.Module.__reduce_ex__(self, protocol)
    base: Any = own.__bases__[0]
    make, args, *rest = base.__reduce_ex__(self, max(protocol, 2))
    if make is not copyreg.__newobj__ or args[0] is not own:  # type: ignore[attr-defined]
        raise FileError(
            f"{own.__name__} has numbers in its code rewritten and its own way to be pickled; save "
            "its state_dict and the plan instead"
        )
    return _made, (base, changes, *args[1:]), *rest


def _made(base: Any, changes: Changes, *args: Any) -> Any:
    own = _class_for(base, changes)
    if own is None:
        raise FileError(
            f"the source of {base.__module__}.{base.__qualname__} is not what this module was cut "
            "from, and does not have the numbers that were rewritten in it"
        )
    return own.__new__(own, *args)
