"""Find the integers in a model that state sizes, and what they must become after a cut.

While the model was traced, its attributes and its tensors' sizes were handed out with their
provenance. Every torch function that states a size after the cut gives an equation: what it was
given must become the new size. Attributes are solved from these equations; a number written in the
code of a module is rewritten for that module alone; anything else is refused.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, TypeAlias

from ..errors import MendError
from ..trace.analyse import Analysis
from ..trace.program import Call
from ..trace.sizes import Cut, resized_args, states_sizes
from ..trace.tagged import Attribute, Size, Source, TaggedInt, evaluate, leaves_of

Equation: TypeAlias = tuple[Source, int, Call]

# Attributes that describe a weight's axes to a reader, by the role of the axis that they describe.
_DESCRIBES = {
    "writes": re.compile(r"out_|embedding_dim|num_features"),
    "reads": re.compile(r"in_"),
    "carries": re.compile(r"num_(features|channels|parameters)|in_channels|out_channels"),
}


@dataclass(frozen=True)
class Literal:
    """An integer constant in a method of a module: `old` becomes `new` in that module only."""

    module: str
    method: str
    old: int
    new: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.module, self.method, self.old

    def same_place(self, later: Literal) -> bool:
        """Whether a later mend rewrites what this one wrote."""
        return (self.module, self.method, self.new) == (later.module, later.method, later.old)

    def to_list(self) -> list[Any]:
        return [self.module, self.method, self.old, self.new]

    @classmethod
    def from_list(cls, data: Any) -> Literal:
        module, method, old, new = data
        if not isinstance(module, str) or not isinstance(method, str):
            raise TypeError("a literal names a module and a method")
        return cls(module, method, int(old), int(new))


def mend(analysis: Analysis, cut: Cut) -> tuple[dict[Attribute, tuple[int, int]], list[Literal]]:
    """The attributes and literals that a cut changes: attribute -> (before, after).

    Raises:
        MendError: a size is fixed by something that cannot be rewritten.
    """
    solved, literals = solve(analysis, cut)
    before = analysis.program.attributes
    after = {**_descriptions(analysis, cut), **solved}
    changed = {a: (before[a], n) for a, n in after.items() if before[a] != n}
    return changed, literals


def solve(analysis: Analysis, cut: Cut) -> tuple[dict[Attribute, int], list[Literal]]:
    """The attributes and literals that the model's own functions need after a cut.

    Raises:
        MendError: as for `mend`.
    """
    before = analysis.program.attributes
    equations: list[Equation] = []
    literals: dict[tuple[str, str, int], tuple[Literal, set[int]]] = {}
    for call, old, new in _stated_sizes(analysis, cut):
        for given in (i for i in call.integers if i == old):
            if isinstance(given, TaggedInt):
                equations.append((given.source, new, call))
            elif old != new:
                literal = _literal(analysis, call, old, new)
                entry = literals.setdefault(literal.key, (literal, set()))
                if entry[0] != literal:
                    raise MendError(
                        f"{call.place} writes {old} where the cut needs {entry[0].new} in one "
                        f"place and {new} in another; use two attributes instead of the number"
                    )
                entry[1].add(call.at)
    after = _solve(equations, before, _Sizes(analysis, cut))
    for literal, sites in literals.values():
        _check_literal(analysis, literal, sites)
    return after, [literal for literal, _ in literals.values()]


def _stated_sizes(analysis: Analysis, cut: Cut) -> Iterator[tuple[Call, int, int]]:
    """(call, size before, size after) for every size that a torch function was given."""
    for node in analysis.program.nodes:
        if node.call is None or not states_sizes(node):
            continue
        for old, new in zip(node.args, resized_args(analysis, node, cut), strict=True):
            pairs = zip(old, new, strict=True) if isinstance(old, list) else [(old, new)]
            for a, b in pairs:
                if type(a) is int and type(b) is int and a not in (-1, 0):
                    yield node.call, a, b


class _Sizes(dict[Any, int]):
    """The sizes of the program's values after the cut, by `Size`."""

    def __init__(self, analysis: Analysis, cut: Cut):
        super().__init__()
        self.analysis, self.cut = analysis, cut

    def __missing__(self, key: Size) -> int:
        axes = self.analysis.axes.get(key.value)
        old = self.analysis.program.values[key.value].shape[key.dim]
        return old if axes is None else self.cut.size(axes[key.dim])


def _solve(
    equations: list[Equation], before: dict[Attribute, int], sizes: _Sizes
) -> dict[Attribute, int]:
    """The attributes' new values that satisfy every equation."""
    after: dict[Attribute, int] = {}
    for source, value, call in equations:
        if isinstance(source, Attribute) and after.setdefault(source, value) != value:
            raise MendError(
                f"{source} states two sizes that this plan makes different ({after[source]} and "
                f"{value}, at {call.place}); delete equally many units of both"
            )
    for source, value, call in equations:
        unknown = [a for a in leaves_of(source) if isinstance(a, Attribute) and a not in after]
        known: Any = _Sizes(sizes.analysis, sizes.cut)
        known.update(before)
        known.update(after)
        if evaluate(source, known) == value:
            continue
        for attribute in unknown:
            found = next(
                (
                    n
                    for n in range(1, before[attribute])
                    if _gives(source, known, attribute, n) == value
                ),
                None,
            )
            if found is not None:
                after[attribute] = found
                break
        else:
            raise MendError(
                f"{call.place} computes a size that would be {evaluate(source, known)} after the "
                f"cut where {value} is needed; delete units so that the two agree"
            )
    return after


def _gives(source: Source, known: Any, attribute: Attribute, value: int) -> int | None:
    trial = type(known)(known.analysis, known.cut)
    trial.update(known)
    trial[attribute] = value
    try:
        return evaluate(source, trial)
    except ZeroDivisionError:
        return None


# ---------------------------------------------------------------------- numbers in the code
def constants(code: CodeType) -> Iterator[int]:
    """Every use of an integer constant in a piece of code; those inside tuples too."""
    for instruction in dis.get_instructions(code):
        values = instruction.argval
        if instruction.opname.startswith(("LOAD_CONST", "RETURN_CONST", "LOAD_SMALL_INT")):
            for value in values if isinstance(values, tuple) else (values,):
                if type(value) is int:
                    yield value


def _literal(analysis: Analysis, call: Call, old: int, new: int) -> Literal:
    method = None
    if call.owner is not None and call.code is not None:
        method = analysis.program.methods.get((call.owner, call.code))
    if method is None or call.owner is None or call.code is None or old not in constants(call.code):
        raise MendError(
            f"{call.place} is given the size {old}, which the cut would make {new}, and where "
            "that number comes from cannot be found; take it from x.shape or a module attribute"
        )
    return Literal(call.owner, method, old, new)


def _check_literal(analysis: Analysis, literal: Literal, sites: set[int]) -> None:
    """The number must not be used for anything else in the same method."""
    for (owner, code), method in analysis.program.methods.items():
        if (owner, method) == (literal.module, literal.method):
            uses = sum(value == literal.old for value in constants(code))
            if uses > len(sites):
                raise MendError(
                    f"{code.co_filename}: {method} uses the number {literal.old} {uses} times, and "
                    f"only {len(sites)} of them would change to {literal.new}; name it"
                )


def _descriptions(analysis: Analysis, cut: Cut) -> dict[Attribute, int]:
    """Attributes that no function was given but that tell a reader the size of a weight."""
    owned: dict[str, list[Attribute]] = {}
    for attribute in analysis.program.attributes:
        if attribute.index is None:
            owned.setdefault(attribute.module, []).append(attribute)
    out: dict[Attribute, int] = {}
    for name, ident in analysis.program.tensors.items():
        module = name.rpartition(".")[0]
        for dim, axis in enumerate(analysis.tensor_axes(name, ident)):
            old = len(cut.removed(axis))
            new = cut.size(axis)
            if new == old:
                continue
            pattern = _DESCRIBES[analysis.roles.get((name, dim), "carries")]
            for attribute in owned.get(module, ()):
                if analysis.program.attributes[attribute] == old and pattern.match(attribute.name):
                    out[attribute] = new
    return out
