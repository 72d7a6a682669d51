"""Where the units of a group are seen in a value of the program, and where its activation is read.

Every group is looked at in one place. From what its first reader reads, the walk goes back through
whatever moves, pools or scales, to the output of the last nonlinearity: the feature map of the
papers. Where a contraction comes first, or the network's input, the place is what the reader reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from .blocks import Block, reads_of
from .groups import Graph, Group
from .trace.analyse import Read
from .trace.labels import leaves
from .trace.program import Node, Ref
from .trace.rules import is_linear, is_pointwise, op_name, passes_on

Layout: TypeAlias = tuple[tuple[int, ...], int, int | None]  # shape, along, batch of a Family


@dataclass(frozen=True)
class Family:
    """The units of one group along one factor of an axis of a tensor.

    Attributes:
        group, size: its name, and how many units it has.
        shape: of the tensor, factor by factor.
        along, batch: which factor holds the units, and which the examples (None: none does).
        positions, units: indices along the factor, and the units there; no positions where index
            i is unit i.
        per_unit: (size,): how many elements of one example each unit has in this tensor: after
            pooling, fewer than in the map that was pooled.
        shared: whether the tensor does not depend on the inputs.
    """

    group: str
    size: int
    shape: tuple[int, ...]
    along: int
    batch: int | None
    positions: Tensor | None
    units: Tensor
    per_unit: Tensor
    shared: bool

    @property
    def even(self) -> bool:
        """Whether every unit of the group is there, with as many elements as any other."""
        counts = torch.bincount(self.units, minlength=self.size)
        return bool((counts == counts[0]).all()) and int(counts[0]) > 0

    @property
    def layout(self) -> Layout:
        """How the tensor is read; families of one layout share its sums and its gates."""
        return self.shape, self.along, self.batch

    def collect(self, rows: Tensor) -> Tensor:
        """(examples, units): the sum over the elements of each unit, from `sums`."""
        if self.positions is None:
            return rows
        picked = rows[:, self.positions.to(rows.device)]
        rows = rows.new_zeros(len(rows), self.size)
        return rows.index_add(1, self.units.to(rows.device), picked)

    def map(self, x: Tensor) -> Tensor:
        """(examples, units, positions): the elements of each unit, a view where it can be."""
        rows = x.reshape(self.shape)
        if self.batch is None:
            rows = rows.movedim(self.along, 0)[None]
        else:
            rows = rows.movedim((self.batch, self.along), (0, 1))
        rows = rows.flatten(2) if rows.dim() > 2 else rows[..., None]
        if self.positions is None:
            return rows
        by_unit = self.positions[self.units.argsort(stable=True)].to(rows.device)
        return rows[:, by_unit].reshape(len(rows), self.size, -1)

    def lines(self, gate: Tensor) -> Tensor:
        """(examples, length): for each index along the factor the gate of its unit, or one."""
        if self.positions is None:
            return gate
        lines = gate.new_ones(len(gate), self.shape[self.along])
        for positions, units in _layers(self.positions, self.units):
            picked = lines[:, positions] * gate[:, units]
            lines = lines.index_copy(1, positions.to(gate.device), picked)
        return lines


def sums(x: Tensor, layout: Layout) -> Tensor:
    """(examples, length): the sums over the elements of each index; one row without a batch."""
    shape, along, batch = layout
    rows = x.reshape(shape)
    summed = [d for d in range(len(shape)) if d not in (along, batch)]
    if summed:
        rows = rows.sum(summed)
    if batch is None:
        return rows[None]
    return rows.T if batch > along else rows


def gated(x: Tensor, gates: Iterable[tuple[Family, Tensor]]) -> Tensor:
    """The tensor, each element times the gates of its units in its example, (examples, units)."""
    lines: dict[Layout, Tensor] = {}
    for family, gate in gates:
        own, known = family.lines(gate), lines.get(family.layout)
        lines[family.layout] = own if known is None else known * own
    for (shape, along, batch), rows in lines.items():
        spread = [1] * len(shape)
        spread[along] = shape[along]
        if batch is not None:
            spread[batch] = len(rows)
            rows = rows.T if batch > along else rows
        x = (x.reshape(shape) * rows.reshape(spread)).reshape(x.shape)
    return x


def _layers(positions: Tensor, units: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pairs in parts in which no position comes twice."""
    out = []
    while len(positions):
        _, first = np.unique(positions.numpy(), return_index=True)
        now = torch.zeros(len(positions), dtype=torch.bool)
        now[torch.from_numpy(first)] = True
        out.append((positions[now], units[now]))
        positions, units = positions[~now], units[~now]
    return out


def families(graph: Graph, value: int, dim: int | None = None) -> list[Family]:
    """How to see each group's units in a value of the program, along one of its dimensions or any.

    Args:
        graph: the trace.
        value: its number in the program.
        dim: which dimension; all if None.
    """
    axes = graph.analysis.axes[value]
    parts = [(d, leaf) for d, axis in enumerate(axes) for leaf in leaves(axis)]
    shape = tuple(leaf.size for _, leaf in parts)
    batch = next((i for i, (_, leaf) in enumerate(parts) if leaf.batch), None)
    examples = shape[batch] if batch is not None else 1
    out = []
    for i, (d, leaf) in enumerate(parts):
        if i == batch or (dim is not None and d != dim):
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
                    shape,
                    i,
                    batch,
                    None if straight else torch.from_numpy(where),
                    torch.from_numpy(which),
                    torch.from_numpy(count * (np.prod(shape) / (examples * leaf.size))),
                    not graph.program.values[value].live,
                )
            )
    return out


def gated_reads(
    graph: Graph, groups: Iterable[Group] | None = None
) -> list[tuple[Read, list[Family]]]:
    """The reads that carry gates, with those of the groups (all of them) that are read there.

    What is computed from weights alone, such as a norm of the weights, is one value for all
    examples and carries none: a derivative by example holds it fixed.
    """
    groups = graph.groups if groups is None else list(groups)
    wanted = {group.name for group in groups if not isinstance(group, Block)}
    found = []
    for read in graph.analysis.reads if wanted else ():
        own = [f for f in families(graph, read.value, read.dim) if f.group in wanted]
        found.append((read, [f for f in own if f.batch is not None or not f.shared]))
    for block in groups:
        if isinstance(block, Block):
            found += [(read, [whole(graph, read, block)]) for read in reads_of(graph, block)]
    return [(read, own) for read, own in found if own]


def whole(graph: Graph, read: Read, block: Block) -> Family:
    """All that a residual branch adds to the trunk, as the one unit of its block."""
    parts = [leaf for axis in graph.analysis.axes[read.value] for leaf in leaves(axis)]
    shape = (1, *(leaf.size for leaf in parts))
    batch = next((i for i, leaf in enumerate(parts, 1) if leaf.batch), None)
    each = np.prod(shape) / (shape[batch] if batch is not None else 1)
    unit, per_unit = torch.zeros(1, dtype=torch.int64), torch.tensor([each])
    return Family(block.name, 1, shape, 0, batch, None, unit, per_unit, shared=False)


@dataclass(frozen=True)
class Site:
    """The place where a group's activation is read.

    Attributes:
        group: its name.
        name: what a person calls it: 'conv1 → relu', or 'what conv2 reads'.
        position: of a node of the program.
        arg: which of its arguments is read; None for what it gives.
        output: which of its outputs, where it gives several.
        family: the group's units in that tensor.
    """

    group: str
    name: str
    position: int
    arg: int | None
    output: int
    family: Family


def sites(graph: Graph, groups: Iterable[Group] | None = None) -> dict[str, Site]:
    """The one place where each group is looked at; a group that is nowhere seen whole has none."""
    search = _Search(graph)
    groups = graph.groups if groups is None else groups
    found = {
        group.name: _added(graph, group) if isinstance(group, Block) else search.site(group)
        for group in groups
    }
    return {name: site for name, site in found.items() if site is not None}


def _added(graph: Graph, block: Block) -> Site | None:
    """Where a block of one branch is added to the trunk."""
    reads = reads_of(graph, block)
    if len(reads) > 1:
        return None
    [read] = reads
    name = f"what {graph.program.nodes[read.position].module or 'the model'} adds"
    return Site(block.name, name, read.position, read.arg, 0, whole(graph, read, block))


class _Search:
    """The way back from the readers to the activations."""

    def __init__(self, graph: Graph):
        self.graph = graph
        nodes = graph.program.nodes
        self.producers = {
            out: (position, k)
            for position, node in enumerate(nodes)
            for k, out in enumerate(node.outputs)
            if out is not None
        }
        self.readers: dict[str, list[Read]] = {}
        self._seen: dict[int, dict[str, Family | None]] = {}
        for read in graph.analysis.reads:
            for family in families(graph, read.value, read.dim):
                self.readers.setdefault(family.group, []).append(read)

    def _families(self, value: int) -> dict[str, Family | None]:
        """Group -> its units in a value, None if they are there in several ways or not whole."""
        if value not in self._seen:
            found: dict[str, Family | None] = {}
            for family in families(self.graph, value):
                whole = family.even and not family.shared and family.group not in found
                found[family.group] = family if whole else None
            self._seen[value] = found
        return self._seen[value]

    def site(self, group: Group) -> Site | None:
        for read in self.readers.get(group.name, ()):
            found = self._from(group.name, read)
            if found is not None:
                return found
        return None

    def _from(self, group: str, read: Read) -> Site | None:
        value, whole = read.value, []
        while True:
            if self._families(value).get(group) is not None:
                whole.append(value)
            if value not in self.producers:
                break
            node = self.graph.program.nodes[self.producers[value][0]]
            if self._ends(node):
                return self._given(group, value) if value in whole else None
            before = [v for v in self._passed(node) if group in self._families(v)]
            if len(before) != 1:
                break
            value = before[0]
        if whole and whole[0] == read.value:
            return self._read(group, read)
        return self._given(group, whole[0]) if whole else None

    def _live(self, node: Node) -> list[bool]:
        values = self.graph.program.values
        return [isinstance(arg, Ref) and values[arg.id].live for arg in node.args]

    def _ends(self, node: Node) -> bool:
        """A nonlinearity, or where several maps become one: what it gives is the activation."""
        live = self._live(node)
        return is_pointwise(node.op) and (sum(live) > 1 or not is_linear(node.op, live))

    def _passed(self, node: Node) -> list[int]:
        """The live values whose elements a node hands on."""
        if not (is_pointwise(node.op) or passes_on(node.op)):
            return []
        return [v for v in node.inputs if self.graph.program.values[v].live]

    def _given(self, group: str, value: int) -> Site | None:
        family = self._families(value)[group]
        if family is None or value not in self.producers:
            return None
        position, output = self.producers[value]
        node = self.graph.program.nodes[position]
        where = f" ({node.module})" if node.module not in ("", group) else ""
        name = f"{group} → {op_name(node.op)}{where}"
        return Site(group, name, position, None, output, family)

    def _read(self, group: str, read: Read) -> Site | None:
        family = self._families(read.value)[group]
        if family is None:
            return None
        node = self.graph.program.nodes[read.position]
        name = f"what {node.module or op_name(node.op)} reads"
        return Site(group, name, read.position, read.arg, 0, family)
