"""Make a plan of chosen units, or refuse them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from .errors import MendError, PlanError
from .plan import Plan
from .slices import Slices
from .surgery.configure import configure
from .surgery.describe import Axes
from .surgery.mend import Mended, mend
from .trace import static
from .trace.labels import Axis

if TYPE_CHECKING:
    from .groups import Graph, Group, Selection


def make_plan(graph: Graph, units: Mapping[str, Iterable[int]]) -> Plan:
    """See `Graph.plan`."""
    if not isinstance(units, Mapping):
        raise PlanError(f"units must be a dict of group -> indices, not {type(units).__name__}")
    chosen: dict[str, list[int]] = {}
    for name, indices in units.items():
        if not isinstance(name, str):
            raise PlanError(f"a group is named by a string, not {name!r}")
        if not isinstance(indices, Iterable):
            raise PlanError(f"the units of group {name!r} must be a list, not {indices!r}")
        group = graph[name]
        chosen[group.name] = [*chosen.get(group.name, []), *_as_indices(group, indices)]
    chosen = {name: sorted(indices) for name, indices in chosen.items() if indices}
    for name, indices in chosen.items():
        _check_units(graph[name], indices)
    selection = graph.select(chosen)
    _check_whole(graph, chosen, selection)
    _check_axes(graph, selection)
    slices = slices_of(graph, selection)
    shapes = {(name, dim): own.axis(dim) for name, own in slices.items() for dim in own.removed}
    sizes = {name: graph[name].size for name in chosen}
    exact = all(graph[name].exact for name in chosen)
    try:
        mended = _mended(graph, selection, chosen, shapes)
    except MendError as error:
        if not graph.replay:
            raise MendError(static.unmended(graph.program, str(error))) from error
        _check_replay(graph, selection, slices)
        return Plan(chosen, sizes, slices, exact=exact, replay=True)
    for scale in mended.scales:
        whole = Slices(graph.program.parameters[scale.tensor], {})
        slices.setdefault(scale.tensor, whole)
    return Plan(
        chosen,
        sizes,
        slices,
        {str(attribute): pair for attribute, pair in mended.attributes.items()},
        exact,
        tuple(mended.scales),
        tuple(mended.restated),
        tuple(mended.edits),
    )


def _mended(graph: Graph, selection: Selection, names: Iterable[str], axes: Axes) -> Mended:
    """What else changes in the model; MendError where the trace found that nothing will do."""
    for name in names:
        if why := graph[name].replayed:
            raise MendError(why)
    return (configure if graph.rebuilt else mend)(graph.analysis, selection, axes)


def _check_replay(graph: Graph, selection: Selection, slices: Mapping[str, Slices]) -> None:
    """Refuse a cut that the recorded program cannot serve either."""
    program = graph.program
    shapes = {
        name: slices[name].new_shape if name in slices else program.values[ident].shape
        for name, ident in program.tensors.items()
    }
    static.check(graph.analysis, selection, static.shrunk(graph.analysis, selection), shapes)


def _as_indices(group: Group, indices: Iterable[int]) -> list[int]:
    if isinstance(indices, (torch.Tensor, np.ndarray)):
        indices = indices.tolist()
    try:
        out = list(indices)
        kinds = set(map(type, out))
        if bool in kinds:
            raise TypeError("a mask is given; its indices are mask.nonzero()")
        if kinds - {int}:
            out = [operator.index(index) for index in out]
    except TypeError as error:
        raise PlanError(f"a unit of group {group.name!r} is not an integer: {error}") from None
    for number in out and (min(out), max(out)):
        if not 0 <= number < group.size:
            raise PlanError(
                f"unit {number} of group {group.name!r} is out of range: "
                f"it has {group.size} units, 0 to {group.size - 1}"
            )
    return out


def _check_units(group: Group, indices: list[int]) -> None:
    twice = sorted({i for i in indices if indices.count(i) > 1}) if _repeats(indices) else []
    if twice:
        raise PlanError(f"units {twice} of group {group.name!r} are named twice")
    if (left := group.size - len(indices)) % group.multiple:
        raise PlanError(
            f"{left} units of group {group.name!r} would stay, and a kernel that reads them takes "
            f"multiples of {group.multiple} only"
        )
    if group.balance is not None:
        _, block = np.unique(group.balance, return_inverse=True)
        counts = np.bincount(block[indices], minlength=block.max() + 1)
        low, high = counts.min(), counts.max()
        if low < high:
            raise PlanError(
                f"group {group.name!r} is balanced: its {len(counts)} blocks must lose equally "
                f"many units, but lose between {low} and {high}; see graph[{group.name!r}].balance"
            )


def _repeats(indices: list[int]) -> bool:
    return len(set(indices)) < len(indices)


def _check_whole(graph: Graph, chosen: Mapping[str, list[int]], selection: Selection) -> None:
    """A group may go whole only where a branch goes with it, and its readers keep something.

    PyTorch layers are cut in place, and the code that calls them stays.
    """
    axes = {(name, dim): axis for name, dim, axis in graph.slots}
    for name, indices in chosen.items():
        group = graph[name]
        if len(indices) == group.size and (
            not graph.rebuilt
            or any(selection.removed(axes[m.tensor, m.dim]).all() for m in group.reads)
        ):
            raise PlanError(
                f"all {group.size} units of group {name!r} would go, and nothing would pass; "
                "leave at least one"
            )


def _check_axes(graph: Graph, selection: Selection) -> None:
    """No axis anywhere may be emptied, and balanced axes must lose equally from each block."""
    for vector in () if graph.rebuilt else graph.analysis.labels.vectors:
        if vector.size and vector.labels is not None and selection.removed((vector,)).all():
            raise PlanError("the plan would empty an axis somewhere in the network; leave a unit")
    for axis, least, reason in graph.analysis.labels.least:
        if (left := selection.size(axis)) < least:
            raise PlanError(f"the plan would leave {left} units where {reason} needs {least}")
    axes = graph.analysis.axes
    for pair in graph.program.apart:
        sizes = {selection.size(axes[value][-1]) for value in pair if value in axes}
        if len(sizes) == 1:
            raise PlanError(
                f"the plan would leave {sizes.pop()} units of a state and of what it is projected "
                "to, and PyTorch would take the projection for none; leave fewer of these"
            )
    for labels, reason in graph.analysis.labels.balanced:
        lost = selection.gone(labels).sum(axis=1)
        if (lost != lost[0]).any():
            raise PlanError(
                f"the plan is unbalanced: {reason} lose between {lost.min()} and {lost.max()}"
            )


def slices_of(graph: Graph, selection: Selection) -> dict[str, Slices]:
    """What every tensor loses with these units."""
    values, tensors = graph.program.values, graph.program.tensors
    lists: dict[tuple[int, Axis], list[list[int]]] = {}  # most axes are shared by several tensors
    removed: dict[str, dict[int, list[list[int]]]] = {}
    for name, dim, axis in graph.slots:
        size = values[tensors[name]].shape[dim]
        gone = lists.get((size, axis))
        if gone is None:
            lines = selection.removed(axis).reshape(-1, max(size, 1))
            gone = [np.flatnonzero(line).tolist() for line in lines] if lines.any() else []
            lists[size, axis] = gone
        if gone:
            removed.setdefault(name, {})[dim] = gone
    return {name: Slices(values[tensors[name]].shape, dims) for name, dims in removed.items()}


def random_plan(graph: Graph, fraction: float, seed: int, *, exact_only: bool) -> Plan:
    """See `Graph.random_plan`."""
    if not 0 <= fraction < 1:
        raise PlanError(f"fraction must be at least 0 and below 1, not {fraction}")
    rng = np.random.default_rng(seed)
    for attempt in range(10):
        units: dict[str, list[int]] = {}
        for group in graph.groups:
            if exact_only and not group.exact:
                continue
            blocks = group.blocks()
            count = group.allowed(int(fraction * group.size / len(blocks)))
            chosen = [i for b in blocks for i in rng.choice(b, count, replace=False).tolist()]
            units[group.name] = sorted(chosen)
        try:
            return make_plan(graph, units)
        except (PlanError, MendError):
            if attempt == 9:
                raise
    raise PlanError("no valid random plan was found")
