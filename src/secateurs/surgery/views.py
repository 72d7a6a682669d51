"""Views in a model's code that take a size from the wrong tensor once a cut is made.

`x.transpose(1, 2).reshape(B, N, C)` with `C` from the shape of what came in is right only while
the inner width of an attention equals the width around it. In the module that was cut, such a size
is left to the view itself: `x.transpose(1, 2).reshape(B, N, -1)`, which follows whatever comes in.

The module gets its own copy of the method, compiled from the method's own source. A view is named
by its text, so a plan that holds it is plain data: nothing in it is ever evaluated.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import linecache
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any

from ..trace.program import Call

_VIEWS = frozenset({"reshape", "view"})
_FEATURES = functools.reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


@dataclass(frozen=True)
class View:
    """A view in a method of a module whose size number `size` becomes -1 in that module only.

    `text` is the view as `ast.unparse` writes it, such as 'x.reshape(B, N, C)'. It stands in the
    method, or in the function `helper` that the method calls by its name.
    """

    module: str
    method: str
    text: str
    size: int
    helper: str = ""

    def to_list(self) -> list[Any]:
        return [self.module, self.method, self.text, self.size, self.helper]


def view_text(call: Call, function: FunctionType, size: int) -> str | None:
    """The text of the view that a call is, if its size number `size` can be left to it."""
    if call.name not in _VIEWS or call.code is None or -1 in call.integers:
        return None
    found = _called(call.code, call.at, call.line, call.name)
    sizes = None if found is None else _sizes(found)
    if found is None or sizes is None or len(sizes) != len(call.integers):
        return None
    text = ast.unparse(found)
    return text if without_size(function, {(text, size)}) is not None else None


def without_size(function: FunctionType, views: Iterable[tuple[str, int]]) -> FunctionType | None:
    """A copy of a function in which these sizes of these views are -1; None if there is no such.

    The source must be what the function was compiled from, but for numbers and for views that were
    changed before.
    """
    before = _changed(function)
    if (plain := _compiled(function.__code__, before)) is None:
        return None
    numbers: dict[int, int] = {}
    if not _alike(plain, function.__code__, numbers):
        return None
    after = before | frozenset(views)
    code = _compiled(function.__code__, after)
    if code is None or (after != before and code == plain):
        return None
    mended = with_code(function, with_numbers(code, numbers))
    mended.__dict__[_VIEWS_KEY] = after
    return mended


_VIEWS_KEY = "__secateurs_views__"


def _changed(function: FunctionType) -> frozenset[tuple[str, int]]:
    views: frozenset[tuple[str, int]] = function.__dict__.get(_VIEWS_KEY, frozenset())
    return views


def mended_method(function: FunctionType, views: Iterable[View]) -> FunctionType | None:
    """A copy of a method in which these views of it, and of its helpers, find their sizes."""
    wanted: dict[str, list[tuple[str, int]]] = {}
    for view in views:
        wanted.setdefault(view.helper, []).append((view.text, view.size))
    own = wanted.pop("", [])
    mended = without_size(function, own) if own else function
    helpers = {}
    for name, sizes in wanted.items():
        helper = function.__globals__.get(name)
        helpers[name] = without_size(helper, sizes) if isinstance(helper, FunctionType) else None
    if mended is None or None in helpers.values():
        return None
    return with_code(mended, mended.__code__, helpers)


def with_code(
    function: FunctionType, code: CodeType, names: Mapping[str, Any] | None = None
) -> FunctionType:
    """The function with other code; the names that it sees as they were, but for these."""
    held = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells: tuple[CellType, ...] = tuple(held[name] for name in code.co_freevars)
    seen = {**function.__globals__, **names} if names else function.__globals__
    out = FunctionType(code, seen, function.__name__, function.__defaults__, cells)
    out.__kwdefaults__ = function.__kwdefaults__
    out.__doc__, out.__qualname__ = function.__doc__, function.__qualname__
    out.__annotations__, out.__module__ = function.__annotations__, function.__module__
    out.__dict__.update(function.__dict__)
    return out


def with_numbers(code: CodeType, numbers: dict[int, int]) -> CodeType:
    """The code with some of its integer constants replaced, in tuples too."""

    def new(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(new, value))
        return numbers.get(value, value) if type(value) is int else value

    return code.replace(co_consts=tuple(map(new, code.co_consts)))


# ---------------------------------------------------------------------- the source of a function
def _sizes(call: ast.Call) -> list[ast.expr] | None:
    """Where the sizes of a view stand; None if they cannot be told apart."""
    given = call.args
    if given and isinstance(given[-1], (ast.Tuple, ast.List)):
        given = given[-1].elts
    if call.keywords or any(isinstance(item, ast.Starred) for item in given):
        return None
    return given


@functools.cache
def _called(code: CodeType, at: int, line: int, name: str) -> ast.Call | None:
    """The call in the source that the instruction at this offset makes."""
    tree = _definition(code, _file(code))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)] if tree else []
    if sys.version_info >= (3, 11):
        place = list(code.co_positions())[at // 2]
        found = [
            n for n in calls if (n.lineno, n.end_lineno, n.col_offset, n.end_col_offset) == place
        ]
    else:
        found = [n for n in calls if n.lineno <= line <= (n.end_lineno or n.lineno)]
    found = [n for n in found if isinstance(n.func, ast.Attribute) and n.func.attr == name]
    return found[0] if len(found) == 1 else None


@functools.cache
def _parsed(filename: str, lines: tuple[str, ...]) -> list[ast.stmt]:
    try:
        return ast.parse("".join(lines)).body
    except SyntaxError:
        return []


def _file(code: CodeType) -> list[ast.stmt]:
    """The statements of the file that a piece of code comes from; none if it is not at hand."""
    return _parsed(code.co_filename, tuple(linecache.getlines(code.co_filename)))


def _definition(code: CodeType, among: Iterable[ast.stmt]) -> ast.FunctionDef | None:
    """The definition of a function among some statements."""
    for statement in among:
        for node in ast.walk(statement):
            if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if first == code.co_firstlineno:
                    return node
    return None


def _holder(code: CodeType) -> ast.stmt | None:
    """The statement of the file in which a function is defined."""
    return next((s for s in _file(code) if _definition(code, [s])), None)


@functools.cache
def _compiled(code: CodeType, views: frozenset[tuple[str, int]]) -> CodeType | None:
    """A function compiled from its source, with these sizes as -1; None if there is no such."""
    holder = copy.deepcopy(_holder(code))
    tree = None if holder is None else _definition(code, [holder])
    if holder is None or tree is None:
        return None
    calls = [(ast.unparse(n), n) for n in ast.walk(tree) if views and isinstance(n, ast.Call)]
    for text, size in views:
        found = [sizes for own, n in calls if own == text and (sizes := _sizes(n))]
        if not found or any(size >= len(sizes) for sizes in found):
            return None
        for sizes in found:
            sizes[size] = ast.copy_location(_minus_one(), sizes[size])
    # the compiler looks at which names are imported modules
    imports = [s for s in _file(code) if isinstance(s, _MAY_IMPORT) and s is not _holder(code)]
    module = ast.fix_missing_locations(ast.Module([*imports, holder], []))
    flags = code.co_flags & _FEATURES
    whole = compile(module, code.co_filename, "exec", flags, dont_inherit=True)
    place = (code.co_name, code.co_firstlineno)
    return next((c for c in _codes(whole) if (c.co_name, c.co_firstlineno) == place), None)


_MAY_IMPORT = (ast.Import, ast.ImportFrom, ast.If, ast.Try, ast.With)


def _minus_one() -> ast.expr:
    return ast.parse("-1", mode="eval").body


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code objects inside another, outermost first."""
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield value
            yield from _codes(value)


def _alike(one: Any, other: Any, numbers: dict[int, int]) -> bool:
    """Whether two pieces of code, or constants in them, differ in whole numbers alone.

    What each number of the one is in the other is added to `numbers`.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, CodeType):
        same = all(getattr(one, name) == getattr(other, name) for name in _SAME)
        return same and _alike(one.co_consts, other.co_consts, numbers)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(
            _alike(a, b, numbers) for a, b in zip(one, other, strict=True)
        )
    if type(one) is int:
        return numbers.setdefault(one, other) == other
    return bool(one == other)


_SAME = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount")
