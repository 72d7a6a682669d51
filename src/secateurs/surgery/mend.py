"""Find the integers in a model that state sizes, and what they must become after a cut.

While the model was traced, its attributes and its tensors' sizes were handed out with their
provenance. Every torch function that states a size after the cut gives an equation: what it was
given must become the new size. Attributes are solved from these equations; a number written in the
code of a module is rewritten for that module alone; anything else is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils import _pytree as pytree

from ..errors import MendError
from ..trace.analyse import Analysis
from ..trace.labels import leaves
from ..trace.numbers import constants
from ..trace.program import Call, Node, Ref, can_size
from ..trace.rules import op_name
from ..trace.sizes import Cut, stated_sizes, states_sizes
from ..trace.tagged import Attribute, Size, Source, TaggedInt, evaluate, leaves_of
from .fold import Computed, Folder, Scale, computed_factors
from .restate import Restated
from .views import View, view_text

Equation: TypeAlias = tuple[Source, int, Call, int]  # what is given, what is needed, where
Axes: TypeAlias = Mapping[tuple[str, int], tuple[int, int]]
Restatements: TypeAlias = dict[tuple[str, str, int, int], Restated]

# Attributes that describe a weight's axes to a reader, as 'weight.attribute', by the role of the
# axis that they describe.
_DESCRIBES = {
    "writes": re.compile(
        r"(.*\.(out_|embedding_dim|num_features|num_experts)|weight_hr.*\.proj_size|weight_hh\.hidden_size)"
    ),
    "reads": re.compile(
        r"(.*\.(in_|embed_dim$|[kv]dim$)|weight_ih(_l0(_reverse)?)?\.input_size|weight_h[hr].*\.hidden_size|"
        r"down_proj\.intermediate_(dim|size)|gate_up_proj\.hidden_(dim|size))"
    ),
    "carries": re.compile(
        r".*\.(num_(features|channels|parameters)|in_channels|out_channels|num_experts)"
    ),
}
# Attributes that say how many queries share a key: a kernel that finds this by itself is not told.
_REPEATS = re.compile(r".*(key_value|kv).*groups|n_rep|.*per_kv")


@functools.cache
def _describes(role: str, weight: str, name: str) -> bool:
    return _DESCRIBES[role].match(f"{weight}.{name}") is not None


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


@dataclass(frozen=True)
class Mended:
    """What else a cut changes, beside the tensors that it shortens.

    Attributes:
        attributes: attribute -> (before, after).
        literals: numbers in the code.
        scales: rows of weights that take up a number which the code computes from a size.
        restated: sizes that the code computes from others which no longer agree.
        views: views in the code that find such a size by themselves.
    """

    attributes: dict[Attribute, tuple[int, int]]
    literals: list[Literal]
    scales: list[Scale]
    restated: list[Restated]
    views: list[View]


class Solved(NamedTuple):
    """Attributes' sizes after a cut, numbers in the code, and sizes to state anew or to leave."""

    attributes: dict[Attribute, int]
    literals: list[Literal]
    restated: list[Restated]
    views: list[View]


def mend(analysis: Analysis, cut: Cut, axes: Axes) -> Mended:
    """What a cut changes beside the tensors.

    Args:
        analysis: of the uncut network.
        cut: what goes.
        axes: (tensor, dim) -> the size of every axis that is cut, before and after.

    Raises:
        MendError: a size is fixed by something that cannot be rewritten.
    """
    solved, literals, restated, views = solve(analysis, cut, sized_nodes(analysis))
    before = analysis.program.attributes
    after = {**_descriptions(analysis, axes, solved), **_repeats(analysis, cut), **solved}
    changed = {a: (before[a], n) for a, n in after.items() if before[a] != n}
    computed = computed_factors(analysis)
    scales = rescale(analysis, cut, solved, computed, Folder(analysis))
    return Mended(changed, literals, scales, restated, views)


def rescale(
    analysis: Analysis,
    cut: Cut,
    solved: Mapping[Attribute, int],
    computed: Iterable[Computed],
    folder: Folder,
) -> list[Scale]:
    """What makes up for numbers that the code computes from sizes which the cut changes.

    Raises:
        MendError: nothing can.
    """
    known = _Known(analysis, cut)
    known.update(solved)
    out = []
    for position, number, source, power in computed:
        new = evaluate(source, known)
        if new != number:
            factor = (number / new) ** power
            out += [Scale(*place, factor) for place in folder.places(position)]
    return out


def solve(analysis: Analysis, cut: Cut, nodes: Iterable[Node]) -> Solved:
    """What these nodes' functions need after a cut.

    Raises:
        MendError: as for `mend`.
    """
    equations: list[Equation] = []
    literals: dict[tuple[str, str, int], tuple[Literal, set[int]]] = {}
    restated: Restatements = {}
    for call, place, old, new in _given_sizes(analysis, cut, nodes):
        if place is None:
            raise MendError(
                f"{call.place} computes the size {old} by itself, and would not make {new} of what "
                "the cut leaves"
            )
        given = call.sizes[place]
        if isinstance(given, TaggedInt):
            equations.append((given.source, new, call, place))
        elif old != new:
            literal = _literal(analysis, call, old, new)
            entry = literals.setdefault(literal.key, (literal, set()))
            if entry[0] != literal:
                raise MendError(
                    f"{call.place} writes {old} where the cut needs {entry[0].new} in one "
                    f"place and {new} in another; use two attributes instead of the number"
                )
            entry[1].add(call.at)
    after, views = _solve(equations, _Known(analysis, cut), restated)
    for literal, sites in literals.values():
        _check_literal(analysis, literal, sites)
    known = [literal for literal, _ in literals.values()]
    return Solved(after, known, list(restated.values()), views)


def demands(analysis: Analysis, cut: Cut, nodes: Iterable[Node]) -> dict[Attribute, int]:
    """What a cut asks of the attributes that state a size by themselves, where it shrinks."""
    return {
        given.source: new
        for call, place, old, new in _given_sizes(analysis, cut, nodes)
        if place is not None
        and isinstance(given := call.sizes[place], TaggedInt)
        and isinstance(given.source, Attribute)
        and new < old
    }


def _given_sizes(
    analysis: Analysis, cut: Cut, nodes: Iterable[Node]
) -> Iterator[tuple[Call, int | None, int, int]]:
    """(call, place of the integer given, size before, size after) for every stated size.

    There is no place where a function would compute another size than the cut needs.
    """
    taken: set[tuple[int, int]] = set()
    fitting: dict[int, bool | None] = {}
    missing: dict[int, tuple[Call, int, int]] = {}
    mended: set[int] = set()
    for node in nodes:
        call = node.call
        stated = list(stated_sizes(analysis, node, cut))
        if call is None or not stated:
            continue
        fits = None
        if call.invocation is not None and any(old != new for old, new in stated):
            if id(call) not in fitting:
                fitting[id(call)] = _fits(analysis, call, cut)
            fits = fitting[id(call)]
        if fits:
            continue
        before = [old for old, _ in stated]
        places = _by_position(call, before)
        places = places or _places(call.sizes, before, id(call), taken, _is_last(node, call))
        for (old, new), found in zip(stated, places, strict=True):
            if fits is False and old != new:
                missing.setdefault(id(call), (call, old, new))
                mended.update(id(call) for _ in found)
            for place in found:
                yield call, place, old, new
    for call, old, new in (own for key, own in missing.items() if key not in mended):
        yield call, None, old, new


def _fits(analysis: Analysis, call: Call, cut: Cut) -> bool | None:
    """Whether a function, as it is called, makes what the cut needs of what is left.

    It is called again, on shapes alone; None if it cannot be.
    """
    axes, values, known = analysis.axes, analysis.program.values, True

    def left(ref: Ref) -> torch.Tensor | None:
        nonlocal known
        if ref.id not in axes:
            known = False
            return None
        shape = [cut.size(axis) for axis in axes[ref.id]]
        return torch.empty(shape, dtype=values[ref.id].dtype, device="meta")

    given = call.invocation
    if given is None:
        return None
    args, kwargs, wanted = (
        pytree.tree_map_only(Ref, left, part) for part in (given.args, given.kwargs, given.result)
    )
    if not known:
        return None
    try:
        made = given.function(*args, **kwargs)
    except Exception:  # noqa: BLE001 - whatever it is, it cannot run so
        return False
    shapes = [[t.shape for t in pytree.tree_leaves(tree)] for tree in (made, wanted)]
    return shapes[0] == shapes[1]


def _is_last(node: Node, call: Call) -> bool:
    """Whether what a node states comes last among the integers of its call.

    The groups of a convolution come after strides and paddings, bounds after a dimension.
    """
    return node.name.endswith("convolution") or call.name == "narrow"


def _by_position(call: Call, stated: list[int]) -> list[list[int]]:
    """Where the sizes of a view stand that splits one axis, or finds one size by itself.

    Nothing if it is no such view.
    """
    given, start, place = call.integers, 0, 0
    if call.name == "unflatten":
        axis, *given = given
        start, place = axis % (len(stated) - len(given) + 1), int(can_size(axis))
    elif -1 not in given or len(given) != len(stated):
        return []
    window = stated[start : start + len(given)]
    if any(size not in (n, -1) for size, n in zip(given, window, strict=False)):
        return []
    at = iter(range(place, len(call.sizes)))
    out: list[list[int]] = [[] for _ in stated]
    for d, size in enumerate(given, start):
        if size != -1:
            out[d] = [next(at)]
    return out


def _places(
    given: list[int], stated: list[int], call: int, taken: set[tuple[int, int]], last: bool
) -> list[list[int]]:
    """Where in a call's integers each stated size stands: in a row if they do, else by value.

    Several slices of one indexing expression take their places one after the other.
    """
    n = len(stated)
    rows = [i for i in range(len(given) - n + 1) if given[i : i + n] == stated]
    free = [i for i in rows if (call, i) not in taken]
    if last:
        free = free[-1:]
    if not free:
        return [[i for i, value in enumerate(given) if value == size] for size in stated]
    taken.add((call, free[0]))
    return [[free[0] + k] for k in range(n)]


def sized_nodes(analysis: Analysis) -> list[Node]:
    """The nodes that state sizes in a torch function of the model's own code."""
    program = analysis.program
    nodes = (*program.nodes, *program.training.nodes)
    return [n for n in nodes if n.call is not None and states_sizes(n)]


class _Known(dict[Any, int]):
    """What every source leaf is after the cut: sizes by themselves, attributes as solved."""

    def __init__(self, analysis: Analysis, cut: Cut):
        super().__init__()
        self.analysis, self.cut = analysis, cut

    def __missing__(self, key: Attribute | Size) -> int:
        if isinstance(key, Attribute):
            return self.analysis.program.attributes[key]
        axes = self.analysis.axes.get(key.value)
        old = self.analysis.program.values[key.value].shape[key.dim]
        return old if axes is None else self.cut.size(axes[key.dim])


def _solve(
    equations: list[Equation], known: _Known, restated: Restatements
) -> tuple[dict[Attribute, int], list[View]]:
    """The attributes' new values that satisfy every equation but those to be stated anew."""
    views: dict[int, View] = {}
    for source, value, call, _ in equations:
        if isinstance(source, Attribute) and known.setdefault(source, value) != value:
            raise MendError(
                f"{source} states two sizes that this plan makes different ({known[source]} and "
                f"{value}, at {call.place}); delete equally many units of both"
            )
    for source, value, call, place in equations:
        if evaluate(source, known) == value:
            continue
        for attribute in leaves_of(source):
            if isinstance(attribute, Attribute) and attribute not in known:
                found = _invert(source, value, attribute, known)
                if found is not None:
                    known[attribute] = found
                    break
        else:
            view = _view(known.analysis, call, place)
            if view is not None and views.setdefault(id(call), view) == view:
                continue
            given = evaluate(source, known)
            if not _fixed(known.analysis, source):
                raise _disagree(call, given, value)
            _restate(restated, call, place, given, value)
    return dict(known), list(dict.fromkeys(views.values()))


def _restate(restated: Restatements, call: Call, place: int, given: int, value: int) -> None:
    """Have a call given another size.

    Raises:
        MendError: it needs two.
    """
    new = Restated(call.module, call.name, call.ordinal, place, value)
    if restated.setdefault(new.key, new) != new:
        raise _disagree(call, given, value)


def _disagree(call: Call, given: int, value: int) -> MendError:
    return MendError(
        f"{call.place} computes a size that would be {given} after "
        f"the cut where {value} is needed; delete units so that the two agree"
    )


def _view(analysis: Analysis, call: Call, place: int) -> View | None:
    """The view that a call is, if the code of a module writes it and it can find this size."""
    if call.owner is None or call.code is None or -1 in call.integers:
        return None
    program, place_of = analysis.program, (call.owner, call.code)
    helped = program.helpers.get(place_of)
    function = helped[1] if helped else program.methods.get(place_of)
    if function is None or len(call.sizes) < len(call.integers):
        return None
    text = view_text(call, function, place)
    if text is None:
        return None
    name = call.code.co_name
    return View(call.owner, *((helped[0], text, place, name) if helped else (name, text, place)))


def _fixed(analysis: Analysis, source: Source) -> bool:
    """Whether a size is the same for all inputs: computed from weights and attributes alone."""
    sizes = [leaf for leaf in leaves_of(source) if isinstance(leaf, Size)]
    axes = [leaf for s in sizes for leaf in leaves(analysis.axes[s.value][s.dim])]
    return analysis.weighted.issuperset(axes)


def _invert(source: Source, value: int, attribute: Attribute, known: _Known) -> int | None:
    """The smaller number that the attribute must be for the source to give this value."""
    for trial in range(1, known[attribute]):
        known[attribute] = trial
        try:
            if evaluate(source, known) == value:
                return trial
        except ZeroDivisionError:
            continue
        finally:
            del known[attribute]
    return None


# ---------------------------------------------------------------------- numbers in the code
def _literal(analysis: Analysis, call: Call, old: int, new: int) -> Literal:
    """The number in the code that this size is.

    Raises:
        MendError: it does not stand there.
    """
    known = (call.owner, call.code) in analysis.program.methods
    if not known or call.owner is None or call.code is None or old not in constants(call.code):
        raise MendError(
            f"{call.place} is given the size {old}, which the cut would make {new}, and where "
            "that number comes from cannot be found; take it from x.shape or a module attribute"
        )
    return Literal(call.owner, call.code.co_name, old, new)


def _check_literal(analysis: Analysis, literal: Literal, sites: set[int]) -> None:
    """The number must not be used for anything else in the same method."""
    for owner, code in analysis.program.methods:
        if (owner, code.co_name) == (literal.module, literal.method):
            uses = sum(value == literal.old for value in constants(code))
            if uses > len(sites):
                raise MendError(
                    f"{code.co_filename}: {code.co_name} uses the number {literal.old} {uses} "
                    f"times, and only {len(sites)} of them would change to {literal.new}; name it"
                )


def _repeats(analysis: Analysis, cut: Cut) -> dict[Attribute, int]:
    """Attributes of the modules that repeat keys, where they say how often."""
    out: dict[Attribute, int] = {}
    repeated, attributes = set(analysis.repeated), analysis.program.attributes
    for node in analysis.program.nodes if repeated else ():
        axes = analysis.axes[node.outputs[0] or 0] if op_name(node.op) == "expand" else ()
        for factor in repeated.intersection(leaf for axis in axes for leaf in leaves(axis)):
            new = cut.size((factor,))
            for attribute, value in attributes.items() if new != factor.size else ():
                named = attribute.item is None and _REPEATS.fullmatch(attribute.name)
                if named and attribute.module == node.module and value == factor.size:
                    out[attribute] = new
    return out


def _descriptions(
    analysis: Analysis, axes: Axes, solved: Mapping[Attribute, int]
) -> dict[Attribute, int]:
    """Attributes that no function was given but that tell a reader the size of a weight."""
    owned: dict[str, list[tuple[Attribute, int]]] = {}
    for attribute, value in analysis.program.attributes.items():
        if attribute.item is None:
            owned.setdefault(attribute.module, []).append((attribute, value))
    out: dict[Attribute, int] = {}
    for (name, dim), (old, new) in axes.items():
        role = analysis.roles.get((name, dim), "carries")
        path, _, weight = name.rpartition(".")
        groups = next((n for a, n in owned.get(path, ()) if a.name == "groups"), 1)
        for attribute, value in owned.get(path, ()):
            for times in {1, groups}:  # an axis inside the groups of a convolution
                if value == old * times and _describes(role, weight, attribute.name):
                    out[attribute] = new * times
    for used, new in solved.items():  # a depthwise convolution's groups are its input channels
        old = analysis.program.attributes[used]
        for attribute, value in owned.get(used.module, ()) if used.name == "groups" else ():
            if value == old and attribute not in out and _describes("reads", "", attribute.name):
                out[attribute] = new
    return out
