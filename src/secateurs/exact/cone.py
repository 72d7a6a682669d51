"""What a group changes: its readers, and what lies downstream of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..blocks import Block, reads_of
from ..groups import Graph, Group
from ..trace.program import Node, Program
from ..trace.rules import op_name
from .reader import Subtract, subtraction
from .recording import Recording


@dataclass(frozen=True)
class Cut:
    """One read of a group: argument `arg` (value `value`), read along dimension `dim`.

    Attributes:
        indices: per unit, the indices of that dimension that go with it.
    """

    arg: int
    value: int
    dim: int
    indices: tuple[Tensor, ...]


@dataclass
class Cone:
    """The nodes that a group's units can change, in order.

    Attributes:
        cuts: node -> what the group's units take from its operands.
        updates: the readers whose operands are else unchanged -> how their result changes.
        changed: the values that are not those of the uncut network.
        needs: the values of the uncut network that it takes to compute them.
        dying: node -> the values that no later node of the cone takes.
        bytes_per_row: the most that one (unit, example) holds in memory.
        work: multiply-accumulates of one row, and elements written.
        alone: why its units cannot share a batch as rows; empty if they can.
    """

    group: Group
    nodes: list[int]
    cuts: dict[int, list[Cut]]
    updates: dict[int, Subtract] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    needs: set[int] = field(default_factory=set)
    dying: dict[int, list[int]] = field(default_factory=dict)
    bytes_per_row: float = 0.0
    work: float = 0.0
    alone: str = ""

    @property
    def start(self) -> int:
        """The first node that changes; past the end if none does."""
        return self.nodes[0] if self.nodes else 1 << 60


def cuts_of(graph: Graph) -> list[dict[int, list[Cut]]]:
    """For each group of a graph: node -> the operands that its units take from, and where."""
    out: list[dict[int, list[Cut]]] = [{} for _ in graph.groups]
    for read in graph.analysis.reads:
        indices, units = graph.axis_incidence(read.axis)
        owners = graph.group_of[units]
        for number in np.unique(owners[owners >= 0]).tolist():
            mine = owners == number
            local, where = graph.index_of[units[mine]], indices[mine]
            order = np.lexsort((where, local))
            local, where = local[order], where[order]
            edges = np.searchsorted(local, np.arange(1, graph.groups[number].size))
            each = tuple(torch.from_numpy(np.unique(i)) for i in np.split(where, edges))
            cut = Cut(read.arg, read.value, read.dim, each)
            out[number].setdefault(read.position, []).append(cut)
    return out


def cuts_of_block(graph: Graph, block: Block) -> dict[int, list[Cut]]:
    """The same for a block, which takes all of what its branches add."""
    out: dict[int, list[Cut]] = {}
    for read in reads_of(graph, block):
        everything = torch.arange(graph.program.values[read.value].shape[read.dim])
        out[read.position] = [Cut(read.arg, read.value, read.dim, (everything,))]
    return out


def cone_of(
    recording: Recording, group: Group, cuts: dict[int, list[Cut]], also: Iterable[int] = ()
) -> Cone:
    """What the units of a group change.

    Args:
        recording: of the model.
        group: whose.
        cuts: what its units take from which operands.
        also: nodes that change for another reason: a statistic over the group's axis.
    """
    program = recording.graph.program
    nodes: list[int] = []
    changed: set[int] = set()
    starts = {*cuts, *also}
    for position in recording.steps(starts):
        node = recording.node(position)
        if position in starts or not changed.isdisjoint(node.inputs):
            nodes.append(position)
            changed.update(out for out in node.outputs if out is not None)
    cone = Cone(group, nodes, cuts, changed=changed, alone=_alone(recording, group, cuts))
    if recording.layouts is not None:
        for position, own in cuts.items():
            found = subtraction(recording, position, own, changed)
            if found is not None:
                cone.updates[position] = found
    _measure(cone, recording, program)
    return cone


def _alone(recording: Recording, group: Group, cuts: dict[int, list[Cut]]) -> str:
    """Why the units of a group cannot share a batch; empty if they can."""
    if not group.exact:
        return f"a statistic is taken over its units: {group.why_inexact}"
    layouts = recording.layouts or {}
    if any(cut.value not in layouts for own in cuts.values() for cut in own):
        return "its units are read in a value that all examples share, such as a weight"
    return ""


def _measure(cone: Cone, recording: Recording, program: Program) -> None:
    """What the cone needs, when its values are done with, and what a row of it takes."""
    last: dict[int, int] = {}
    for position in cone.nodes:
        node = recording.node(position)
        live = [i for i in node.inputs if program.values[i].live or i in cone.changed]
        own = [out for out in node.outputs if out is not None]
        if position in cone.updates:
            live += own[:1]
        cone.needs.update(i for i in live if i not in cone.changed)
        if position in cone.updates:
            cone.needs.add(own[0])
        last |= dict.fromkeys([*live, *own], position)
    outputs = set(program.output_ids())
    cone.needs |= {i for i in outputs - cone.changed if program.values[i].live}
    for value, position in last.items():
        if value not in outputs:
            cone.dying.setdefault(position, []).append(value)
    held: dict[int, float] = {}
    for position in cone.nodes:
        node = recording.node(position)
        values = [i for i in (*node.inputs, *node.outputs) if i is not None and i in last]
        held |= {i: recording.bytes_per_example(i) for i in values}
        scratch = 2 * sum(held[i] for i in set(values))  # copies that masks and kernels make
        cone.bytes_per_row = max(cone.bytes_per_row, sum(held.values()) + scratch)
        for value in cone.dying.get(position, ()):
            held.pop(value, None)
        few = position in cone.updates
        cone.work += work_of(program, node, 1 if few else None) / recording.size


def work_of(program: Program, node: Node, channels: int | None = None) -> float:
    """Multiply-accumulates of a node, and 20 for each element that it writes.

    Args:
        program, node: where it is.
        channels: how many of the summed channels take part; all if None.
    """
    shapes = [program.values[i].shape for i in node.inputs]
    made = [program.values[out].shape for out in node.outputs if out is not None]
    total = 20.0 * sum(map(math.prod, made))
    name = op_name(node.op)
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        total += math.prod(made[0]) * (channels or shapes[-1][-2])
    elif name == "scaled_dot_product_attention":
        total += 2 * math.prod(made[0]) * shapes[1][-2]
    elif name.endswith("convolution"):
        side = shapes[0] if node.args[6] else made[0]
        kernel = shapes[1]
        total += math.prod(side) * math.prod(kernel[2:]) * (channels or kernel[1])
    return total
