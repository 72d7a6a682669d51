"""Numbers that remember where they came from.

While a model is traced, its modules hand out their integer attributes, and tensors their sizes, as
`TaggedInt`: an `int` that carries its provenance through arithmetic. Where such a number reaches a
torch function, its provenance says which attribute describes a size, and so which one to mend. A
float that is computed from it, such as the 1/√d of attention, is a `TaggedFloat`. Comparisons of
such numbers are noted: they may decide which way the code goes.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsInt, TypeAlias


class Attribute(NamedTuple):
    """An integer attribute of a module, or item `item` of a tuple, list or dict attribute."""

    module: str
    name: str
    item: int | str | None = None

    def __str__(self) -> str:
        name = self.name if self.item is None else f"{self.name}[{self.item}]"
        return f"{self.module}.{name}" if self.module else name


class Size(NamedTuple):
    """The size of dimension `dim` of the value `value` of a program."""

    value: int
    dim: int


@dataclass(frozen=True)
class Operation:
    """An arithmetic operation on two sources."""

    function: Callable[[Any, Any], Any]
    left: Source
    right: Source


Number: TypeAlias = int | float
Source: TypeAlias = Attribute | Size | Operation | int | float


class Comparison(NamedTuple):
    """A comparison that the code made of two numbers, and how it came out."""

    function: Callable[[Any, Any], Any]
    left: Source
    right: Source
    outcome: bool
    place: str


class TaggedInt(int):
    """An int with a source. Behaves as the plain number everywhere."""

    source: Source

    def __new__(cls, value: SupportsInt, source: Source) -> TaggedInt:
        self = int.__new__(cls, int(value))
        self.source = source
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: object) -> int:
        return int(self)


class TaggedFloat(float):
    """A float with a source. Behaves as the plain number everywhere."""

    source: Source

    def __new__(cls, value: float, source: Source) -> TaggedFloat:
        self = float.__new__(cls, value)
        self.source = source
        return self

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)

    def __copy__(self) -> float:
        return float(self)

    def __deepcopy__(self, memo: object) -> float:
        return float(self)


def source_of(value: Number) -> Source:
    return value.source if isinstance(value, (TaggedInt, TaggedFloat)) else _plain(value)


def _plain(value: Number) -> Number:
    return int(value) if isinstance(value, int) else float(value)


def _tagged(value: Any, source: Source) -> Any:
    if type(value) is int:
        return TaggedInt(value, source)
    return TaggedFloat(value, source) if type(value) is float else value


def _binary(function: Callable[[Any, Any], Any], *, swap: bool) -> Callable[..., Any]:
    def method(self: TaggedInt | TaggedFloat, other: object) -> Any:
        if not isinstance(other, (int, float)) or isinstance(other, bool):
            return NotImplemented
        a, b = (other, self) if swap else (self, other)
        source = Operation(function, source_of(a), source_of(b))
        return _tagged(function(_plain(a), _plain(b)), source)

    return method


def _power(self: TaggedInt | TaggedFloat, other: object, modulus: object = None) -> Any:
    return NotImplemented if modulus is not None else _raised(self, other)


def _negative(self: TaggedInt | TaggedFloat) -> Any:
    return _tagged(-_plain(self), Operation(operator.sub, 0, self.source))


_NOTED: ContextVar[list[Comparison] | None] = ContextVar("comparisons", default=None)
_OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def _note(function: Callable[[Any, Any], Any], left: Any, right: Any, outcome: bool) -> None:
    noted = _NOTED.get()
    if noted is None:
        return
    sources = source_of(left), source_of(right)
    if all(isinstance(source, (int, float)) for source in sources):
        return
    frame = sys._getframe(2)
    if not frame.f_code.co_filename.startswith(_OURS):
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        noted.append(Comparison(function, *sources, outcome, place))


def _comparison(name: str, kind: type) -> Callable[[Any, object], Any]:
    function, plain = getattr(operator, name), getattr(kind, f"__{name}__")

    def method(self: TaggedInt | TaggedFloat, other: object) -> Any:
        outcome = plain(self, other)
        if outcome is not NotImplemented:
            _note(function, self, other, outcome)
        return outcome

    return method


def _truth(self: TaggedInt | TaggedFloat) -> bool:
    outcome = _plain(self) != 0
    _note(operator.ne, self, 0, outcome)
    return outcome


@contextlib.contextmanager
def noting_comparisons(into: list[Comparison]) -> Iterator[None]:
    """While open, comparisons of tagged numbers in all code but our own are added to a list."""
    token = _NOTED.set(into)
    try:
        yield
    finally:
        _NOTED.reset(token)


_raised = _binary(operator.pow, swap=False)
for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv"):
    _function = getattr(operator, _name)
    for _class in (TaggedInt, TaggedFloat):
        setattr(_class, f"__{_name}__", _binary(_function, swap=False))
        setattr(_class, f"__r{_name}__", _binary(_function, swap=True))
_others = {
    "__pow__": _power,
    "__rpow__": _binary(operator.pow, swap=True),
    "__neg__": _negative,
    "__bool__": _truth,
}
for _class, _kind in ((TaggedInt, int), (TaggedFloat, float)):
    for _name, _method in _others.items():
        setattr(_class, _name, _method)
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_class, f"__{_name}__", _comparison(_name, _kind))


@contextlib.contextmanager
def tagged_roots() -> Iterator[None]:
    """While open, `math.sqrt` of a tagged number is tagged."""
    sqrt = math.sqrt

    def root(x: Any, /) -> float:
        if isinstance(x, (TaggedInt, TaggedFloat)):
            return TaggedFloat(sqrt(x), Operation(operator.pow, x.source, 0.5))
        return sqrt(x)

    math.sqrt = root
    try:
        yield
    finally:
        math.sqrt = sqrt


def evaluate(source: Source, known: Mapping[Any, int]) -> Any:
    """The number that a source gives when its leaves have these values."""
    if isinstance(source, Operation):
        return source.function(evaluate(source.left, known), evaluate(source.right, known))
    return source if isinstance(source, (int, float)) else known[source]


def leaves_of(source: Source) -> Iterator[Attribute | Size]:
    """The attributes and sizes that a source was computed from."""
    if isinstance(source, Operation):
        yield from leaves_of(source.left)
        yield from leaves_of(source.right)
    elif not isinstance(source, (int, float)):
        yield source
