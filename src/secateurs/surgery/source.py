"""Where in the source of a function a call stands, and what can be replaced in it.

Python keeps for every instruction the part of the source that it was compiled from (only the line,
before 3.11), so the call that ran is found, not one like it.
"""

from __future__ import annotations

import ast
import functools
import linecache
import sys
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

from ..trace.program import Call, Caller

Spot: TypeAlias = tuple[str, int, int]  # a call's text, which of those that read so, and its slot
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


# ---------------------------------------------------------------------- the source of a function
def calls(tree: ast.FunctionDef) -> Iterator[tuple[str, int, Written]]:
    """Every call and every indexing in a function: its text, and which of those that read so."""
    met: dict[str, int] = {}
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Call, ast.Subscript))]
    for node in sorted(nodes, key=lambda n: (n.lineno, n.col_offset)):
        text = ast.unparse(node)
        met[text] = met.get(text, -1) + 1
        yield text, met[text], node


def called(tree: ast.FunctionDef, call: Call) -> list[tuple[str, int, Written]]:
    """What a call may be in the source: one, or several where only its line is known."""
    if call.code is None:
        return []
    named = [known for known in _known_calls(tree) if _is_called(known[2], call.name)]
    return [known for known in named if _stands(known[2], call.code, call.line, call.at)]


@functools.lru_cache(maxsize=1024)
def heard(caller: Caller) -> bool:
    """Whether a call is surely written as one of the texts that it must be written as."""
    met = [n for n in _all_calls(statements(caller.code))
           if _stands(n, caller.code, caller.line, caller.at)]  # fmt: skip
    return len(met) == 1 and ast.unparse(met[0].func) in caller.texts


def _stands(node: Written, code: CodeType, line: int, at: int) -> bool:
    """Whether an instruction can be compiled from this; before Python 3.11 its line alone tells."""
    if sys.version_info < (3, 11):
        return node.lineno <= line <= (node.end_lineno or node.lineno)
    first, last, start, end = _positions(code)[at // 2]
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
def _positions(code: CodeType) -> tuple[Any, ...]:
    return tuple(code.co_positions()) if sys.version_info >= (3, 11) else ()


@functools.lru_cache(maxsize=256)
def _all_calls(tops: tuple[ast.stmt, ...]) -> list[ast.Call]:
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
def _parsed(filename: str, lines: tuple[str, ...]) -> tuple[ast.stmt, ...]:
    try:
        return tuple(ast.parse("".join(lines)).body)
    except SyntaxError:
        return ()


def statements(code: CodeType) -> tuple[ast.stmt, ...]:
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


@functools.lru_cache(maxsize=256)
def defined(code: CodeType, among: tuple[ast.stmt, ...]) -> ast.FunctionDef | None:
    """The same, of what was looked up before too."""
    return definition(code, among)
