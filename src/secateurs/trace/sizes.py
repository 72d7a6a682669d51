"""The integers in an operation's arguments that state sizes, as they must be after a cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

from .analyse import Analysis
from .labels import Axis, Bools
from .program import Node
from .rules import is_depthwise, op_name, slice_bounds


class Cut(Protocol):
    """A set of deleted units, seen along any axis."""

    def size(self, axis: Axis) -> int: ...
    def removed(self, axis: Axis) -> Bools: ...


Resize: TypeAlias = Callable[[Analysis, Node, Cut], list[Any]]
_RESIZE: dict[str, Resize] = {}
_STATED: dict[str, tuple[int, ...]] = {}


def _resize(*names: str, at: tuple[int, ...]) -> Callable[[Resize], Resize]:
    """A rule for these operations, whose arguments number `at` state sizes."""

    def register(function: Resize) -> Resize:
        _RESIZE.update(dict.fromkeys(names, function))
        _STATED.update(dict.fromkeys(names, at))
        return function

    return register


def states_sizes(node: Node) -> bool:
    """Whether the node has an argument that states a size that a cut can change."""
    name = op_name(node.op)
    return _is_rms(node) or (
        name in _RESIZE and not (name.endswith("convolution") and node.args[8] == 1)
    )


def _is_rms(node: Node) -> bool:
    """Whether it is the mean of `rms_norm`, which states its sizes and is recorded in pieces."""
    return node.call is not None and node.call.name == "rms_norm" and op_name(node.op) == "mean"


def resized_args(analysis: Analysis, node: Node, cut: Cut) -> list[Any]:
    """The node's arguments with every stated size as it is after the cut."""
    resize = _RESIZE.get(op_name(node.op))
    return list(node.args) if resize is None else resize(analysis, node, cut)


def stated_sizes(analysis: Analysis, node: Node, cut: Cut) -> Iterator[tuple[int, int]]:
    """(before, after) for every size that the node's arguments state."""
    if _is_rms(node):
        axes, shape = analysis.arg_axes(node), analysis.program.values[node.inputs[0]].shape
        yield from ((shape[dim], cut.size(axes[dim])) for dim in node.args[1])
        return
    new = resized_args(analysis, node, cut)
    for at in _STATED.get(op_name(node.op), ()):
        if at < len(node.args):
            old = node.args[at]
            pairs = zip(old, new[at], strict=True) if isinstance(old, list) else [(old, new[at])]
            for before, after in pairs:
                if at == _STOP and node.call is not None and node.call.name == "narrow":
                    dim = node.args[1]  # it states a length
                    before, after = analysis.shape(node)[dim], _new_shape(analysis, node, cut)[dim]
                if type(before) is int and type(after) is int and before not in (-1, 0):
                    yield before, after


def _new_shape(analysis: Analysis, node: Node, cut: Cut) -> list[int]:
    out = next(ident for ident in node.outputs if ident is not None)
    return [cut.size(axis) for axis in analysis.axes[out]]


@_resize(
    "view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "new_zeros", "new_ones",
    "new_full", "new_empty", at=(1,),
)  # fmt: skip
def _shape_second(analysis: Analysis, node: Node, cut: Cut) -> list[Any]:
    new = _new_shape(analysis, node, cut)
    stated = [s if s < 0 else n for s, n in zip(node.args[1], new, strict=True)]
    return [node.args[0], stated, *node.args[2:]]


@_resize("zeros", "ones", "full", "empty", "rand", "randn", at=(0,))
def _shape_first(analysis: Analysis, node: Node, cut: Cut) -> list[Any]:
    return [_new_shape(analysis, node, cut), *node.args[1:]]


_STOP = 3  # the argument of a slice that says where it ends


@_resize("slice", at=(2, _STOP))
def _slice(analysis: Analysis, node: Node, cut: Cut) -> list[Any]:
    args = list(node.args)
    dim = args[1] if len(args) > 1 else 0
    axis = analysis.arg_axes(node)[dim]
    removed = cut.removed(axis)
    size = len(removed)
    _, start, stop, step = slice_bounds(node, size)
    if step != 1 or len(args) < 3:
        return args
    kept = (~removed).cumsum()

    def bound(stated: int | None, real: int) -> int | None:
        if stated is None or not -size <= stated < size or stated == 0:
            return stated
        before = int(kept[real - 1]) if real else 0
        return before - int(kept[-1]) if stated < 0 else before

    args[2] = bound(args[2], start)
    if len(args) > 3:
        args[3] = bound(args[3], stop)
    return args


@_resize("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", at=(1,))
def _split(analysis: Analysis, node: Node, cut: Cut) -> list[Any]:
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    pieces = [cut.size(analysis.axes[out][dim]) for out in node.outputs if out is not None]
    stated = pieces if isinstance(node.args[1], list) else pieces[0]
    return [node.args[0], stated, *node.args[2:]]


@_resize("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", at=(8,))
def _convolution(analysis: Analysis, node: Node, cut: Cut) -> list[Any]:
    args = list(node.args)
    if is_depthwise(node, analysis):  # as many groups as channels
        args[8] = cut.size(analysis.axes[args[0].id][1])
    return args


@_resize("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm", at=(1,))
def _layer_norm(analysis: Analysis, node: Node, cut: Cut) -> list[Any]:
    n = len(node.args[1])
    new = [cut.size(axis) for axis in analysis.axes[node.args[0].id][-n:]]
    return [node.args[0], new, *node.args[2:]]


@_resize("native_group_norm", at=(4, 6))
def _group_norm(analysis: Analysis, node: Node, cut: Cut) -> list[Any]:
    args = list(node.args)
    args[4] = cut.size(analysis.axes[args[0].id][1])
    args[6] = cut.size(analysis.axes[node.outputs[1] or 0][1]) if len(node.outputs) > 1 else args[6]
    return args


@_resize("histc", at=(1,))
def _histc(analysis: Analysis, node: Node, cut: Cut) -> list[Any]:
    """As many bins as there are numbers to count, 0 to the largest."""
    args = list(node.args)
    (bins,) = _new_shape(analysis, node, cut)
    if len(args) > 3 and args[3] - args[2] == args[1] - 1:
        args[3] = args[2] + bins - 1
    args[1] = bins
    return args
