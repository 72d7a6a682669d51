"""Which argument of a call, as it is written, gave which integer.

What stands in the source is read against what the call was given. An answer is sure, or there is
none.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, TypeAlias

import torch

from ..trace.program import Call, can_size
from .constants import constant
from .source import Spot, Written, called, defined, slots, statements

Changed: TypeAlias = Mapping[Spot, int]
Reading: TypeAlias = dict[int, tuple[int, bool]]  # integer -> its slot, and if it is written there


def located(call: Call, place: int, changed: Changed) -> tuple[Spot, bool] | None:
    """The slot that gave size number `place` of a call, and whether a number is written there.

    Args:
        call: one that ran.
        place: of one of its `sizes`.
        changed: what the code says otherwise than its source.
    """
    if call.code is None or call.given is None:
        return None
    tree = defined(call.code, statements(call.code))
    if tree is None:
        return None
    index = [i for i, n in enumerate(call.integers) if can_size(n)][place]
    found = []
    for text, number, node in called(tree, call):
        own = {slot: new for (t, n, slot), new in changed.items() if (t, n) == (text, number)}
        readings = _readings(_Reader(tree, node, own, call.integers), node, call)
        if readings:
            found.append((text, number, {reading.get(index) for reading in readings}))
    if len(found) != 1:
        return None
    text, number, agreed = found[0]
    slot, sure = next(iter(agreed)) or (None, False)
    return None if slot is None or len(agreed) > 1 else ((text, number, slot), sure)


def _readings(reader: _Reader, node: Written, call: Call) -> list[Reading]:
    """All ways to read what is written as what was given."""
    args, kwargs = call.given or ((), {})
    if isinstance(node, ast.Subscript):
        made = [reader.read([node.slice], list(args[1:2]))]
        return [reading for reading in made if reading is not None]
    receivers = (0, 1) if isinstance(node.func, ast.Attribute) and args[:1] == ("other",) else (0,)
    plain = _read_as(reader, node, [(list(args[n:]), kwargs) for n in receivers])
    return plain or _read_as(reader, node, [w for n in receivers for w in _ways(node, call, n)])


def _read_as(
    reader: _Reader, node: ast.Call, ways: Iterable[tuple[list[Any], Mapping[str, Any]]]
) -> list[Reading]:
    out = []
    for positional, named in filter(None, (_written_as(node, *way) for way in ways)):
        left, right = reader.read(node.args, positional), reader.read(_values(node), named)
        if left is not None and right is not None:
            out.append({**left, **right})
    return out


def _values(node: ast.Call) -> list[ast.expr]:
    return [keyword.value for keyword in node.keywords]


def _written_as(
    node: ast.Call, given: list[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], list[Any]] | None:
    """What a call was given, by what is written in it; None if it was given what is not."""
    if not any(isinstance(arg, ast.Starred) for arg in node.args):
        beyond = given[len(node.args) :]
        names = {keyword.arg for keyword in node.keywords}
        more = [] if None in names else [kwargs[name] for name in kwargs.keys() - names]
        if any(isinstance(item, (int, list, tuple)) for item in (*beyond, *more)):
            return None
        given = (given + [None] * len(node.args))[: len(node.args)]
    return given, [kwargs.get(keyword.arg or "") for keyword in node.keywords]


def _ways(node: ast.Call, call: Call, receiver: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """What a call was given, as it is written: PyTorch's own functions hand arguments on.

    They may name what came by its position, or the reverse; their signatures tell.
    """
    args, kwargs = call.given or ((), {})
    for holder in (torch.Tensor, torch, torch.nn.functional):
        function = getattr(holder, call.name, None)
        if not isinstance(function, FunctionType):
            continue
        try:
            bound = inspect.signature(function).bind(*args, **kwargs)
        except TypeError:
            continue
        names = list(bound.arguments)[receiver:]
        first, rest = names[: len(node.args)], names[len(node.args) :]
        yield [bound.arguments[n] for n in first], {n: bound.arguments[n] for n in rest}


class _Reader:
    """Reads the arguments of a call, as they are written, against those that were given."""

    def __init__(
        self, tree: ast.FunctionDef, node: Written, changed: Mapping[int, int], integers: list[int]
    ):
        self.tree, self.changed, self.integers = tree, changed, integers
        self.numbers = {id(slot.text): n for n, slot in enumerate(slots(node))}

    def read(self, written: list[ast.expr], given: list[Any]) -> Reading | None:
        """Which slot gave each integer; None if this cannot be what was given."""
        out: Reading = {}
        stars = [n for n, item in enumerate(written) if isinstance(item, ast.Starred)]
        if stars:
            after = len(written) - stars[-1] - 1
            if len(given) < stars[0] + after:
                return None
            written = written[: stars[0]] + written[len(written) - after :]
            given = given[: stars[0]] + given[len(given) - after :]
        if len(written) != len(given):
            return None
        for item, own in zip(written, given, strict=True):
            found = self._item(item, own)
            if found is None:
                return None
            out |= found
        return out

    def _item(self, item: ast.expr, given: Any) -> Reading | None:
        if isinstance(item, (ast.Tuple, ast.List)):
            return self.read(item.elts, given) if isinstance(given, list) else None
        if isinstance(item, ast.Slice):
            if not isinstance(given, tuple):
                return None
            bounds = list(zip((item.lower, item.upper, item.step), given, strict=True))
            if any(own is not None for bound, own in bounds if bound is None):
                return None
            stated = [(bound, own) for bound, own in bounds if bound is not None]
            return self.read([bound for bound, _ in stated], [own for _, own in stated])
        slot = self.numbers[id(item)]
        number = self.changed.get(slot, constant(item, self.tree))
        if number is None:
            return {given: (slot, False)} if isinstance(given, int) else {}
        if not isinstance(given, int):
            return None
        own = self.integers[given]
        return {given: (slot, True)} if type(own) is int and own == number else None
