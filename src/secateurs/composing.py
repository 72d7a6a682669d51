"""One plan after another, as one plan for the original model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from .errors import PlanError
from .selection import lost, uncovered
from .slices import Slices, complement
from .surgery.fold import Scale

if TYPE_CHECKING:
    from .groups import Graph
    from .plan import Plan

Units: TypeAlias = tuple[dict[str, list[int]], dict[str, int]]  # by group: which go, of how many


def compose(first: Plan, second: Plan, graph: Graph | None) -> Plan:
    """See `Plan.then`."""
    if first.replay or second.replay:
        raise PlanError(
            "a plan that is served by replay stands alone: choose the units of both in one plan"
        )
    tensors = dict(first.tensors)
    for path, slices in second.tensors.items():
        before = tensors.get(path)
        if before is not None and before.new_shape != slices.shape:
            raise PlanError(f"the second plan does not fit the result of the first at {path!r}")
        tensors[path] = slices if before is None else before.then(slices)
    groups, sizes = _named(first, second) if graph is None else _found(graph, tensors)
    attributes = dict(first.attributes)
    restated = {(r.module, r.number): r for r in first.restated}
    for attribute, (old, new) in second.attributes.items():
        path, _, item = attribute.rpartition(".")
        own = (path, int(item[7:-1])) if item.startswith("stated[") else None
        if own in restated:
            restated[own] = replace(restated[own], new=new)
            continue
        attributes[attribute] = (attributes.get(attribute, (old, new))[0], new)
    edits = {edit.key: edit for edit in (*first.edits, *second.edits)}
    return replace(
        first,
        groups=groups,
        sizes=sizes,
        tensors=tensors,
        attributes=attributes,
        exact=first.exact and second.exact,
        scales=(*first.scales, *(_before(first, scale) for scale in second.scales)),
        restated=(*restated.values(), *second.restated),
        edits=tuple(edits.values()),
    )


def _named(first: Plan, second: Plan) -> Units:
    """The units of both plans, by the names of their groups."""
    groups = {name: list(indices) for name, indices in first.groups.items()}
    sizes = {**second.sizes, **first.sizes}
    for name, indices in second.groups.items():
        gone = groups.get(name, [])
        kept = complement(gone, sizes[name])
        if len(kept) != second.sizes[name]:
            raise PlanError(
                f"group {name!r} has {len(kept)} units left, not {second.sizes[name]}; "
                "give the graph of the original model, which tells units by their slices"
            )
        groups[name] = sorted([*gone, *kept[indices].tolist()])
    return groups, sizes


def _found(graph: Graph, tensors: Mapping[str, Slices]) -> Units:
    """The units of the original model that go with these slices.

    Raises:
        PlanError: the graph is of another model, or slices go that belong to no unit of it.
    """
    known = graph.program.parameters
    odd = [n for n, own in tensors.items() if known.get(n, own.shape) != own.shape]
    if odd:
        raise PlanError(f"the graph is not of the model that the first plan is for, at {odd[0]!r}")
    groups = lost(graph, tensors)
    more = uncovered(graph, tensors, graph.select(groups))
    if more:
        raise PlanError(
            f"the second plan deletes slices of {more[0]!r} that belong to no unit of the original "
            "model, of which there is then no law to hold; apply the two plans one by one, and "
            "verify each against the model that it was made for"
        )
    return groups, {name: graph[name].size for name in groups}


def _before(first: Plan, scale: Scale) -> Scale:
    """A scale of what the first plan gives, as one of the original tensor."""
    slices = first.tensors.get(scale.tensor)
    if slices is None:
        return scale
    kept = slices.keep(scale.dim)[0][scale.indices].tolist()
    return replace(scale, indices=kept)
