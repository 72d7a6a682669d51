"""Follow every axis of every tensor through a program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from . import rules, rules_recurrent, rules_routing, rules_views  # noqa: F401 - they register their rules
from .filled import Filled
from .labels import Axis, Factor, Labels, find, fresh_axis, frozen_axis, leaves
from .program import Node, Program, Ref
from .record import record

INPUT = "input of the network"


@dataclass(frozen=True)
class Read:
    """Argument `arg` of node `position` (value `value`) is read linearly along dimension `dim`."""

    position: int
    arg: int
    value: int
    dim: int
    axis: Axis


@dataclass(frozen=True)
class Blocked:
    """The inner channel axis of a grouped kernel: its own labels in each block of dimension 0."""

    factor: Factor
    blocks: int


class Analysis:
    """The axes of a program's values, and who reads and writes them.

    Attributes:
        axes: value id -> one axis per dimension.
        reads: every linear read of a live tensor along an axis, in order.
        roles: (tensor path, dim) -> 'writes' or 'reads'; what is in neither is carried along.
        scales: paths of the tensors that a normalisation multiplies its output by.
        kinds: (tensor path, dim) -> what a unit written there is called.
        blocked: tensor path -> the per-block labels of its dimension 1.
        order: tensor path -> position of the first node that uses it.
        statistics: positions of the nodes that take a statistic over an axis.
        points: value id -> the axis that the numbers in it point along.
        chosen: the axes along which something is chosen (the experts of a mixture).
        filled: the values that hold one number everywhere.
        pieces: value id of a filled tensor -> the first piece that was taken from it.
        apart: value id of a tensor from which only single slices are taken -> what each is.
        repeated: the factors along which single indices were expanded.
    """

    def __init__(self, program: Program):
        self.program = program
        self.labels = Labels()
        self.axes: dict[int, list[Axis]] = {}
        self.reads: list[Read] = []
        self.roles: dict[tuple[str, int], str] = {}
        self.scales: set[str] = set()
        self.kinds: dict[tuple[str, int], str] = {}
        self.blocked: dict[str, Blocked] = {}
        self.order: dict[str, int] = {}
        self.statistics: list[int] = []
        self.points: dict[int, Axis] = {}
        self.chosen: list[Axis] = []
        self.filled = Filled()
        self.pieces: dict[int, int | None] = {}
        self.apart: dict[int, rules_views.Apart] = {}
        self.repeated: list[Factor] = []
        self._origins: dict[int, tuple[str, ...]] = {}
        self._products: list[tuple[Read, Read]] = []
        self._alike: list[tuple[Axis, Axis]] = []
        self._position = 0
        self._start()
        for position, node in enumerate(program.nodes):
            self._position = position
            self._step(node)
        for ident in program.output_ids():
            self.freeze_value(ident, "output of the network")
            self.labels.freeze(self.points.get(ident, ()), "its numbers are given out")
        self._follow_aside()
        self._settle()

    def _settle(self) -> None:
        """What could not be told before the whole program was seen."""
        for sides in self._products:
            batched = [read for read in sides if self._varies(read.value)]
            if batched:  # an activation that starts from a weight, as a learned initial state does
                self.reads.append(batched[0])
            else:
                self._position = sides[0].position
                self.statistic(sides[0].axis, "a product of weights alone is summed over it")
        self.reads.sort(key=lambda read: read.position)
        for before, after in self.program.states:
            if before in self.axes and after in self.axes:
                for one, other in zip(self.axes[before], self.axes[after], strict=True):
                    self.labels.unite(one, other)
        for one, other in self._alike:
            if any(find(f).frozen is None for axis in (one, other) for f in leaves(axis)):
                both = np.concatenate([self.labels.flat(one), self.labels.flat(other)])
                self.labels.balance(both, 2, "axes that one number sizes")

    def _varies(self, ident: int) -> bool:
        """Whether a value has an axis of the inputs."""
        parts = (leaf for axis in self.axes[ident] for leaf in leaves(axis))
        return any(leaf.batch or leaf.frozen == INPUT for leaf in parts)

    def _follow_aside(self) -> None:
        """What no output depends on is coupled like the rest, but nothing is gated there."""
        inexact = self.labels.inexact
        gated: list[list[Any]] = [self.reads, self.statistics, inexact, self._products]
        known = [len(found) for found in gated]
        for position, node in enumerate(self.program.aside.nodes, len(self.program.nodes)):
            self._position = position
            self._step(node)
        for ident in self.program.aside.outputs:
            self.freeze_value(ident, "output of the network in training mode")
        for found, before in zip(gated, known, strict=True):
            del found[before:]

    def _start(self) -> None:
        batch = {self.program.values[i].shape[:1] for i in self.program.inputs[:1]}
        for ident in self.program.inputs:
            shape = self.program.values[ident].shape
            self.axes[ident] = [
                frozen_axis(n, INPUT, batch=d == 0 and shape[:1] in batch)
                for d, n in enumerate(shape)
            ]
        for name, ident in self.program.tensors.items():
            self.axes[ident] = [fresh_axis(n) for n in self.program.values[ident].shape]
            self._origins[ident] = (name,)
        for ident in self.program.constants:
            shape = self.program.values[ident].shape
            self.axes[ident] = [frozen_axis(n, "a constant of the code") for n in shape]

    def _step(self, node: Node) -> None:
        for ident, axes in zip(node.outputs, rules.follow(self, node), strict=False):
            if ident is not None:
                self.axes[ident] = axes
        name = rules.op_name(node.op)
        self.filled.follow(node, name)
        if self.points:
            rules_routing.follow_points(self, node)
        origins: tuple[str, ...] = ()
        for ident in node.inputs:
            for path in self._origins.get(ident, ()):
                self.order.setdefault(path, self._position)
                if path not in origins:
                    origins += (path,)
        # a weight that is picked by what depends on the inputs is a weight all the same
        makers = node.inputs[:1] if name in ("index", "index_select") else node.inputs
        weight = bool(makers) and all(ident in self._origins for ident in makers)
        for ident in node.outputs:
            if ident is not None and (weight or not self.program.values[ident].live):
                self._origins[ident] = origins

    # ------------------------------------------------------------------ for the rules
    def is_weight(self, ident: int) -> bool:
        """Whether a value is made of tensors of the model alone, picked by whatever."""
        return bool(self._origins.get(ident))

    @cached_property
    def consumers(self) -> dict[int, list[Node]]:
        """Value id -> the nodes that take it as an argument."""
        out: dict[int, list[Node]] = {}
        for node in (*self.program.nodes, *self.program.aside.nodes):
            for ident in node.inputs:
                out.setdefault(ident, []).append(node)
        return out

    def shape(self, node: Node) -> tuple[int, ...]:
        """The shape of a node's first output."""
        first = next(out for out in node.outputs if out is not None)
        return self.program.values[first].shape

    def arg_axes(self, node: Node) -> list[Axis]:
        """The axes of a node's first tensor."""
        return self.axes[node.inputs[0]]

    def frozen_outputs(self, node: Node, reason: str) -> list[list[Axis]]:
        """Outputs that must keep their sizes; the first axis stays the batch if it was."""
        first = self.axes[node.inputs[0]][:1] if node.inputs else []
        count = [f.size for axis in first for f in leaves(axis) if f.batch]
        return [
            []
            if out is None
            else [
                frozen_axis(n, reason, batch=d == 0 and [n] == count)
                for d, n in enumerate(self.program.values[out].shape)
            ]
            for out in node.outputs
        ]

    def freeze_value(self, ident: int, reason: str) -> None:
        for axis in self.axes[ident]:
            self.labels.freeze(axis, reason)

    def statistic(self, axis: Axis, reason: str) -> None:
        """The node takes a statistic over this axis: cutting it changes what stays."""
        if any(find(factor).frozen is None for factor in axis):
            self.labels.inexact.append((axis, reason))
            if self._position not in self.statistics[-1:]:
                self.statistics.append(self._position)

    def writes(self, ident: int, axis: Axis, kind: str) -> None:
        """A free axis of a weight: it makes these units."""
        self._note(ident, axis, "writes", kind)

    def reads_weight(self, ident: int, axis: Axis) -> None:
        """A contracted axis of a weight: it reads these units."""
        self._note(ident, axis, "reads", "")

    def scales_by(self, scale: object) -> None:
        """A normalisation multiplies what it gives by this operand, if it has one."""
        if isinstance(scale, Ref):
            self.scales.update(self._origins.get(scale.id, ()))

    def _note(self, ident: int, axis: Axis, role: str, kind: str) -> None:
        wanted = {id(leaf) for leaf in leaves(axis)}
        for name in self._origins.get(ident, ()):
            own = self.program.tensors[name]
            for d, mine in enumerate(self.tensor_axes(name, own)):
                found = leaves(mine)
                if found and all(id(leaf) in wanted for leaf in found):
                    self.roles.setdefault((name, d), role)
                    if kind:
                        self.kinds.setdefault((name, d), kind)

    def read_by(self, ident: int, axis: Axis) -> list[str]:
        """The tensors from which a value is made that only read the units along an axis."""
        wanted = {id(leaf) for leaf in leaves(axis)}
        return [
            name
            for name in self._origins.get(ident, ())
            for d, mine in enumerate(self.axes[self.program.tensors[name]])
            if self.roles.get((name, d)) == "reads" and wanted & {id(leaf) for leaf in leaves(mine)}
        ]

    def tensor_axes(self, name: str, ident: int) -> list[Axis]:
        axes = self.axes[ident]
        if name in self.blocked:
            return [axes[0], (self.blocked[name].factor,), *axes[2:]]
        return axes

    def read(self, node: Node, arg: int, ident: int, dim: int) -> None:
        """This operand is read linearly along one of its axes."""
        axis = self.axes[ident][dim]
        self.reads.append(Read(self._position, arg, ident, dim, axis))

    def contract(self, node: Node, left: tuple[int, int, int], right: tuple[int, int, int]) -> None:
        """Both operands, each (argument, value, dim), lose the same indices of a summed axis."""
        live = [self.program.values[ident].live for _, ident, _ in (left, right)]
        if all(live):  # a weight that was picked is no activation
            live = [not self.is_weight(ident) for _, ident, _ in (left, right)]
            live = live if any(live) else [True, True]
        axes = [self.axes[ident][dim] for _, ident, dim in (left, right)]
        for (_, ident, _), axis in zip((left, right), axes, strict=True):
            self.reads_weight(ident, axis)
        if any(self.filled.zero(ident) for _, ident, _ in (left, right)):
            pass  # nothing is read from zeros
        elif any(live):
            arg, ident, dim = left if live[0] else right
            if any(find(factor).frozen is None for factor in axes[0]):
                self.read(node, arg, ident, dim)
        else:
            sides = (left, right)
            one, other = (
                Read(self._position, *side, self.axes[side[1]][side[2]]) for side in sides
            )
            self._products.append((one, other))
        self.labels.unite(*axes)

    def same_count(self, one: Axis, other: Axis) -> None:
        """These axes may lose other indices, but as many of them."""
        if leaves(one) != leaves(other):
            self._alike.append((one, other))

    @cached_property
    def weighted(self) -> set[Factor]:
        """The factors of the axes of the model's tensors; ask when all axes are known."""
        own = self.program.tensors.values()
        return {leaf for ident in own for axis in self.axes[ident] for leaf in leaves(axis)}

    def with_copies(self, axis: Axis) -> Axis:
        """An axis whose indices are each repeated: the copies of one index may go one by one."""
        parts = leaves(axis) if len(axis) > 1 and self.repeated else []
        for i, (source, repeat) in enumerate(pairwise(parts)):
            if source.frozen is None and repeat.virgin and repeat.repeats is not None:
                copies = self.labels.copies(source, repeat)
                return (*parts[:i], copies, *parts[i + 2 :])
        return axis

    def blocked_axis(self, ident: int, groups: int) -> Factor | None:
        """The per-group labels of dimension 1 of a grouped kernel; None if it is computed."""
        names = [name for name, own in self.program.tensors.items() if own == ident]
        if not names:
            return None
        known = self.blocked.get(names[0])
        if known is None:
            size = groups * self.program.values[ident].shape[1]
            known = self.blocked[names[0]] = Blocked(Factor(size), groups)
            self.labels.freeze(self.axes[ident][1], "inside the groups of a convolution")
        return known.factor if known.blocks == groups else None


def analyse(model: nn.Module, example_inputs: object) -> Analysis:
    """Record one run of the model and follow its axes."""
    return Analysis(record(model, example_inputs, rules.supported))


__all__ = ["Analysis", "Blocked", "Read", "analyse"]
