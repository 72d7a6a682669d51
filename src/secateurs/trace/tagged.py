"""Integers that remember where they came from.

While a model is traced, its modules hand out their integer attributes, and tensors their sizes, as
`TaggedInt`: an `int` that carries its provenance through arithmetic. Where such a number reaches a
torch function, its provenance says which attribute describes a size, and so which one to mend.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsInt, TypeAlias


class Attribute(NamedTuple):
    """An integer attribute of a module, or item `item` of a tuple or list attribute."""

    module: str
    name: str
    item: int | None = None

    def __str__(self) -> str:
        name = self.name if self.item is None else f"{self.name}[{self.item}]"
        return f"{self.module}.{name}" if self.module else name


class Size(NamedTuple):
    """The size of dimension `dim` of the value `value` of a program."""

    value: int
    dim: int


@dataclass(frozen=True)
class Operation:
    """An integer operation on two sources."""

    function: Callable[[int, int], int]
    left: Source
    right: Source


Source: TypeAlias = Attribute | Size | Operation | int


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


def source_of(value: int) -> Source:
    return value.source if isinstance(value, TaggedInt) else int(value)


def _binary(function: Callable[[int, int], int], *, swap: bool) -> Callable[..., Any]:
    def method(self: TaggedInt, other: object) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        a, b = (other, self) if swap else (self, other)
        return TaggedInt(function(int(a), int(b)), Operation(function, source_of(a), source_of(b)))

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _function = getattr(operator, _name)
    setattr(TaggedInt, f"__{_name}__", _binary(_function, swap=False))
    setattr(TaggedInt, f"__r{_name}__", _binary(_function, swap=True))


def evaluate(source: Source, known: Mapping[Attribute | Size, int]) -> int:
    """The number that a source gives when its leaves have these values."""
    if isinstance(source, Operation):
        return source.function(evaluate(source.left, known), evaluate(source.right, known))
    return source if isinstance(source, int) else known[source]


def leaves_of(source: Source) -> Iterator[Attribute | Size]:
    """The attributes and sizes that a source was computed from."""
    if isinstance(source, Operation):
        yield from leaves_of(source.left)
        yield from leaves_of(source.right)
    elif not isinstance(source, int):
        yield source
