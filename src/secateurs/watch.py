"""Watch what the readers of a network read, and the gradient there, while a recording is replayed.

The gate of a unit sits on the operand that each reader reads, where the examples are told apart;
its derivative is the sum of ∂C/∂z · z over the unit's positions there, which costs one product and
one sum and no second graph.
Second derivatives need gates that are tensors: they are put there where these are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .errors import DataError, TraceError
from .gates import trace
from .groups import Graph, Group
from .sites import Family, Site, gated, gated_reads, sites, sums
from .trace.analyse import Read
from .trace.model import input_tensors, model_tensors
from .trace.program import Instead, Intercept, Node

SECOND = frozenset({"hessian", "gauss_newton"})


class _Shape:
    """One recording for one input shape, ready to be observed."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, traced: Graph, groups: list[Group], look: bool
    ):
        self.graph = trace(model, example_inputs)
        sizes, names = ({g.name: g.size for g in graph.groups} for graph in (self.graph, traced))
        if sizes != names:
            raise TraceError(
                "the network has other groups for this input shape than for the traced one; "
                "score with inputs like the example inputs"
            )
        self.reads = gated_reads(self.graph, groups)
        nodes = self.graph.program.nodes
        self.mutable = any(node.op._schema.is_mutable for node in nodes)
        self.sites: dict[int, list[Site]] = {}
        for site in sites(self.graph, groups).values() if look else ():
            self.sites.setdefault(site.position, []).append(site)


@dataclass
class Seen:
    """What the replays of one batch have shown so far, by group.

    Attributes:
        gradient, mean_gradient, hessian: (examples, units), see `GroupBatch`.
        gauss_newton: (examples, units, draws).
        activation: (examples, units, positions).
        gates: the gates that were put in, (examples, units), with the place of each.
        output: what the model gave last.
        leaves: what the gradient must reach.
    """

    gradient: dict[str, Tensor] = field(default_factory=dict)
    mean_gradient: dict[str, Tensor] = field(default_factory=dict)
    hessian: dict[str, Tensor] = field(default_factory=dict)
    gauss_newton: dict[str, Tensor] = field(default_factory=dict)
    activation: dict[str, Tensor] = field(default_factory=dict)
    gates: list[tuple[Family, Tensor]] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    output: Any = None
    examples: int = 0
    calls: int = 0

    def add_gradient(self, family: Family, rows: Tensor) -> None:
        """Add the derivatives by the gates of a family at one read, (examples, units)."""
        if len(rows) != self.examples:
            raise _mixed(family.group)
        _add(self.gradient, family.group, rows)
        _add(self.mean_gradient, family.group, rows / family.per_unit.to(rows))

    def add_activation(self, group: str, maps: Tensor) -> None:
        """Add what is seen at the group's site, (examples, units, positions)."""
        if len(maps) != self.examples:
            raise _mixed(group)
        known = self.activation.get(group)
        self.activation[group] = maps if known is None else torch.cat([known, maps], 2)


def _add(into: dict[str, Tensor], group: str, rows: Tensor) -> None:
    known = into.get(group)
    into[group] = rows if known is None else known + rows


def _mixed(group: str) -> DataError:
    return DataError(
        f"the examples of a batch cannot be told apart where group {group!r} is read: the model "
        "mixes them before it; score with batches of one example"
    )


class Watched:
    """A stand-in for the model that replays its recording and watches what is read.

    Args:
        needs: what to watch, of the fields of `GroupBatch`.
        groups: of which groups; all that can be cut if None.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        needs: frozenset[str],
        groups: list[Group] | None = None,
    ):
        self._model = model
        self._activation = "activation" in needs
        self._second = bool(SECOND & needs)
        self._first = bool({"gradient", "mean_gradient"} & needs) and not self._second
        self._tensors = {name: t.detach() for name, t in model_tensors(model).items()}
        self._graph, self._groups = graph, graph.groups if groups is None else groups
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
            self._shapes[key] = _Shape(
                self._model, call, self._graph, self._groups, self._activation
            )
        shape = self._shapes[key]
        self.seen.examples = len(inputs[0])
        self.seen.calls += 1
        self.seen.output = shape.graph.program.replay(
            self._tensors, inputs, self._intercepts(shape), self._lookouts(shape)
        )
        return self.seen.output

    # ------------------------------------------------------------------ activations
    def _lookouts(self, shape: _Shape) -> dict[int, Instead]:
        if not self._activation:
            return {}
        nodes = shape.graph.program.nodes
        return {p: self._look(nodes[p], own, shape.mutable) for p, own in shape.sites.items()}

    def _look(self, node: Node, own: list[Site], mutable: bool) -> Instead:
        """Run a node, and keep what it reads or gives at the sites of some groups."""

        def keep(tensor: Tensor, site: Site) -> None:
            maps = site.family.map(tensor.detach())
            # an operation in place may write over what is only seen
            self.seen.add_activation(site.group, maps.clone() if mutable else maps)

        def run(*args: Any, **kwargs: Any) -> Any:
            for site in own:
                if site.arg is not None:
                    keep(args[site.arg], site)
            result = node.op(*args, **kwargs)
            for site in own:
                if site.arg is None:
                    keep(result[site.output] if node.multiple else result, site)
            return result

        return run

    # ------------------------------------------------------------------ gates
    def _intercepts(self, shape: _Shape) -> dict[int, Intercept]:
        out: dict[int, Intercept] = {}
        if self._first or self._second:
            gate = self._put_gates if self._second else self._hook
            for read, own in shape.reads:
                out[read.position] = _at(read, own, gate, out.get(read.position))
        return out

    def _put_gates(self, x: Tensor, own: list[Family]) -> Tensor:
        """The operand times gates of one, each a leaf of the graph."""
        gates = []
        for family in own:
            if family.batch is None and self.seen.examples > 1:
                raise _mixed(family.group)
            gates.append((family, x.new_ones(self.seen.examples, family.size).requires_grad_()))
        self.seen.gates += gates
        return gated(x, gates)

    def _hook(self, x: Tensor, own: list[Family]) -> Tensor:
        """The operand under another name, whose gradient is that of this reader alone."""
        value = x.detach()

        def collect(gradient: Tensor) -> None:
            product = gradient * value
            rows = {layout: sums(product, layout) for layout in {f.layout for f in own}}
            for family in own:
                self.seen.add_gradient(family, family.collect(rows[family.layout]))

        if x.requires_grad:
            x = x.view_as(x)
        else:
            x = value.view_as(value).requires_grad_()
            x.register_post_accumulate_grad_hook(_forget_gradient)
            self.seen.leaves.append(x)
        x.register_hook(collect)
        return x


def _at(
    read: Read,
    own: list[Family],
    gate: Callable[[Tensor, list[Family]], Tensor],
    before: Intercept | None,
) -> Intercept:
    def intercept(args: list[Any]) -> list[Any]:
        args = before(args) if before is not None else args
        args[read.arg] = gate(args[read.arg], own)
        return args

    return intercept


def _forget_gradient(tensor: Tensor) -> None:
    tensor.grad = None
