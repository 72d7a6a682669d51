"""Trace, cut and verify Keras models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import PlanError
from ..gates import Proof, no_collection
from ..gates import verify as verify_module
from ..groups import Graph
from ..plan import Plan
from ..surgery.apply import smaller_tensors
from ..trace.analyse import Analysis
from .carry import carry
from .layers import Layer, variables_of
from .module import Module, as_tensor, inputs_for
from .rebuild import Change, Rebuilt
from .recorded import program_of
from .settle import settle


def trace(model: Layer, example_inputs: Any = None) -> Graph:
    """See `secateurs.trace`; the groups name the variables, such as 'conv2d/kernel'."""
    program = program_of(model, inputs_for(model, example_inputs))
    with no_collection():
        graph = Graph(Analysis(program), rebuilt=True)
        settle(model, graph)
    return graph


def apply(model: Layer, plan: Plan, *, inplace: bool = False) -> Layer:
    """See `secateurs.apply`; the result is a new model, and never the same one cut in place."""
    _refuse_inplace(inplace)
    own = plan.find(variables_of(model).get)
    smaller = smaller_tensors(plan, {name: as_tensor(v) for name, v in own.items()})
    attributes: dict[str, dict[str, tuple[int, int]]] = {}
    for name, sizes in plan.attributes.items():
        layer, _, attribute = name.partition(".")
        attributes.setdefault(layer, {})[attribute] = sizes
    change = Change(
        shapes={id(own[name]): tuple(new.shape) for name, new in smaller.items()},
        sizes=frozenset(plan.changed_sizes()),
        attributes=attributes,
    )
    rebuilt = Rebuilt(model, change)
    values = {id(own[name]): new for name, new in smaller.items()}
    slots = {id(own[name]): plan.tensors[name] for name in smaller}
    return carry(model, rebuilt, values, slots)


def verify(
    model: Layer,
    small: Layer,
    plan: Plan,
    example_inputs: Any = None,
    *,
    graph: Graph | None = None,
) -> Proof:
    """See `secateurs.verify`."""
    inputs = inputs_for(model, example_inputs)
    graph = graph or trace(model, inputs)
    return verify_module(Module(model), Module(small), plan, inputs, graph=graph)


def delete_channels(
    model: Layer,
    units: Mapping[str, Iterable[int]],
    example_inputs: Any = None,
    *,
    inplace: bool = False,
) -> Layer:
    """See `secateurs.delete_channels`."""
    _refuse_inplace(inplace)
    graph = trace(model, example_inputs)
    plan = graph.plan(units)
    small = apply(model, plan)
    verify(model, small, plan, example_inputs, graph=graph).demand()
    return small


def _refuse_inplace(inplace: bool) -> None:
    if inplace:
        raise PlanError("a Keras model cannot be cut in place; take the new one that is returned")
