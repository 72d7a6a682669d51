"""Groups whose cut would send the code another way than the one that was traced.

Code such as `if x.shape[1] == 16` decides by a size. A cut that turns such a comparison is refused
when it is planned; a group of which a few units already turn one is not offered.
"""

from __future__ import annotations

from .errors import MendError, PlanError
from .groups import Graph
from .selection import Selection
from .surgery.known import Known, turned
from .trace.labels import leaves
from .trace.tagged import Comparison, Size, leaves_of
from .unseen import few


def turning(graph: Graph) -> dict[str, str]:
    """The groups that turn a comparison, and why they cannot go."""
    own: dict[str, list[Comparison]] = {}
    for comparison in dict.fromkeys(graph.program.compared):
        for name in _groups(graph, comparison):
            own.setdefault(name, []).append(comparison)
    out: dict[str, str] = {}
    for group in graph:
        units = few(group)
        selection = Selection(graph, group.units[units])
        if group.replayed or not turned(Known(graph.analysis, selection), own.get(group.name, ())):
            continue
        try:
            graph.plan({group.name: units})  # attributes change with it
        except MendError as error:
            out[group.name] = str(error)
        except PlanError:
            pass  # it is these units that cannot go
    return out


def _groups(graph: Graph, comparison: Comparison) -> set[str]:
    """The groups along the axes whose sizes are compared."""
    axes = graph.analysis.axes
    sizes = (
        leaf
        for side in (comparison.left, comparison.right)
        for leaf in leaves_of(side)
        if isinstance(leaf, Size) and leaf.value in axes
    )
    parts = {part for size in sizes for part in leaves(axes[size.value][size.dim])}
    return {graph.groups[n].name for part in parts for n in graph.groups_of(part)}
