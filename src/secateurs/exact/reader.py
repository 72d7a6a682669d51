"""The rank-one update: a reader's result without a unit is its result less that unit's part.

`W·(g⊙x) = W·x − W[:, u]·x_u` where only unit u is gated. It takes one channel where the reader in
full takes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..trace.rules import op_name
from .recording import Layout, Recording, Rows

if TYPE_CHECKING:
    from .cone import Cut

aten = torch.ops.aten

# (result rows to write, uncut result, operand, weight, unit, rows of the batch) -> None
Subtract: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, int, Rows], None]


def subtraction(
    recording: Recording, position: int, cuts: Sequence[Cut], changed: set[int]
) -> Subtract | None:
    """How to take a unit's part from the result of a reader; None if it must run in full."""
    node = recording.nodes[position]
    layouts = recording.layouts or {}
    name = op_name(node.op)
    if name not in ("addmm", "mm", "convolution"):
        return None  # a norm reads too, and its second argument is a number
    if len(cuts) != 1 or node.kwargs or not changed.isdisjoint(node.inputs):
        return None
    cut = cuts[0]
    values = recording.graph.program.values
    out = node.outputs[0]
    if cut.value not in layouts or out not in layouts:
        return None
    operand = 1 if name == "addmm" else 0
    weight = node.args[operand + 1]
    x, z = layouts[cut.value], layouts[out]
    if (cut.arg, cut.dim, x.dim, z.dim, x.outer, z.outer) != (operand, 1, 0, 0, 1, 1):
        return None
    if values[weight.id].live:
        return None
    return _Convolution(cut, node.args) if name == "convolution" else _Product(x, z, cut)


def weight_of(recording: Recording, position: int) -> int:
    """The value of the weight of a reader that `subtraction` knows."""
    node = recording.nodes[position]
    return node.args[2 if op_name(node.op) == "addmm" else 1].id


class _Product:
    """x @ W, read along the columns of x."""

    def __init__(self, x: Layout, z: Layout, cut: Cut):
        self.x, self.z, self.cut = x, z, cut

    def __call__(
        self, into: Tensor, z: Tensor, x: Tensor, weight: Tensor, unit: int, rows: Rows
    ) -> None:
        indices = self.cut.indices[unit]
        part = self.x.pick(_some(x, 1, indices), rows)
        torch.addmm(self.z.pick(z, rows), part, _some(weight, 0, indices), alpha=-1, out=into)


class _Convolution:
    """A convolution, read along its input channels; grouped and transposed ones too."""

    def __init__(self, cut: Cut, args: Sequence[Any]):
        self.cut, self.args = cut, args

    def __call__(
        self, into: Tensor, z: Tensor, x: Tensor, weight: Tensor, unit: int, rows: Rows
    ) -> None:
        _, _, _, stride, padding, dilation, transposed, output_padding, groups = self.args
        indices = self.cut.indices[unit]
        base = Layout(0, 1, 1).pick(z, rows)
        some = Layout(0, 1, 1).pick(x, rows)
        options = (None, stride, padding, dilation, transposed, output_padding, 1)
        each, width = x.shape[1] // groups, z.shape[1] // groups
        if groups > 1:
            into.copy_(base)
        for group in torch.unique(indices // each).tolist() if groups > 1 else [0]:
            own = indices[indices // each == group] if groups > 1 else indices
            if transposed:
                kernel = _some(weight, 0, own)
            else:
                kernel = _some(weight.narrow(0, group * width, width), 1, own % each)
            part = aten.convolution(_some(some, 1, own), kernel, *options)
            if groups > 1:
                into.narrow(1, group * width, width).sub_(part)
            else:
                torch.sub(base, part, out=into)


def _some(tensor: Tensor, dim: int, indices: Tensor) -> Tensor:
    """The slices at these indices; a view where they are a run."""
    first, count = int(indices[0]), len(indices)
    if int(indices[-1]) - first == count - 1:
        return tensor.narrow(dim, first, count)
    return tensor.index_select(dim, indices.to(tensor.device))
