"""Watch what the readers of a network read, and the gradient there, while a recording is replayed.

The gate of a unit sits on the operand that each reader reads; its derivative is the sum of
∂C/∂z · z over the unit's positions there, which costs one product and one sum and no second graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .errors import DataError, TraceError
from .gates import trace
from .groups import Graph
from .trace.analyse import Read
from .trace.labels import leaves
from .trace.program import Intercept
from .trace.record import input_tensors, model_tensors


@dataclass(frozen=True)
class Family:
    """The units of one group along one factor of a read's axis, as seen in the operand."""

    group: str
    size: int
    summed: tuple[int, ...]
    shape: tuple[int, ...]
    batch: int | None
    flip: bool
    positions: Tensor | None
    units: Tensor
    per_unit: Tensor
    shared: bool

    def collect(self, product: Tensor) -> Tensor:
        """(examples, units): the mean over positions of an operand-shaped tensor."""
        rows = product.reshape(self.shape)
        if self.summed:
            rows = rows.sum(self.summed)
        if self.batch is None:
            rows = rows[None]
        elif self.flip:
            rows = rows.T
        if self.positions is not None:
            units = self.units.to(rows.device)
            picked = rows[:, self.positions.to(rows.device)]
            rows = rows.new_zeros(len(rows), self.size).index_add_(1, units, picked)
        return rows / self.per_unit.to(rows)


def _families(graph: Graph, read: Read) -> list[Family]:
    """How to see each group's units in the operand of a read."""
    axes = graph.analysis.axes[read.value]
    parts = [(d, leaf) for d, axis in enumerate(axes) for leaf in leaves(axis)]
    shape = tuple(leaf.size for _, leaf in parts)
    batch = next((i for i, (_, leaf) in enumerate(parts) if leaf.batch), None)
    examples = shape[batch] if batch is not None else 1
    out = []
    for i, (d, leaf) in enumerate(parts):
        if d != read.dim or i == batch:
            continue
        positions, units = graph.incidence(leaf)
        for number in np.unique(graph.group_of[units]).tolist():
            group = graph.groups[number]
            mine = graph.group_of[units] == number
            where, which = positions[mine], graph.index_of[units[mine]]
            straight = (
                len(where) == group.size == leaf.size
                and ((where == np.arange(leaf.size)) & (which == where)).all()
            )
            count = np.maximum(np.bincount(which, minlength=group.size), 1)
            out.append(
                Family(
                    group.name,
                    group.size,
                    tuple(j for j in range(len(parts)) if j not in (i, batch)),
                    shape,
                    batch,
                    batch is not None and batch > i,
                    None if straight else torch.from_numpy(where),
                    torch.from_numpy(which),
                    torch.from_numpy(count * (np.prod(shape) / (examples * leaf.size))),
                    not graph.program.values[read.value].live,
                )
            )
    return out


class _Shape:
    """One recording for one input shape, ready to be observed."""

    def __init__(self, model: nn.Module, example_inputs: Any, names: dict[str, int]):
        self.graph = trace(model, example_inputs)
        sizes = {group.name: group.size for group in self.graph.groups}
        if sizes != names:
            raise TraceError(
                "the network has other groups for this input shape than for the traced one; "
                "score with inputs like the example inputs"
            )
        self.reads: list[tuple[Read, list[Family], list[Family]]] = []
        seen: set[str] = set()
        for read in self.graph.analysis.reads:
            families = _families(self.graph, read)
            first = [family for family in families if family.group not in seen]
            seen.update(family.group for family in families)
            if families:
                self.reads.append((read, families, first))


@dataclass
class Seen:
    """What the replays of one batch have shown so far: group -> (examples, units)."""

    gradient: dict[str, Tensor] = field(default_factory=dict)
    activation: dict[str, Tensor] = field(default_factory=dict)
    examples: int = 0
    calls: int = 0
    leaves: list[Tensor] = field(default_factory=list)

    def add(self, into: dict[str, Tensor], family: Family, rows: Tensor) -> None:
        """Add what one read shows of a family, (examples, units)."""
        if len(rows) != self.examples:
            if not family.shared:
                raise DataError(
                    f"the examples of a batch cannot be told apart where group {family.group!r} is "
                    "read: the model mixes them before it; score with batches of one example"
                )
            rows = rows.expand(self.examples, -1) / self.examples
        known = into.get(family.group)
        into[family.group] = rows if known is None else known + rows


class Watched:
    """A stand-in for the model that replays its recording and watches what is read.

    Args:
        needs: what to watch, of 'gradient' and 'activation'.
    """

    def __init__(self, model: nn.Module, graph: Graph, needs: frozenset[str]):
        self._model, self._needs = model, needs
        self._tensors = {name: t.detach() for name, t in model_tensors(model).items()}
        self._names = {group.name: group.size for group in graph.groups}
        self._shapes: dict[Any, _Shape] = {}
        self.seen = Seen()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call: Any = kwargs if kwargs and not args else args
        if kwargs and args:
            raise DataError("call the model with positional or with keyword arguments, not both")
        inputs = input_tensors(call)
        leaves, spec = pytree.tree_flatten(call)
        told = [(t.shape, t.dtype) if isinstance(t, Tensor) else repr(t) for t in leaves]
        key = (str(spec), *told)  # a recording bakes in all that is no tensor
        if key not in self._shapes:
            self._shapes[key] = _Shape(self._model, call, self._names)
        shape = self._shapes[key]
        self.seen.examples = len(inputs[0])
        self.seen.calls += 1
        return shape.graph.program.replay(self._tensors, inputs, self._intercepts(shape))

    def _intercepts(self, shape: _Shape) -> dict[int, Intercept]:
        out: dict[int, Intercept] = {}
        for read, families, first in shape.reads:
            out[read.position] = self._watch(read, families, first, out.get(read.position))
        return out

    def _watch(
        self,
        read: Read,
        families: list[Family],
        first: list[Family],
        before: Intercept | None,
    ) -> Intercept:
        def intercept(args: list[Any]) -> list[Any]:
            args = before(args) if before is not None else args
            x: Tensor = args[read.arg]
            if "activation" in self._needs:
                for family in first:
                    rows = family.collect(x.detach())
                    self.seen.add(self.seen.activation, family, rows)
            if "gradient" in self._needs:
                args[read.arg] = self._gate(x, families)
            return args

        return intercept

    def _gate(self, x: Tensor, families: list[Family]) -> Tensor:
        """The operand under another name, whose gradient is that of this reader alone."""
        value = x.detach()

        def collect(gradient: Tensor) -> None:
            product = gradient * value
            for family in families:
                self.seen.add(self.seen.gradient, family, family.collect(product))

        if x.requires_grad:
            x = x.view_as(x)
        else:
            x = value.view_as(value).requires_grad_()
            x.register_post_accumulate_grad_hook(_forget_gradient)
            self.seen.leaves.append(x)
        x.register_hook(collect)
        return x


def _forget_gradient(tensor: Tensor) -> None:
    tensor.grad = None
