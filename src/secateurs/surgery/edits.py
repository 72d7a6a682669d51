"""Numbers in a model's code that a cut changes, and copies of methods that say the new ones.

A size that is written in the code, as the 1024 of `x.view(-1, 1024)`, becomes another number. A
size that is taken from the wrong tensor once a cut is made, as the `C` in
`x.transpose(1, 2).reshape(B, N, C)` from the shape of what came in, is left to the view itself: it
becomes -1, which follows whatever comes in.

The module that was cut gets its own copy of the method, compiled from the method's own source. A
call is named by its text, so a plan that holds it is plain data: nothing in it is ever evaluated.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MappingProxyType
from typing import Any, TypeAlias

from ..trace.program import Call, Site
from .reading import located
from .source import Spot, calls, definition, heard, slots, statements

Numbers: TypeAlias = dict[Spot, int]

_KEY, _HELPERS = "__secateurs_numbers__", "__secateurs_helpers__"
_NONE: Mapping[str, FunctionType] = MappingProxyType({})
_VIEWS = frozenset({"reshape", "view"})
_FEATURES = functools.reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


@dataclass(frozen=True)
class Edit:
    """A number in a method of a module, which becomes `new` in that module only.

    `text` is the call that it stands in as `ast.unparse` writes it, such as 'x.view(-1, 1024)', and
    `number` says which of the calls that read so, in the order of the source. The number is item
    `slot` of what the call is given; -1 leaves a size to a view. The call stands in the method, or
    in the function `helper` that the method calls by its name.
    """

    module: str
    method: str
    text: str
    number: int
    slot: int
    new: int
    helper: str = ""

    @property
    def spot(self) -> Spot:
        return self.text, self.number, self.slot

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells the place of this edit from every other."""
        return self.module, self.method, self.helper, self.spot

    def to_list(self) -> list[Any]:
        return [self.module, self.method, *self.spot, self.new, self.helper]


def written(call: Call, place: int, new: int) -> Edit | None:
    """What makes `new` of size number `place` of a call, if a number in the code says that size."""
    return _edit(call, place, new, sure=True)


def left(call: Call, place: int) -> Edit | None:
    """What leaves size number `place` of a view to the view, if it can find it by itself."""
    if call.name not in _VIEWS or -1 in call.integers:
        return None
    return _edit(call, place, -1, sure=False)


def _edit(call: Call, place: int, new: int, *, sure: bool) -> Edit | None:
    site, spot = site_of(call), spot_of(call, place, sure=sure)
    if site is None or spot is None:
        return None
    if edited(site.function, {spot: new}) is None:
        return None
    return Edit(site.owner, site.method, *spot, new, site.helper)


def site_of(call: Call) -> Site | None:
    """The function in which a call stands, if it is sure that a copy in its place would run."""
    return call.site if call.site and all(map(heard, call.site.callers)) else None


def spot_of(call: Call, place: int, *, sure: bool = True) -> Spot | None:
    """Where size number `place` of a call is written, or what gives it unless it must be sure."""
    found = None if call.site is None else located(call, place, _changed(call.site.function))
    return None if found is None or (sure and not found[1]) else found[0]


# ---------------------------------------------------------------------- copies of functions
def edited_method(function: FunctionType, edits: Mapping[str, Numbers]) -> FunctionType | None:
    """A copy of a method in which it ("") and its helpers say these numbers; None if one cannot."""
    helpers: dict[str, FunctionType] = {}
    for name in filter(None, edits):
        helper = _seen(function, name)
        mended = edited(helper, edits[name]) if isinstance(helper, FunctionType) else None
        if mended is None:
            return None
        helpers[name] = mended
    return edited(function, edits.get("", {}), helpers)


def _seen(function: FunctionType, name: str) -> Any:
    """What a function finds under a name that it does not bind."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return cells[name].cell_contents if name in cells else function.__globals__.get(name)


def edited(
    function: FunctionType, numbers: Mapping[Spot, int], helpers: Mapping[str, FunctionType] = _NONE
) -> FunctionType | None:
    """A copy of a function that says these numbers; None if there is no such.

    The source must be what the function was compiled from, but for what was changed before. Other
    helpers are variables of a function around it: all names of its module stay what they are there.
    """
    before, held = _changed(function), function.__dict__.get(_HELPERS, frozenset())
    plain = _compiled(function.__code__, frozenset(before.items()), held)
    if plain is None or not _alike(plain, function.__code__):
        return None
    after, names = {**before, **numbers}, held.union(helpers)
    code = _compiled(function.__code__, frozenset(after.items()), names)
    if code is None or not names.issubset(code.co_freevars):
        return None
    mended = _with_code(function, code, helpers)
    mended.__dict__.update({_KEY: after, _HELPERS: names})
    return mended


def _changed(function: FunctionType) -> Numbers:
    numbers: Numbers = function.__dict__.get(_KEY, {})
    return numbers


def _with_code(
    function: FunctionType, code: CodeType, helpers: Mapping[str, FunctionType]
) -> FunctionType:
    """The function with other code, and other helpers."""
    held = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    held.update((name, CellType(helper)) for name, helper in helpers.items())
    cells: tuple[CellType, ...] = tuple(held[name] for name in code.co_freevars)
    out = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)
    out.__kwdefaults__ = function.__kwdefaults__
    out.__doc__, out.__qualname__ = function.__doc__, function.__qualname__
    out.__annotations__, out.__module__ = function.__annotations__, function.__module__
    out.__dict__.update(function.__dict__)
    return out


def _parsed(text: str) -> Any:
    return ast.parse(text).body[0]


def _holder(code: CodeType) -> ast.stmt | None:
    """The statement of the file in which a function is defined."""
    return next((s for s in statements(code) if definition(code, [s])), None)


@functools.lru_cache(maxsize=256)
def _compiled(
    code: CodeType, numbers: frozenset[tuple[Spot, int]], around: frozenset[str]
) -> CodeType | None:
    """A function compiled from its source, with these numbers in it; None if there is no such.

    The names `around` are variables of a function around it.
    """
    top = _holder(code)
    holder = copy.deepcopy(top)
    tree = None if holder is None else definition(code, [holder])
    if holder is None or tree is None:
        return None
    own = {(text, n): slots(node) for text, n, node in calls(tree)} if numbers else {}
    for (text, n, slot), new in numbers:
        found = own.get((text, n), [])
        if slot >= len(found):
            return None
        found[slot].put(new)
    # the compiler looks at which names are imported modules
    imports = [s for s in statements(code) if isinstance(s, _MAY_IMPORT) and s is not top]
    if around:
        inside, holder = holder, _parsed(f"def around({', '.join(sorted(around))}): pass")
        holder.body = [inside]
    module = ast.fix_missing_locations(ast.Module([*imports, holder], []))
    flags = code.co_flags & _FEATURES
    whole = compile(module, code.co_filename, "exec", flags, dont_inherit=True)
    place = (code.co_name, code.co_firstlineno)
    return next((c for c in _codes(whole) if (c.co_name, c.co_firstlineno) == place), None)


_MAY_IMPORT = (ast.Import, ast.ImportFrom, ast.If, ast.Try, ast.With)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code objects inside another, outermost first."""
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield value
            yield from _codes(value)


def _alike(one: Any, other: Any) -> bool:
    """Whether two pieces of code, or constants in them, do the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, CodeType):
        same = all(getattr(one, name) == getattr(other, name) for name in _SAME)
        return same and _alike(one.co_consts, other.co_consts)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


_SAME = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount")
