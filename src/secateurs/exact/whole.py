"""Where rows of many units cannot share a batch: one unit after the other, on the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..blocks import Block, skip
from ..errors import PlanError
from ..gates import gate, statistics, trace
from ..groups import Graph, Group, Selection
from ..surgery.apply import cut
from ..trace.model import model_tensors
from ..trace.program import Instead, Intercept
from .cone import Cone
from .probe import replays
from .recording import Recording, ordered_inputs


def fixed_recording(model: nn.Module, known: Recording, call: Any) -> Recording:
    """A recording on these very inputs: the known one if it is that."""
    if known.layouts is None:
        return known
    return Recording(model, trace(model, call), known.size, why="as traced")


def _gates(
    graph: Graph, group: Group, unit: int
) -> tuple[dict[int, Intercept], dict[int, Instead]]:
    """What a replay without one unit changes: its gates, and the statistics over its like."""
    if isinstance(group, Block):
        return skip(graph, group), {}
    selection = Selection(graph, graph[group.name].units[[unit]])
    return gate(graph, selection), statistics(graph, selection)


def gated_outputs(
    recording: Recording, cone: Cone, values: Mapping[int, Tensor], n: int, unit: int
) -> Any:
    """What the model returns without one unit, from the values of the uncut network.

    Statistics over the units are retaken over those that stay.
    """
    gates, retaken = _gates(recording.graph, cone.group, unit)
    env = dict(values)
    for position in cone.nodes:
        env.update(recording.run(position, env, n, gates.get(position), retaken.get(position)))
        for value in cone.dying.get(position, ()):
            if value in cone.changed:
                del env[value]
    return recording.outputs(env)


class Forwards:
    """Stand-ins for the model that run whole forwards without one unit.

    They replay a recording with the unit gated, or, where the model looks at values, so that a
    recording of one run says nothing of another, are a copy of the model that is really cut.
    """

    def __init__(self, model: nn.Module, graph: Graph):
        self._model, self._graph = model, graph
        self._tensors = {name: t.detach() for name, t in model_tensors(model).items()}
        self._recorded: dict[Any, tuple[Graph, bool]] = {}

    def without(self, group: Group, unit: int) -> Any:
        """A stand-in, called like the model."""
        return _Without(self, group, unit)

    def run(self, group: Group, unit: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the model gives without a unit.

        Raises:
            PlanError: the model can only be really cut, and this unit cannot go alone, or is a
                block, which no plan cuts.
        """
        call: Any = kwargs if kwargs and not args else args
        graph, faithful = self._recording(call)
        if faithful:
            gates, retaken = _gates(graph, group, unit)
            return graph.program.replay(self._tensors, ordered_inputs(graph, call), gates, retaken)
        if isinstance(group, Block):
            raise PlanError(
                f"the model looks at values, so that no recording tells what it does without block "
                f"{group.name!r}, and no plan cuts a block; measure it on a copy of the model in "
                "which you skip it"
            )
        return cut(self._model, self._graph.plan({group.name: [unit]}))(*args, **kwargs)

    def _recording(self, call: Any) -> tuple[Graph, bool]:
        leaves, spec = pytree.tree_flatten(call)
        told = [(t.shape, t.dtype) if isinstance(t, Tensor) else repr(t) for t in leaves]
        key = (str(spec), *told)
        if key not in self._recorded:
            graph = trace(self._model, call)
            self._recorded[key] = (graph, replays(self._model, graph, call))
        return self._recorded[key]


class _Without:
    """The model without one unit; all else is asked of the model."""

    def __init__(self, forwards: Forwards, group: Group, unit: int):
        self._forwards, self._group, self._unit = forwards, group, unit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._forwards._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self._forwards.run(self._group, self._unit, args, kwargs)
