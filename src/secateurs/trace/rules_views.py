"""Views, stacks, and the single tensors that are taken from them.

A fused projection is written as one tensor of three, (3, heads, dim) after a view, and taken apart
again. What it is made of lose equally many units, for they share one tensor, but each its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .labels import Axis, axis_size, fresh_axis, frozen_axis, leaves
from .program import Node
from .rules import Axes, op_name, rule

if TYPE_CHECKING:
    from .analyse import Analysis

_SAME = ("alias", "clone", "contiguous", "detach", "_to_copy")
_TURNS = ("permute", "transpose", "t", "numpy_T")
_TAKES = ("select", "unbind")


class Apart(NamedTuple):
    """A tensor of which only single slices along one dimension are used, and their axes."""

    dim: int
    pieces: list[Axes]
    reason: str

    @property
    def whole(self) -> Axes:
        """The axes of the tensor: those of its first slice, for what the sizes are."""
        first = self.pieces[0]
        taken = frozen_axis(len(self.pieces), self.reason)
        return [*first[: self.dim], taken, *first[self.dim :]]

    def turned(self, order: Sequence[int]) -> Apart:
        """The same with its dimensions in another order."""
        rest = [d - (d > self.dim) for d in order if d != self.dim]
        turned = [[piece[d] for d in rest] for piece in self.pieces]
        return Apart(list(order).index(self.dim), turned, self.reason)


def _keep_apart(analysis: Analysis, node: Node, apart: Apart) -> list[Axes]:
    """The node makes this tensor."""
    analysis.apart[node.outputs[0] or 0] = apart
    return [apart.whole]


def _taken_apart(analysis: Analysis, value: int, dim: int) -> bool:
    """Whether all that is done with a tensor is to take single slices along a dimension."""
    if value in analysis.program.output_ids():
        return False
    readers = analysis.consumers.get(value, ())
    return bool(readers) and all(_takes(analysis, reader, dim) for reader in readers)


def _takes(analysis: Analysis, reader: Node, dim: int) -> bool:
    name, out = op_name(reader.op), reader.outputs[0]
    if name in _TAKES:
        return _dim(analysis, reader) == dim
    if name in _TURNS and out is not None:
        return _taken_apart(analysis, out, _order(analysis, reader).index(dim))
    return name in _SAME and out is not None and _taken_apart(analysis, out, dim)


def _rank(analysis: Analysis, node: Node) -> int:
    return len(analysis.program.values[node.inputs[0]].shape)


def _dim(analysis: Analysis, node: Node) -> int:
    dim: int = (node.args[1] if len(node.args) > 1 else 0) % _rank(analysis, node)
    return dim


# ---------------------------------------------------------------------- views
@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten")
def _view(analysis: Analysis, node: Node) -> list[Axes]:
    apart = _rows_apart(analysis, node)
    if apart is not None:
        return _keep_apart(analysis, node, apart)
    return [_regrouped(analysis, analysis.arg_axes(node), analysis.shape(node))]


def _regrouped(analysis: Analysis, axes: Axes, shape: Sequence[int]) -> Axes:
    return [analysis.with_copies(axis) for axis in analysis.labels.regroup(axes, shape)]


def _rows_apart(analysis: Analysis, node: Node) -> Apart | None:
    """A view that splits an axis into rows of which the code only takes single ones."""
    old, new = analysis.program.values[node.inputs[0]].shape, analysis.shape(node)
    axes = analysis.arg_axes(node)
    for dim, n in enumerate(new):
        at, outer, inner = _place(old, new, dim)
        if n == 1 or inner == 1 or all(f.frozen is not None for f in leaves(axes[at])):
            continue
        if not _taken_apart(analysis, node.outputs[0] or 0, dim):
            continue
        blocks, rows = analysis.labels.regroup([axes[at]], [outer, n * inner])
        rest = (*new[:dim], *new[dim + 1 :])
        pieces = []
        for index in np.arange(n * inner).reshape(n, inner):
            row = analysis.labels.gather(rows, index)
            own = [*axes[:at], blocks, row, *axes[at + 1 :]]
            pieces.append(_regrouped(analysis, own, rest))
            for one, other in zip(pieces[0], pieces[-1], strict=True):
                analysis.same_count(one, other)
        return Apart(dim, pieces, "rows that are taken apart")
    return None


def _place(old: Sequence[int], new: Sequence[int], dim: int) -> tuple[int, int, int]:
    """(axis before a view, how many parts before a dimension of the view, and after it), if split.

    >>> _place((2, 5, 24), (2, 5, 3, 2, 4), 2)
    (2, 1, 8)
    """
    if 0 in new:
        return 0, 1, 1
    before, after = ([1, *itertools.accumulate(sizes, int.__mul__)] for sizes in (old, new))
    for at, (start, stop) in enumerate(itertools.pairwise(before)):
        if start in after and stop in after and start <= after[dim] < after[dim + 1] <= stop:
            return at, after[dim] // start, stop // after[dim + 1]
    return 0, 1, 1


@rule(*_TURNS)
def _permute(analysis: Analysis, node: Node) -> list[Axes]:
    axes, order = analysis.arg_axes(node), _order(analysis, node)
    if node.inputs[0] in analysis.apart:
        return _keep_apart(analysis, node, analysis.apart[node.inputs[0]].turned(order))
    return [[axes[d] for d in order]]


def _order(analysis: Analysis, node: Node) -> list[int]:
    """Which dimension of its input each of a node's output is."""
    name, n = op_name(node.op), _rank(analysis, node)
    order = list(range(n))
    if name == "permute":
        return [d % n for d in node.args[1]]
    if name == "transpose" and n:
        a, b = node.args[1] % n, node.args[2] % n
        order[a], order[b] = order[b], order[a]
        return order
    return order if name == "transpose" else order[::-1]


@rule(*_SAME)
def _same(analysis: Analysis, node: Node) -> list[Axes]:
    if node.inputs[0] in analysis.apart:
        return _keep_apart(analysis, node, analysis.apart[node.inputs[0]])
    return [analysis.arg_axes(node)]


# ---------------------------------------------------------------------- stacks
@rule("stack")
def _stack(analysis: Analysis, node: Node) -> list[Axes]:
    shape = analysis.shape(node)
    dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(shape)
    first, *rest = items = [list(analysis.axes[ident]) for ident in node.inputs]
    apart = _taken_apart(analysis, node.outputs[0] or 0, dim)
    relate: Callable[[Axis, Axis], None] = analysis.same_count if apart else analysis.labels.unite
    for axes in rest:
        for a, b in zip(first, axes, strict=True):
            relate(a, b)
    whole = Apart(dim, items, "stacked tensors")
    return _keep_apart(analysis, node, whole) if apart else [whole.whole]


# ---------------------------------------------------------------------- single slices
@rule(*_TAKES)
def _select(analysis: Analysis, node: Node) -> list[Axes]:
    axes, dim, ident = analysis.arg_axes(node), _dim(analysis, node), node.inputs[0]
    analysis.labels.freeze(axes[dim], "single indices of this axis are selected")
    if ident in analysis.apart:
        pieces = analysis.apart[ident].pieces
        return pieces if op_name(node.op) == "unbind" else [pieces[node.args[2]]]
    rest = [*axes[:dim], *axes[dim + 1 :]]
    if ident in analysis.filled:
        return [_filled(analysis, ident, rest, out) for out in node.outputs]
    return [rest for _ in node.outputs]


def _filled(analysis: Analysis, ident: int, axes: Axes, out: int | None) -> Axes:
    """The axes of a piece of a tensor that is one number everywhere: like its axes in size only."""
    pieces = analysis.pieces.setdefault(ident, out)
    if out is None or pieces == out:
        return axes
    new = [fresh_axis(axis_size(axis)) for axis in axes]
    for one, other in zip(axes, new, strict=True):
        analysis.same_count(one, other)
    return new
