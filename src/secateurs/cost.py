"""What a network costs: multiply-accumulates, parameters and units, before and after a cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .groups import Graph, Selection
from .trace.labels import Axis
from .trace.program import Node
from .trace.rules import op_name

MEASURES = ("macs", "params", "units")


@dataclass(frozen=True)
class _Product:
    """A count: a constant times the sizes of some axes, one of which is shared by `blocks`."""

    constant: int
    axes: tuple[Axis, ...]
    blocks: int = 1


class Cost:
    """The cost of a traced network as a function of what is cut from it.

    `macs` counts multiply-accumulates of one run on the example inputs (FLOPs = 2 · MACs), the
    contractions that `torch.utils.flop_counter` counts; `params` counts parameters, each once;
    `units` counts the units of all groups, and `beside` more: those of groups that were cut to one
    unit, which a trace of the cut network no longer offers.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2, bias=False))
    >>> Cost(sc.trace(net, torch.zeros(1, 4))).all()
    {'macs': 48, 'params': 56, 'units': 8}
    """

    def __init__(self, graph: Graph, *, beside: int = 0):
        self.graph = graph
        self._macs = [term for node in graph.program.nodes for term in _macs_of(graph, node)]
        self._params = _parameters(graph)
        self._none = Selection(graph, ())
        self._measures: dict[str, Callable[[Selection], int]] = {
            "macs": lambda cut: _total(self._macs, cut),
            "params": lambda cut: _total(self._params, cut),
            "units": lambda cut: graph.size + beside - cut.count,
        }

    def of(self, measure: str, cut: Selection | None = None) -> int:
        """A measure of the network after a cut (None: uncut)."""
        return self._measures[measure](self._none if cut is None else cut)

    def all(self, cut: Selection | None = None) -> dict[str, int]:
        """Every measure of the network after a cut (None: uncut)."""
        return {measure: self.of(measure, cut) for measure in MEASURES}

    def saved_per_unit(self, measure: str = "macs") -> dict[str, float]:
        """What deleting one unit of each group saves (one of each block, shared out)."""
        whole = self.of(measure)
        out = {}
        for group in self.graph.groups:
            units = np.array([group.units[block[0]] for block in group.blocks()])
            out[group.name] = (whole - self.of(measure, Selection(self.graph, units))) / len(units)
        return out


def _total(terms: list[_Product], cut: Selection) -> int:
    total = 0
    for term in terms:
        count = term.constant
        for axis in term.axes:
            count *= cut.size(axis)
        total += count // term.blocks
    return total


def _parameters(graph: Graph) -> list[_Product]:
    analysis = graph.analysis
    out = []
    for name, shape in graph.program.parameters.items():
        if name not in graph.program.tensors:
            out.append(_Product(int(np.prod(shape)), ()))
            continue
        axes = analysis.tensor_axes(name, graph.program.tensors[name])
        blocks = analysis.blocked[name].blocks if name in analysis.blocked else 1
        out.append(_Product(1, tuple(axes), blocks))
    return out


def _macs_of(graph: Graph, node: Node) -> list[_Product]:
    analysis = graph.analysis
    name = op_name(node.op)
    out = next((ident for ident in node.outputs if ident is not None), None)
    if out is None:
        return []
    made = tuple(analysis.axes[out])
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        left = node.args[1 if name in ("addmm", "baddbmm") else 0].id
        return [_Product(1, (*made, analysis.axes[left][-1]))]
    if not name.endswith("convolution"):
        return []
    weight = node.args[1].id
    kernel = graph.program.values[weight].shape
    own = [n for n, ident in graph.program.tensors.items() if ident == weight]
    blocks = analysis.blocked[own[0]].blocks if own and own[0] in analysis.blocked else 1
    axes = analysis.tensor_axes(own[0], weight) if own else analysis.axes[weight]
    area = int(np.prod(kernel[2:]))
    if node.args[6]:  # transposed: every input value meets the kernel's outputs
        return [_Product(area, (*analysis.axes[node.args[0].id], axes[1]), blocks)]
    return [_Product(area, (*made, axes[1]), blocks)]
