"""Which integers that the model's code gave to a torch function state sizes, and which sizes.

What a function is given is not always what it states: of `x[:, 2, :2]` only the last number is a
bound, and the first 2 of `x.repeat_interleave(2, dim=2)` is a count. Where the integers of a
function are counts, factors or dims, it is called again on shapes, to see which must change.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..trace.analyse import Analysis
from ..trace.program import Call, Node, can_size
from ..trace.sizes import Cut, stated_sizes, states_sizes
from .again import Again

_INDEXING = frozenset({"__getitem__", "__setitem__"})
# Of these the one integer is how many layers there are; all sizes come from states and weights.
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


class Given(NamedTuple):
    """Size number `place` of what a call was given is `old`, and must become `new`.

    There is no place where a function would compute another size than the cut needs.
    """

    call: Call
    place: int | None
    old: int
    new: int


def sized_nodes(analysis: Analysis) -> list[Node]:
    """The nodes that state sizes in a torch function of the model's own code."""
    program = analysis.program
    nodes = (*program.nodes, *program.aside.nodes)
    return [n for n in nodes if n.call is not None and states_sizes(n)]


def given_sizes(analysis: Analysis, cut: Cut, nodes: Iterable[Node]) -> Iterator[Given]:
    """Every size that the integers of these nodes' functions state."""
    taken: set[tuple[int, int]] = set()
    again: dict[int, list[tuple[Call, int, int]]] = {}
    for node in nodes:
        call = node.call
        stated = list(stated_sizes(analysis, node, cut))
        if call is None or not stated or call.name in _RECURRENT:
            continue
        if call.invocation is not None:
            again.setdefault(id(call), []).extend((call, old, new) for old, new in stated)
            continue
        places: Sequence[Sequence[int | None]] | None = None
        if call.name in _INDEXING:
            places = _bounds(analysis, node)
        if places is None:
            before = [old for old, _ in stated]
            places = _by_name(call, before) or _by_position(call, before)
            places = places or _places(call.sizes, before, id(call), taken, _is_last(node, call))
        for (old, new), found in zip(stated, places, strict=True):
            if old != new and (len(found) > 1 or (call.name in _INDEXING and not found)):
                found = [None]  # which of them it is, or whether it is any, is not sure
            known = (place for place in found if place is not None or old != new)
            yield from (Given(call, place, old, new) for place in known)
    for stating in again.values():
        changed = [(call, old, new) for call, old, new in stating if old != new]
        call = stating[0][0]
        yield from _counts(analysis, cut, changed) if changed else _as_they_are(call)
    yield from _whole(analysis, cut)


def _as_they_are(call: Call) -> Iterator[Given]:
    """What a function was given, where it needs no other numbers."""
    yield from (Given(call, place, size, size) for place, size in enumerate(call.sizes))


# ---------------------------------------------------------------------- counts, factors and dims
def _counts(analysis: Analysis, cut: Cut, changed: list[tuple[Call, int, int]]) -> Iterator[Given]:
    """The integers that a function must be given otherwise, to make what the cut needs.

    It is called again on shapes, with as few of them changed as will do; if several choices would
    do, none is sure.
    """
    call, first, needed = changed[0]
    wanted, again = {(old, new) for _, old, new in changed}, Again(analysis, call, cut)
    trials = [
        (place, new)
        for place, size in enumerate(call.sizes)
        for old, new in sorted(wanted)
        if size == old
    ]
    if not again.known and not trials:  # it cannot be called, and none of its numbers is meant
        return
    numbers = range(len(trials) + 1 if again.known else 0)
    for sure, many in itertools.product((True, False), numbers):
        choices = [dict(chosen) for chosen in itertools.combinations(trials, many)]
        choices = [sizes for sizes in choices if len(sizes) == many]
        fitting = [sizes for sizes in choices if again.fits(sizes, sure=sure)]
        if len(fitting) == 1:
            yield from (Given(call, p, call.sizes[p], new) for p, new in fitting[0].items())
            return
        if fitting:
            break
    yield Given(call, None, first, needed)


# ---------------------------------------------------------------------- bounds of slices
def _bounds(analysis: Analysis, node: Node) -> list[list[int]] | None:
    """Where the bounds stand that a slice states, in an indexing expression; None if not sure."""
    call = node.call
    if call is None or call.given is None or node.name != "slice":
        return None
    index = call.given[0][1]
    items = index if isinstance(index, list) else [index]
    dims = len(analysis.program.values[node.inputs[0]].shape)
    at = [i for i, dim in _sliced(items, dims) if dim == node.args[1] % dims]
    if len(at) != 1:
        return None
    out: list[list[int]] = []
    for number, stated in zip(items[at[0]], node.args[2:4], strict=False):
        if type(stated) is int and stated not in (-1, 0):
            own = number is not None and call.integers[number] == stated
            out.append([sum(map(can_size, call.integers[:number]))] if own else [])
    return out


def _whole(analysis: Analysis, cut: Cut) -> Iterator[Given]:
    """The bounds of slices that take all there is, which PyTorch does not slice: they stay.

    They hold numbers of the code to what they are; an attribute only as far as it is a size.
    """
    for call, value, sliced in analysis.program.whole:
        index: Any = call.given[0][1] if call.given else None
        items = index if isinstance(index, list) else [index]
        shape = analysis.program.values[value].shape
        axes = analysis.axes.get(value)
        for i, dim in _sliced(items, len(shape)):
            if dim in [d % len(shape) for d in sliced]:
                continue
            stays = axes is not None and cut.size(axes[dim]) == shape[dim]
            for number in items[i]:
                size = 0 if number is None else call.integers[number]
                if can_size(size) and (type(size) is int or (stays and size == shape[dim])):
                    place = sum(map(can_size, call.integers[:number]))
                    yield Given(call, place, int(size), int(size))


def _sliced(items: list[Any], dims: int) -> Iterator[tuple[int, int]]:
    """The slices among the items of an index, and the dimension that each has when it is taken.

    Items are taken from left to right; what a tensor among them does to dimensions is left open.
    """
    dots = next((n for n, item in enumerate(items) if item is Ellipsis), len(items))
    dim = 0
    for n, item in enumerate(items[:dots]):
        if item == "other":
            break
        if isinstance(item, tuple):
            yield n, dim
        dim += not isinstance(item, int)
    dim = dims
    for n in range(len(items) - 1, dots, -1):
        if items[n] == "other":
            break
        dim -= items[n] is not None
        if isinstance(items[n], tuple):
            yield n, dim


# ---------------------------------------------------------------------- sizes of views and others
def _is_last(node: Node, call: Call) -> bool:
    """Whether what a node states comes last among the integers of its call.

    The groups of a convolution come after strides and paddings, bounds after a dimension.
    """
    return node.name.endswith("convolution") or call.name == "narrow"


# Where a function is given what a node states of it: names, and positions.
_NAMED = {
    "narrow": (("start", 2), ("length", 3)),
    **{f"conv{kind}{n}d": (("groups", 6),) for kind in ("", "_transpose") for n in (1, 2, 3)},
}


def _by_name(call: Call, stated: list[int]) -> list[list[int | None]]:
    """Where sizes stand that are told by the names of arguments; nothing if they are not.

    None where an argument is not what is stated: it is from the end, or a tensor.
    """
    names = _NAMED.get(call.name)
    if names is None or call.given is None:
        return []
    out: list[list[int | None]] = []
    for (name, at), size in zip(names[-len(stated) :], stated, strict=True):
        number = _argument(call, name, at)
        own = isinstance(number, int) and call.integers[number] == size
        out.append([sum(map(can_size, call.integers[:number])) if own else None])
    return out


def _argument(call: Call, name: str, at: int) -> Any:
    """The form of an argument."""
    args, kwargs = call.given or ((), {})
    return kwargs.get(name, args[at] if at < len(args) else None)


def _by_position(call: Call, stated: list[int]) -> list[list[int]]:
    """Where the sizes of a view stand that splits one axis, or finds one size by itself.

    Nothing if it is no such view.
    """
    given, start, place = call.integers, 0, 0
    if call.name == "unflatten":
        axis, *given = given
        if _argument(call, "dim", 1) != 0:  # by name, and after the sizes
            return []
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
