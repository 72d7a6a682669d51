"""Where in the source of a function a call stands, and which of its arguments gave which integer.

Python keeps for every instruction the part of the source that it was compiled from (only the line,
before 3.11), so the call that ran is found, not one like it. What stands there is then read against
what the call was given. An answer is sure, or there is none.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple, TypeAlias

import torch

from ..trace.program import Call, Caller, can_size
from .constants import constant

Spot: TypeAlias = tuple[str, int, int]  # a call's text, which of those that read so, and its slot
Changed: TypeAlias = Mapping[Spot, int]
Written: TypeAlias = ast.Call | ast.Subscript

_INDEXING = frozenset({"__getitem__", "__setitem__"})


class Slot(NamedTuple):
    """One argument of a call, an item of one, or a bound of a slice: where it can be replaced."""

    holder: Any
    key: Any

    @property
    def text(self) -> ast.expr:
        item = isinstance(self.holder, list)
        found: ast.expr = self.holder[self.key] if item else getattr(self.holder, self.key)
        return found

    def put(self, new: int) -> None:
        number: ast.expr = ast.Constant(abs(new))
        if new < 0:
            number = ast.UnaryOp(ast.USub(), number)
        ast.copy_location(number, self.text)
        if isinstance(self.holder, list):
            self.holder[self.key] = number
        else:
            setattr(self.holder, self.key, number)


def slots(call: Written) -> list[Slot]:
    """Everything that a call is given, item by item, in the order of the source."""
    if isinstance(call, ast.Subscript):
        return list(_spread(call, "slice"))
    places = [(call.args, n) for n in range(len(call.args))]
    return [
        slot
        for holder, key in (*places, *((keyword, "value") for keyword in call.keywords))
        for slot in _spread(holder, key)
    ]


def _spread(holder: Any, key: Any) -> Iterator[Slot]:
    slot = Slot(holder, key)
    if isinstance(slot.text, (ast.Tuple, ast.List)):
        for n in range(len(slot.text.elts)):
            yield from _spread(slot.text.elts, n)
    elif isinstance(slot.text, ast.Slice):
        bounds = [name for name in ("lower", "upper", "step") if getattr(slot.text, name)]
        yield from (Slot(slot.text, name) for name in bounds)
    else:
        yield slot


# ---------------------------------------------------------------------- which argument it was
def located(call: Call, place: int, changed: Changed) -> tuple[Spot, bool] | None:
    """The slot that gave size number `place` of a call, and whether a number is written there.

    Args:
        call: one that ran.
        place: of one of its `sizes`.
        changed: what the code says otherwise than its source.
    """
    if call.code is None or call.given is None:
        return None
    tree = definition(call.code, statements(call.code))
    if tree is None:
        return None
    index = [i for i, n in enumerate(call.integers) if can_size(n)][place]
    found = []
    for text, number, node in _called(tree, call):
        own = {slot: new for (t, n, slot), new in changed.items() if (t, n) == (text, number)}
        readings = _readings(_Reader(tree, node, own, call.integers), node, call)
        if readings:
            found.append((text, number, {reading.get(index) for reading in readings}))
    if len(found) != 1:
        return None
    text, number, agreed = found[0]
    slot, sure = next(iter(agreed)) or (None, False)
    return None if slot is None or len(agreed) > 1 else ((text, number, slot), sure)


Reading: TypeAlias = dict[int, tuple[int, bool]]  # integer -> its slot, and if it is written there


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


# ---------------------------------------------------------------------- the source of a function
def calls(tree: ast.FunctionDef) -> Iterator[tuple[str, int, Written]]:
    """Every call and every indexing in a function: its text, and which of those that read so."""
    met: dict[str, int] = {}
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Call, ast.Subscript))]
    for node in sorted(nodes, key=lambda n: (n.lineno, n.col_offset)):
        text = ast.unparse(node)
        met[text] = met.get(text, -1) + 1
        yield text, met[text], node


def _called(tree: ast.FunctionDef, call: Call) -> list[tuple[str, int, Written]]:
    """What a call may be in the source: one, or several where only its line is known."""
    if call.code is None:
        return []
    named = [known for known in _known_calls(tree) if _is_called(known[2], call.name)]
    return [known for known in named if _stands(known[2], call.code, call.line, call.at)]


@functools.lru_cache(maxsize=1024)
def heard(caller: Caller) -> bool:
    """Whether a call is surely written as one of the texts that it must be written as."""
    tops = statements(caller.code)
    met = [n for n in _all_calls(caller.code.co_filename, tuple(tops))
           if _stands(n, caller.code, caller.line, caller.at)]  # fmt: skip
    return len(met) == 1 and ast.unparse(met[0].func) in caller.texts


def _stands(node: Written, code: CodeType, line: int, at: int) -> bool:
    """Whether an instruction can be compiled from this; before Python 3.11 its line alone tells."""
    if sys.version_info < (3, 11):
        return node.lineno <= line <= (node.end_lineno or node.lineno)
    first, last, start, end = list(code.co_positions())[at // 2]
    if (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset) == (
        first, last, start, end,
    ):  # fmt: skip
        return True
    name = node.func if isinstance(node, ast.Call) else None
    if not isinstance(name, ast.Attribute) or name.end_col_offset is None:
        return False
    begin = name.end_col_offset - len(name.attr)  # of a chain over lines, at the name it begins
    return (name.end_lineno, begin, node.end_lineno) == (first, start, last)


@functools.lru_cache(maxsize=256)
def _all_calls(filename: str, tops: tuple[ast.stmt, ...]) -> list[ast.Call]:
    return [n for top in tops for n in ast.walk(top) if isinstance(n, ast.Call)]


def _is_called(node: Written, name: str) -> bool:
    if isinstance(node, ast.Subscript):
        return name in _INDEXING
    function = node.func
    return name == (function.attr if isinstance(function, ast.Attribute) else
                    function.id if isinstance(function, ast.Name) else None)  # fmt: skip


@functools.lru_cache(maxsize=256)
def _known_calls(tree: ast.FunctionDef) -> list[tuple[str, int, Written]]:
    return list(calls(tree))


@functools.lru_cache(maxsize=256)
def _parsed(filename: str, lines: tuple[str, ...]) -> list[ast.stmt]:
    try:
        return ast.parse("".join(lines)).body
    except SyntaxError:
        return []


def statements(code: CodeType) -> list[ast.stmt]:
    """The statements of the file that a piece of code comes from; none if it is not at hand."""
    return _parsed(code.co_filename, tuple(linecache.getlines(code.co_filename)))


def definition(code: CodeType, among: Iterable[ast.stmt]) -> ast.FunctionDef | None:
    """The definition of a function among some statements."""
    for statement in among:
        for node in ast.walk(statement):
            if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if first == code.co_firstlineno:
                    return node
    return None
