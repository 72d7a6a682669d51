"""Which groups a layer's configuration lets go, alone or two together.

A layer that is made of others may have one number for several axes: `head_dim` of a grouped query
attention is that of the queries and of the values. Groups that it can only lose together are
joined, with a balance that takes equally many from both.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np

from ..errors import MendError, PlanError
from ..groups import Graph, Group
from .layers import Layer, layers_of, variables_of, weights_of
from .rebuild import Shapes, buildable


def settle(model: Layer, graph: Graph) -> None:
    """Join the groups that can only go together, and give up those that cannot go at all."""
    trial = _Trial(model, graph)
    failed = {group.name: why for group in graph if (why := trial.refusal([group]))}
    for one, other in combinations(failed, 2):
        pair = [graph[name] for name in (one, other) if name in failed]
        if len(pair) == 2 and trial.share(*pair) and not trial.refusal(pair):
            graph.join({name: [np.arange(graph[name].size)] for name in (one, other)})
            del failed[one], failed[other]
    graph.give_up(failed)


class _Trial:
    """Cuts one unit of each block of a group, and sees whether its layers can be built so."""

    def __init__(self, model: Layer, graph: Graph):
        self.graph = graph
        self.known: dict[str, str] = {}
        self.variables = variables_of(model)
        own = {id(v): layer for layer in layers_of(model).values() for v in weights_of(layer)}
        self.layer = {name: own[id(v)] for name, v in self.variables.items()}

    def share(self, one: Group, other: Group) -> bool:
        """Whether two groups meet in a layer, and have nothing else to balance."""
        held = [{id(self.layer[axis.tensor]) for axis in group.axes} for group in (one, other)]
        return bool(held[0] & held[1]) and one.balance is None and other.balance is None

    def refusal(self, groups: Iterable[Group]) -> str:
        """Why these groups cannot be cut together; empty if they can."""
        units = {group.name: [int(block[0]) for block in group.blocks()] for group in groups}
        if any(self.graph[name].multiple > 1 for name in units):
            return ""
        try:
            plan = self.graph.plan(units)
            shapes = {id(self.variables[n]): s.new_shape for n, s in plan.tensors.items()}
        except (PlanError, MendError) as error:
            return str(error)
        touched = {id(self.layer[name]): self.layer[name] for name in plan.tensors}
        return next(filter(None, (self._refused(own, shapes) for own in touched.values())), "")

    def _refused(self, layer: Layer, shapes: Shapes) -> str:
        """Why a layer cannot be built so; those that differ in name alone are tried once."""
        wanted = [shapes.get(id(v), tuple(v.shape)) for v in weights_of(layer)]
        config = {key: value for key, value in layer.get_config().items() if key != "name"}
        key = repr((type(layer), config, layer.get_build_config(), wanted))
        if key not in self.known:
            try:
                buildable(layer, shapes)
                self.known[key] = ""
            except MendError as error:
                self.known[key] = str(error)
        return self.known[key]
