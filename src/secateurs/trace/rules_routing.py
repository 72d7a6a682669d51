"""Operations that choose, place and route: top-k, sorting, scattering, the experts of a mixture.

Numbers that say where along an axis something is, as top-k and argmax return them, are followed
too: `Analysis.points` maps a value to the axis that its numbers point along. Where they index
another axis, the two lose the same units, for the cut network numbers what stays anew. Whatever
chooses is a statistic: without a unit it chooses among those that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .labels import Axis, axis_size, find, frozen_axis
from .program import Node, Ref
from .rules import Axes, op_name, rule

if TYPE_CHECKING:
    from .analyse import Analysis

_ORDER = "chosen by order"
_PLACED = "placed by index"
_ALIGNED = 16

# Operations after which numbers are as they were, and those whose rules know what they point at.
_PASS = frozenset(
    "alias clone contiguous detach _to_copy copy view _unsafe_view reshape _reshape_alias "
    "unsqueeze squeeze flatten permute transpose t expand select slice sort".split()
)
_TAKE = frozenset(
    "index index_select gather scatter scatter_add histc bincount zeros_like ones_like empty_like "
    "_local_scalar_dense".split()
)


def argument(node: Node, name: str) -> Any:
    """An argument of a node by its name, or its default."""
    for at, stated in enumerate(node.op._schema.arguments):
        if stated.name == name:
            given = node.args[at] if at < len(node.args) else stated.default_value
            return node.kwargs.get(name, given)
    return None


def follow_points(analysis: Analysis, node: Node) -> None:
    """Pass numbers that point along an axis on, or freeze the axis where they are reckoned with."""
    for ident in node.inputs:
        axis = analysis.points.get(ident)
        if axis is None:
            continue
        name = op_name(node.op)
        if name in _PASS and node.inputs[0] == ident and node.outputs[0] is not None:
            analysis.points[node.outputs[0]] = axis
        elif name not in _TAKE:
            analysis.labels.freeze(axis, f"{name} reckons with numbers that point along it")


def related(analysis: Analysis, axis: Axis, index: int, reason: str) -> None:
    """An axis is indexed by the numbers in a value: they point along it, or it keeps its size."""
    point = analysis.points.get(index)
    size = axis_size(axis)
    if point is None or axis_size(point) > size:
        analysis.labels.freeze(axis, reason)
    elif axis_size(point) == size:
        analysis.labels.unite(axis, point)
    else:  # one more place than there are units, for what goes nowhere
        n = axis_size(point)
        rest = frozen_axis(size - n, reason) if size - n > 1 else ()
        analysis.labels.unite(axis, analysis.labels.concat([point, rest], [n, size - n]))


def choose(analysis: Analysis, node: Node, dim: int, index: int | None) -> None:
    """A node chooses along an axis; value `index` says which."""
    axis = analysis.arg_axes(node)[dim]
    name = op_name(node.op)
    if any(find(factor).frozen is None for factor in axis):
        analysis.statistic(axis, f"{name} chooses along it")
        analysis.chosen.append(axis)
        analysis.labels.least.append((axis, int(argument(node, "k") or 1), f"what {name} chooses"))
    if index is not None:
        analysis.points[index] = axis


@rule("topk", "argmax", "argmin")
def _choose(analysis: Analysis, node: Node) -> list[Axes]:
    axes, dim = analysis.arg_axes(node), argument(node, "dim")
    if dim is None:
        return _frozen(analysis, node, _ORDER)
    dim %= max(len(axes), 1)
    choose(analysis, node, dim, node.outputs[-1])
    return _ordered(analysis, node, axes, dim)


@rule("sort", "argsort", "kthvalue", "median", "mode", "cummax", "cummin")
def _order(analysis: Analysis, node: Node) -> list[Axes]:
    axes, dim = analysis.arg_axes(node), argument(node, "dim")
    if dim is None or not axes:
        return _frozen(analysis, node, _ORDER)
    analysis.labels.freeze(axes[dim], f"{op_name(node.op)} puts it in order")
    return _ordered(analysis, node, axes, dim % len(axes))


def _ordered(analysis: Analysis, node: Node, axes: Axes, dim: int) -> list[Axes]:
    """The axes of what was chosen along one of them."""
    shape = analysis.shape(node)
    chosen = [frozen_axis(shape[dim], _ORDER)] if len(shape) == len(axes) else []
    return [[*axes[:dim], *chosen, *axes[dim + 1 :]] for _ in node.outputs]


def _frozen(analysis: Analysis, node: Node, reason: str) -> list[Axes]:
    for ident in node.inputs:
        analysis.freeze_value(ident, reason)
    return analysis.frozen_outputs(node, reason)


# ---------------------------------------------------------------------- placing by index
@rule("gather")
def _gather(analysis: Analysis, node: Node) -> list[Axes]:
    dim, index = node.args[1], node.args[2].id
    axes, places = analysis.arg_axes(node), analysis.axes[index]
    if not axes:
        return [places]
    dim %= len(axes)
    for d, (axis, place) in enumerate(zip(axes, places, strict=True)):
        if d == dim:
            related(analysis, axis, index, _PLACED)
        else:
            _same(analysis, axis, place)
    return [places]


@rule("scatter", "scatter_add", "scatter_reduce")
def _scatter(analysis: Analysis, node: Node) -> list[Axes]:
    dim, index, source = node.args[1], node.args[2].id, node.args[3]
    axes, places = analysis.arg_axes(node), analysis.axes[index]
    dim = dim % max(len(axes), 1)
    for d, (axis, place) in enumerate(zip(axes, places, strict=True)):
        if d == dim:
            related(analysis, axis, index, _PLACED)
        else:
            _same(analysis, axis, place)
    if isinstance(source, Ref):
        for place, axis in zip(places, analysis.axes[source.id], strict=True):
            _same(analysis, place, axis)
    return [axes]


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def _index_add(analysis: Analysis, node: Node) -> list[Axes]:
    axes, index = analysis.arg_axes(node), node.args[2].id
    dim = node.args[1] % max(len(axes), 1)
    related(analysis, axes[dim], index, _PLACED)
    analysis.freeze_value(index, _PLACED)
    source = node.args[3]
    if isinstance(source, Ref) and analysis.axes[source.id]:
        theirs = analysis.axes[source.id]
        analysis.labels.freeze(theirs[dim], _PLACED)
        for d, (axis, other) in enumerate(zip(axes, theirs, strict=True)):
            if d != dim:
                analysis.labels.unite(axis, other)
    return [axes]


def indexed(analysis: Analysis, axes: Axes, indices: Sequence[Ref | None], reason: str) -> Axes:
    """The axes of what indexing tensors pick from a tensor with these axes.

    A mask indexes as many axes as it has, and picks along one: an empty axis here.
    """
    used: list[int] = []
    broadcast: list[Axis] = []
    d = 0
    for index in indices:
        if index is None:
            d += 1
            continue
        theirs = analysis.axes[index.id]
        analysis.freeze_value(index.id, reason)
        if analysis.program.values[index.id].dtype in (torch.bool, torch.uint8):
            covered, theirs = range(d, d + len(theirs)), [()]
            for at in covered:
                analysis.labels.freeze(axes[at], reason)
        else:
            covered = range(d, d + 1)
            related(analysis, axes[d], index.id, reason)
        used += covered
        d = covered.stop
        broadcast = [()] * (len(theirs) - len(broadcast)) + broadcast
        for at, axis in enumerate(theirs, len(broadcast) - len(theirs)):
            broadcast[at] = broadcast[at] or axis
    rest = [axis for d, axis in enumerate(axes) if d not in used]
    together = used == list(range(min(used, default=0), max(used, default=-1) + 1))
    at = used[0] if used and together else 0
    return [*rest[:at], *broadcast, *rest[at:]]


@rule("index_put", "_unsafe_index_put")
def _index_put(analysis: Analysis, node: Node) -> list[Axes]:
    axes, source = analysis.arg_axes(node), node.args[2].id
    picked = indexed(analysis, axes, node.args[1], _PLACED)
    theirs = analysis.axes[source]
    for mine, other in zip(picked[len(picked) - len(theirs) :], theirs, strict=True):
        if axis_size(mine) == axis_size(other):
            analysis.labels.unite(mine, other)
        else:
            analysis.labels.freeze(mine, _PLACED)
            analysis.labels.freeze(other, _PLACED)
    return [axes]


@rule("histc", "bincount")
def _count(analysis: Analysis, node: Node) -> list[Axes]:
    """How often each number occurs: one count for each unit that the numbers point at."""
    point = analysis.points.get(node.inputs[0])
    (size,) = analysis.shape(node)
    for ident in node.inputs:
        analysis.freeze_value(ident, "counted")
    if point is not None and axis_size(point) == size:
        return [[point]]
    if point is not None:
        analysis.labels.freeze(point, f"{op_name(node.op)} counts along it")
    return [[frozen_axis(size, "counts of values")]]


def _same(analysis: Analysis, axis: Axis, other: Axis) -> None:
    """Axes that lie side by side, or where one is longer, keep their sizes."""
    if axis_size(axis) == axis_size(other):
        analysis.labels.unite(axis, other)
    else:
        for each in (axis, other):
            analysis.labels.freeze(each, _PLACED)


# ---------------------------------------------------------------------- experts
@rule("_grouped_mm")
def _grouped_mm(analysis: Analysis, node: Node) -> list[Axes]:
    """Runs of rows, each with a matrix of its own: (S, K) and (E, K, N) give (S, N)."""
    left, right, ends = node.args[0], node.args[1], argument(node, "offs")
    a, b = analysis.axes[left.id], analysis.axes[right.id]
    if len(a) != 2 or len(b) != 3 or not isinstance(ends, Ref):
        return _frozen(analysis, node, "a grouped product of other than rows and matrices")
    analysis.labels.freeze(a[0], "rows of a grouped product")
    analysis.labels.unite(b[0], analysis.axes[ends.id][0])
    analysis.writes(right.id, b[2], "neuron")
    for axis in (a[1], b[2]):  # the kernel wants lines of so many bytes
        step = _ALIGNED // analysis.program.values[left.id].dtype.itemsize
        analysis.labels.multiples.append((axis, step))
    analysis.contract(node, (0, left.id, 1), (1, right.id, 1))
    return [[a[0], b[2]]]
