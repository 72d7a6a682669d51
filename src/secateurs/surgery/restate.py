"""State a size anew where a module's code computes it from one that no longer agrees.

Code such as `x.reshape(b, t, heads, c // heads)` takes the size of a head from the width of its
input. When heads go and the width stays, no attribute makes that right. The module then runs under
a mode that gives the call its size: which call it is, is known by its place in the run of that
module's forward. The sizes stand in the module's attribute `stated`, and later cuts mend them there
like any other attribute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..trace.calls import function_name
from ..trace.program import can_size


@dataclass(frozen=True)
class Restated:
    """In a run of `module`, size `place` of call `ordinal` of `function` is `new`.

    Calls are counted from 1, those of the module's children with them. It is item `number` of what
    the module states, which may have been restated in a cut before.
    """

    module: str
    function: str
    ordinal: int
    place: int
    new: int
    number: int = 0

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.module, self.function, self.ordinal, self.place

    def to_list(self) -> list[Any]:
        return [self.module, self.function, self.ordinal, self.place, self.new, self.number]


def install(module: nn.Module, restated: Restated) -> None:
    """Make a module state this size from now on."""
    own = module.__dict__
    if "stated" not in own:
        own["restated"], own["stated"] = (), ()
        own["_plain_forward"] = own.get("forward")
        own["forward"] = MethodType(_forward, module)
    own["restated"] += (restated.key[1:],)
    own["stated"] += (restated.new,)


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    own = self.__dict__
    plain = own["_plain_forward"] or MethodType(type(self).forward, self)
    with _Restating(own["restated"], own["stated"]):
        return plain(*args, **kwargs)


class _Restating(TorchFunctionMode):
    """Counts the calls of some torch functions, and replaces integers that some are given."""

    def __init__(self, restated: Iterable[tuple[str, int, int]], stated: Iterable[int]):
        super().__init__()
        self.sizes: dict[tuple[str, int], dict[int, int]] = {}
        for (function, ordinal, place), size in zip(restated, stated, strict=True):
            self.sizes.setdefault((function, ordinal), {})[place] = size
        self.names = {function for function, _ in self.sizes}
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name in self.names:
            self.counts[name] += 1
            sizes = self.sizes.get((name, self.counts[name]))
            if sizes is not None:
                args, kwargs = with_sizes(args, kwargs, sizes)
        return func(*args, **kwargs)


def with_sizes(
    args: Iterable[Any], kwargs: Mapping[str, Any], sizes: Mapping[int, int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function with other sizes at these places among its sizes."""
    replace = _Replace(sizes)
    return tuple(map(replace, args)), {key: replace(value) for key, value in kwargs.items()}


class _Replace:
    """Replaces the sizes at some places, in the order in which it is given them."""

    def __init__(self, sizes: Mapping[int, int]):
        self.sizes, self.place = sizes, -1

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(self, value)) if type(value) in (tuple, list) else value
        if isinstance(value, slice):
            return slice(self(value.start), self(value.stop), self(value.step))
        number = isinstance(value, int) and not isinstance(value, bool) and can_size(value)
        if number or isinstance(value, torch.SymInt):  # a size of any value, under torch.export
            self.place += 1
            return self.sizes.get(self.place, value)
        return value
