"""What each ATen operation says about the axes of the tensors that it reads and makes.

A rule takes the analysis and a node, relates the axes of the node's inputs, and returns one list of
axes per output. Operations fall into a few families (movement, pointwise, contraction, norm,
reduction, …); one that no rule covers freezes every axis that touches it, by name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from .labels import Axis, axis_size, fresh_axis, frozen_axis, leaves, repeated_axis
from .program import Node, Ref

if TYPE_CHECKING:
    from .analyse import Analysis

Axes: TypeAlias = list[Axis]
Rule: TypeAlias = Callable[["Analysis", Node], list[Axes]]

RULES: dict[str, Rule] = {}
SPACE = "spatial axis"
KERNEL = "kernel axis"

# Elementwise operations that PyTorch does not tag as pointwise.
_ALSO_POINTWISE = frozenset(
    "alias clone contiguous detach _to_copy to copy lift_fresh lift_fresh_copy lift bernoulli "
    "dropout feature_dropout alpha_dropout zeros_like ones_like full_like empty_like rand_like "
    "randn_like fill zero masked_fill where _fused_dropout hardtanh hardswish hardsigmoid relu6 "
    "leaky_relu elu celu selu silu mish gelu softplus prelu _prelu_kernel rrelu "
    "rrelu_with_noise clamp clamp_min clamp_max pow log_sigmoid_forward".split()
)


# Of those with one live operand, the output is linear in it.
_LINEAR = frozenset(
    "alias clone contiguous detach _to_copy to copy lift_fresh lift_fresh_copy lift bernoulli "
    "dropout feature_dropout alpha_dropout _fused_dropout add sub rsub neg mul div".split()
)

# They pass on what they are given: moved, repeated, pooled, or scaled with constants.
_MOVES = frozenset(
    "view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten permute transpose t "
    "numpy_T expand cat stack slice split split_with_sizes unsafe_split unsafe_split_with_sizes "
    "select unbind roll flip constant_pad_nd repeat unfold diagonal diagonal_copy mean sum amax "
    "native_batch_norm cudnn_batch_norm miopen_batch_norm batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training".split()
)

# They give what they are given, all of it and nothing else.
_KEEPS = frozenset(
    "alias clone contiguous detach _to_copy to copy lift_fresh lift_fresh_copy lift dropout "
    "feature_dropout alpha_dropout view _unsafe_view reshape _reshape_alias unsqueeze squeeze "
    "flatten permute transpose t numpy_T roll flip".split()
)


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@functools.cache
def op_name(op: Any) -> str:
    """The bare name of an operation, in-place forms included: add_ is add."""
    name = op._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def is_pointwise(op: Any) -> bool:
    return torch.Tag.pointwise in op.tags or op_name(op) in _ALSO_POINTWISE


@functools.cache
def supported(op: Any) -> bool:
    """Whether a rule of ours covers this operation."""
    return op_name(op) in RULES or is_pointwise(op)


def is_linear(op: Any, live: list[bool]) -> bool:
    """Whether a pointwise operation is linear in its operands, `live` where they are."""
    name = op_name(op)
    if name == "mul":
        return sum(live) == 1
    return name in _LINEAR and not (name == "div" and any(live[1:]))


def passes_on(op: Any) -> bool:
    """Whether an operation moves or pools its first operand and leaves its elements apart."""
    return op_name(op) in _MOVES or RULES.get(op_name(op)) is _spatial


def is_move(op: Any) -> bool:
    """Whether an operation gives its first operand again, in another shape, order or precision."""
    return op_name(op) in _KEEPS


def is_affine(op: Any) -> bool:
    """Whether an operation is affine in any one operand, the others being held."""
    name = op_name(op)
    return passes_on(op) or name in _LINEAR or RULES.get(name) in (_mm, _convolution)


def spatial_dims(op: Any) -> int:
    """How many of the last dimensions an operation pools or resizes; none if it does neither."""
    name = op_name(op)
    if RULES.get(name) is not _spatial:
        return 0
    return next(int(c) for c in "123" if f"{c}d" in name)


def follow(analysis: Analysis, node: Node) -> list[Axes]:
    """The axes of a node's outputs."""
    found = RULES.get(op_name(node.op))
    if found is not None:
        return found(analysis, node)
    if is_pointwise(node.op):
        return pointwise(analysis, node)
    return unknown(analysis, node)


def unknown(analysis: Analysis, node: Node) -> list[Axes]:
    reason = f"no rule follows aten.{op_name(node.op)}"
    if node.module:
        reason += f" in {node.module}"
    for ident in node.inputs:
        for axis in analysis.axes[ident]:
            analysis.labels.freeze(axis, reason)
    return analysis.frozen_outputs(node, reason)


def pointwise(analysis: Analysis, node: Node) -> list[Axes]:
    """Elementwise with broadcasting: the same index goes in all, axes of size one aside."""
    shape = analysis.shape(node)
    axes: list[Axis | None] = [None] * len(shape)
    unite = analysis.labels.unite
    for ident in node.inputs:
        theirs = analysis.program.values[ident].shape
        offset = len(shape) - len(theirs)
        for d, (axis, size) in enumerate(zip(analysis.axes[ident], theirs, strict=True), offset):
            known = axes[d]
            if size != shape[d] or not axis:
                continue
            if known is None:
                axes[d] = axis
            elif known is not axis:
                unite(known, axis)
    out = [fresh_axis(n) if axis is None else axis for axis, n in zip(axes, shape, strict=True)]
    return [out for _ in node.outputs]


# ---------------------------------------------------------------------- data movement
@rule("expand")
def _expand(analysis: Analysis, node: Node) -> list[Axes]:
    """A dimension of size one repeated is a new axis, free to shrink."""
    axes, shape = analysis.arg_axes(node), analysis.shape(node)
    old = (1,) * (len(shape) - len(axes)) + analysis.program.values[node.inputs[0]].shape
    axes = [()] * (len(shape) - len(axes)) + axes
    out = [a if o == n else repeated_axis(n) for a, o, n in zip(axes, old, shape, strict=True)]
    analysis.repeated += [f for a, o, n in zip(out, old, shape, strict=True) if o != n for f in a]
    return [out]


@rule("cat")
def _cat(analysis: Analysis, node: Node) -> list[Axes]:
    shape = analysis.shape(node)
    dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(shape)
    # cat ignores legacy empty tensors of shape (0,)
    idents = [i for i in node.inputs if len(analysis.axes[i]) == len(shape)]
    sizes = [analysis.program.values[ident].shape[dim] for ident in idents]
    out = []
    for d in range(len(shape)):
        axes = [analysis.axes[ident][d] for ident in idents]
        if d == dim:
            out.append(analysis.labels.concat(axes, sizes))
            continue
        for axis in axes[1:]:
            if axis is not axes[0]:
                analysis.labels.unite(axes[0], axis)
        out.append(axes[0])
    return [out]


def slice_bounds(node: Node, size: int) -> tuple[int, int, int, int]:
    """(dim, start, stop, step) of a slice node on an axis of this size, with real bounds."""
    stated = [*node.args[1:], *[0, None, None, 1][len(node.args) - 1 :]]
    return stated[0], *slice(*stated[1:]).indices(size)


@rule("slice")
def _slice(analysis: Analysis, node: Node) -> list[Axes]:
    axes = list(analysis.arg_axes(node))
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(axes)
    size = analysis.program.values[node.inputs[0]].shape[dim]
    _, start, stop, step = slice_bounds(node, size)
    index = np.arange(start, stop, step)
    if step > 1 and size % step == 0 and start < step and len(index) == size // step:
        rows, lines = analysis.labels.regroup([axes[dim]], [size // step, step])
        analysis.labels.freeze(lines, "a slice takes one index of every few")
        axes[dim] = rows
        return [axes]
    if step != 1:
        analysis.labels.freeze(axes[dim], "a slice with a step")
    elif stop - start < size and (node.call is None or node.call.invocation is not None):
        _cut_by_torch(analysis, axes[dim], start, stop - start)
    _keep_behind(analysis, axes[dim], node.args[3] if len(node.args) > 3 else None)
    axes[dim] = analysis.labels.gather(axes[dim], index)
    return [axes]


def _keep_behind(analysis: Analysis, axis: Axis, stop: int | None) -> None:
    """A slice that ends so many indices before the end: there is no number for none of them."""
    from_the_end = stop is not None and -axis_size(axis) < stop < 0
    if from_the_end and any(f.frozen is None for f in leaves(axis)):
        analysis.labels.vector(analysis.labels.flat(axis)[stop:])


def _cut_by_torch(analysis: Analysis, axis: Axis, start: int, length: int) -> None:
    """A slice whose bounds PyTorch computes from the size: it stays right among equal pieces."""
    if all(f.frozen is not None for f in leaves(axis)):
        return
    size = axis_size(axis)
    if length and size % length == 0 and start % length == 0:
        analysis.labels.balance(analysis.labels.flat(axis), size // length, "equal pieces")
    else:
        analysis.labels.freeze(axis, "cut into unequal pieces by their number")


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
def _split(analysis: Analysis, node: Node) -> list[Axes]:
    axes = analysis.arg_axes(node)
    dim = (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)) % len(axes)
    size = analysis.program.values[node.inputs[0]].shape[dim]
    if isinstance(node.args[1], list):
        sizes = list(node.args[1])
    else:
        step = node.args[1]
        sizes = [min(step, size - start) for start in range(0, size, step)]
        if len(set(sizes)) > 1:
            analysis.labels.freeze(axes[dim], "split into unequal pieces by one size")
        elif len(sizes) > 1 and any(f.frozen is None for f in leaves(axes[dim])):
            labels = analysis.labels.flat(axes[dim])
            analysis.labels.balance(labels, len(sizes), "equal chunks")
    out, start = [], 0
    for piece in sizes:
        index = np.arange(start, start + piece)
        moved = analysis.labels.gather(axes[dim], index)
        out.append([*axes[:dim], moved, *axes[dim + 1 :]])
        start += piece
    return out


@rule("roll")
def _roll(analysis: Analysis, node: Node) -> list[Axes]:
    """How far an axis must be rolled after a cut depends on which of its units go."""
    axes = analysis.arg_axes(node)
    dims = node.args[2] if len(node.args) > 2 and node.args[2] else range(len(axes))
    for d in dims:
        analysis.labels.freeze(axes[d], "rolled by a fixed number")
    return [axes]


@rule("flip", "constant_pad_nd", "repeat", "unfold", "diagonal", "diagonal_copy")
def _probe(analysis: Analysis, node: Node) -> list[Axes]:
    """Any movement within one tensor: run the operation on the indices of one axis at a time."""
    ident = node.inputs[0]
    axes, shape = analysis.arg_axes(node), analysis.program.values[ident].shape
    target = analysis.shape(node)
    for d in _fixed_dims(node):
        analysis.labels.freeze(axes[d], f"{op_name(node.op)} takes a number of it")
    out: list[Axis | None] = [None] * len(target)
    for d, axis in enumerate(axes):
        batch = any(f.batch for f in leaves(axis))
        if all(f.frozen is not None for f in leaves(axis)) and not batch:
            continue
        if batch and shape[d] == 1 and d < len(target) and target[d] == 1:
            out[d] = axis
            continue
        moved = _run_on_indices(node, shape, d)
        for e, n in enumerate(target):
            lines = moved.movedim(e, 0).reshape(n, -1)
            held = lines.amax(1)  # −1 marks padding, which belongs to whatever slice it is in
            if n > 1 and bool(((lines == held[:, None]) | (lines == -1)).all()):
                out[e] = analysis.labels.gather(axis, held.numpy())
                break
        else:
            analysis.labels.freeze(axis, f"scattered over several axes by {op_name(node.op)}")
    reason = f"made by {op_name(node.op)}"
    return [[frozen_axis(n, reason) if a is None else a for a, n in zip(out, target, strict=True)]]


def _fixed_dims(node: Node) -> list[int]:
    """The dimensions of which an operation states a size, or that it takes two together."""
    name = op_name(node.op)
    names = (argument.name for argument in node.op._schema.arguments)
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if name == "unfold":
        return [given["dimension"]]
    if name == "constant_pad_nd":
        return [-1 - i // 2 for i, n in enumerate(given["pad"]) if n < 0]
    return [given.get("dim1", 0), given.get("dim2", 1)] if name.startswith("diagonal") else []


def _run_on_indices(node: Node, shape: tuple[int, ...], dim: int) -> torch.Tensor:
    indices = torch.arange(shape[dim]).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    rest = list(node.args[1:])
    if op_name(node.op) == "constant_pad_nd":
        rest = [rest[0], -1]
    moved: torch.Tensor = node.op(indices.expand(shape), *rest, **node.kwargs)
    return moved


@rule("index", "_unsafe_index")
def _index(analysis: Analysis, node: Node) -> list[Axes]:
    from .rules_routing import indexed

    reason = "indexed by a tensor"
    picked = indexed(analysis, analysis.arg_axes(node), node.args[1], reason)
    shape = analysis.shape(node)
    return [
        [
            axis if axis_size(axis) == n else frozen_axis(n, reason)
            for axis, n in zip(picked, shape, strict=True)
        ]
    ]


@rule("index_select")
def _index_select(analysis: Analysis, node: Node) -> list[Axes]:
    from .rules_routing import related

    axes = list(analysis.arg_axes(node))
    dim = node.args[1] % len(axes)
    related(analysis, axes[dim], node.args[2].id, "indexed by a tensor")
    analysis.freeze_value(node.args[2].id, "indexed by a tensor")
    axes[dim] = frozen_axis(analysis.shape(node)[dim], "indexed by a tensor")
    return [axes]


@rule("embedding")
def _embedding(analysis: Analysis, node: Node) -> list[Axes]:
    weight, index = (analysis.axes[ref.id] for ref in node.args[:2])
    analysis.labels.freeze(weight[0], "rows are looked up by index")
    analysis.freeze_value(node.args[1].id, "an index")
    analysis.writes(node.args[0].id, weight[1], "width")
    return [[*index, weight[1]]]


# ---------------------------------------------------------------------- creation
@rule(
    "zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full",
    "new_empty",
)  # fmt: skip
def _uniform(analysis: Analysis, node: Node) -> list[Axes]:
    return [[fresh_axis(n) for n in analysis.shape(node)]]


@rule("arange", "linspace", "eye", "scalar_tensor", "tril", "triu", "randint", "randperm")
def _positional(analysis: Analysis, node: Node) -> list[Axes]:
    for ident in node.inputs:
        analysis.freeze_value(ident, "a positional constant")
    return analysis.frozen_outputs(node, "a positional constant")


# ---------------------------------------------------------------------- contractions
@rule("mm", "addmm", "bmm", "baddbmm", "mv", "dot")
def _mm(analysis: Analysis, node: Node) -> list[Axes]:
    name = op_name(node.op)
    at = 1 if name in ("addmm", "baddbmm") else 0
    left, right = node.args[at], node.args[at + 1]
    a, b = analysis.axes[left.id], analysis.axes[right.id]
    inner = -2 if len(b) > 1 else -1
    analysis.writes(left.id, a[-2] if len(a) > 1 else (), "neuron")
    analysis.writes(right.id, b[-1] if len(b) > 1 else (), "neuron")
    analysis.contract(node, (at, left.id, len(a) - 1), (at + 1, right.id, len(b) + inner))
    out = [*a[:-1], *b[-1:]] if len(b) > 1 else list(a[:-1])
    if len(a) == 3:
        analysis.labels.unite(a[0], b[0])
    if at:
        bias = node.args[0]
        theirs = analysis.program.values[bias.id].shape
        shape = analysis.shape(node)
        offset = len(shape) - len(theirs)
        for d, axis in enumerate(analysis.axes[bias.id], offset):
            if theirs[d - offset] == shape[d]:
                analysis.labels.unite(out[d], axis)
    return [out]


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def _convolution(analysis: Analysis, node: Node) -> list[Axes]:
    x, w = node.args[0].id, node.args[1].id
    transposed, groups = bool(node.args[6]), int(node.args[8])
    labels = analysis.labels
    image, kernel = analysis.axes[x], analysis.axes[w]
    for axis in image[2:]:
        labels.freeze(axis, SPACE)
    for axis in kernel[2:]:
        labels.freeze(axis, KERNEL)
    enters, leaves_by = (0, 1) if transposed else (1, 0)
    if groups == 1:
        analysis.writes(w, kernel[leaves_by], "channel")
        analysis.contract(node, (0, x, 1), (1, w, enters))
        out = kernel[leaves_by]
    else:
        out = _grouped(analysis, node, enters, leaves_by, groups)
    if isinstance(node.args[2], Ref):
        labels.unite(out, analysis.axes[node.args[2].id][0])
    shape = analysis.shape(node)
    return [[image[0], out, *(frozen_axis(n, SPACE) for n in shape[2:])]]


def is_depthwise(node: Node, analysis: Analysis) -> bool:
    """Whether a convolution has a group for each of its input channels, and one kernel row each."""
    x, w = (analysis.program.values[ref.id].shape for ref in node.args[:2])
    return int(node.args[8]) == x[1] > 1 and w[1] == 1


def _grouped(analysis: Analysis, node: Node, enters: int, leaves_by: int, groups: int) -> Axis:
    """A grouped convolution: the same number of channels must go from each of its groups.

    Along the axis of the kernel that all groups share, each may lose others if the kernel is a
    plain tensor; of a computed one, the same index goes from every group.
    """
    x, w = node.args[0].id, node.args[1].id
    labels, kernel = analysis.labels, analysis.axes[w]
    shape = analysis.program.values[w].shape
    channels = analysis.axes[x][1]
    if is_depthwise(node, analysis):  # output (c, m) comes from channel c alone
        if shape[0] == groups:
            labels.unite(kernel[0], channels)
            return kernel[0]
        multiplier = fresh_axis(shape[0] // groups)
        labels.unite(kernel[0], (*channels, *multiplier))
        analysis.writes(w, kernel[0], "channel")
        return kernel[0]
    blocked = analysis.blocked_axis(w, groups)
    reason = "groups of a convolution"
    inside: Axis = (blocked,) if blocked else (*frozen_axis(groups, reason), *kernel[1])
    read_axis, out = (kernel[0], inside) if enters == 0 else (inside, kernel[0])
    analysis.writes(w, out, "channel")
    analysis.reads_weight(w, kernel[enters] if blocked is None else read_axis)
    analysis.read(node, 0, x, 1)
    labels.unite(channels, read_axis)
    for axis in (read_axis, out):
        labels.balance(labels.flat(axis), groups, reason)
    return out


# ---------------------------------------------------------------------- normalisation
@rule(
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm",
    "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
)  # fmt: skip
def _batch_norm(analysis: Analysis, node: Node) -> list[Axes]:
    axes = analysis.axes[node.args[0].id]
    for ident in node.inputs[1:]:
        analysis.labels.unite(axes[1], analysis.axes[ident][0])
    analysis.scales_by(node.args[1])
    training = "no_training" not in op_name(node.op) and bool(node.args[5])
    if training:
        for d, axis in enumerate(axes):
            if d != 1:
                analysis.statistic(axis, "batch statistics are taken over it")
    return [axes, *([list(axes[1:2])] * (len(node.outputs) - 1))]


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def _layer_norm(analysis: Analysis, node: Node) -> list[Axes]:
    axes = analysis.axes[node.args[0].id]
    n = len(node.args[1])
    for axis in axes[-n:]:
        analysis.statistic(axis, "layer normalisation takes its statistics over it")
    for ident in node.inputs[1:]:
        for a, b in zip(axes[-n:], analysis.axes[ident], strict=True):
            analysis.labels.unite(a, b)
    analysis.scales_by(node.args[2] if len(node.args) > 2 else None)
    rest = [*axes[:-n], *([()] * n)]
    return [axes, *([rest] * (len(node.outputs) - 1))]


@rule("native_group_norm", "group_norm")
def _group_norm(analysis: Analysis, node: Node) -> list[Axes]:
    axes = analysis.axes[node.args[0].id]
    channels = analysis.program.values[node.args[0].id].shape[1]
    groups = int(node.args[6])
    outer, inner = analysis.labels.regroup([axes[1]], [groups, channels // groups])
    for axis in (inner, *axes[2:]):
        analysis.statistic(axis, "group normalisation takes its statistics over it")
    for ident in node.inputs[1:]:
        analysis.labels.unite(axes[1], analysis.axes[ident][0])
    analysis.scales_by(node.args[1])
    return [axes, *([[axes[0], outer]] * (len(node.outputs) - 1))]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def _softmax(analysis: Analysis, node: Node) -> list[Axes]:
    axes = analysis.axes[node.args[0].id]
    analysis.statistic(axes[node.args[1]], "softmax normalises over it")
    return [axes]


@rule("cumsum", "cumprod", "logcumsumexp")
def _cumulative(analysis: Analysis, node: Node) -> list[Axes]:
    axes, dim = analysis.axes[node.args[0].id], node.args[1]
    if op_name(node.op) != "cumsum":
        analysis.labels.freeze(axes[dim], f"{op_name(node.op)} runs along it")
    elif any(f.frozen is None for f in leaves(axes[dim])):
        analysis.read(node, 0, node.args[0].id, dim)
    return [axes]


# ---------------------------------------------------------------------- pooling, reductions
def _spatial(analysis: Analysis, node: Node) -> list[Axes]:
    """Batch and channels stay; what is pooled or resized does not."""
    axes = analysis.axes[node.args[0].id]
    n = spatial_dims(node.op)
    for axis in axes[-n:]:
        analysis.labels.freeze(axis, SPACE)
    for ident in node.inputs[1:]:
        analysis.freeze_value(ident, "where to sample")
    out = [*axes[:-n], *(frozen_axis(s, SPACE) for s in analysis.shape(node)[-n:])]
    return [out for _ in node.outputs]


for _name in (
    "max_pool2d_with_indices max_pool3d_with_indices max_pool1d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool3d "
    "adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "grid_sampler_2d grid_sampler_3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
).split():
    RULES[_name] = _spatial


def reduced_dims(node: Node, rank: int) -> list[int]:
    """The dimensions that a reduction runs over."""
    at = 2 if op_name(node.op) == "linalg_vector_norm" else 1
    dims: Any = node.kwargs.get("dim", node.args[at] if len(node.args) > at else None)
    if isinstance(dims, bool) or dims is None or dims == []:
        return list(range(rank))
    return sorted({d % rank for d in (dims if isinstance(dims, list) else [dims])})


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod",
    "logsumexp", "linalg_vector_norm", "all", "any",
)  # fmt: skip
def _reduce(analysis: Analysis, node: Node) -> list[Axes]:
    """A sum reads its axis; any other reduction is a statistic over it."""
    axes = analysis.axes[node.args[0].id]
    name = op_name(node.op)
    if len(node.inputs) > 1:  # the elementwise maximum and minimum of two tensors
        return pointwise(analysis, node)
    dims = reduced_dims(node, len(axes))
    for d in dims:
        if name in ("sum", "linalg_vector_norm"):
            if any(f.frozen is None for f in leaves(axes[d])):
                analysis.read(node, 0, node.args[0].id, d)
        else:
            analysis.statistic(axes[d], f"{name} is taken over it")
    keep = len(analysis.shape(node)) == len(axes)
    out = [() if d in dims else axis for d, axis in enumerate(axes) if keep or d not in dims]
    return [out for _ in node.outputs]
