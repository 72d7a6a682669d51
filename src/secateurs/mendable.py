"""Which groups can be cut by mending the model, alone or together with others.

One integer may feed several sizes: the head dimension of a transformer is that of q·k and of the
values, in every layer that shares an attribute. Groups that cannot be cut by themselves for such a
reason are joined, with a balance that takes from each as much as the integer asks for.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from .errors import MendError
from .groups import Graph, Group, Selection
from .surgery.fold import Computed, Folder, computed_factors
from .surgery.given import sized_nodes
from .surgery.mend import demands, rescale, solve
from .trace.labels import Ints, leaves
from .trace.program import Node
from .trace.static import unmended
from .trace.tagged import Attribute, Size, Source, TaggedInt, leaves_of

Rates: TypeAlias = dict[str, dict[Attribute, Fraction]]  # how much a unit of a group takes off


def settle(graph: Graph) -> None:
    """Join the groups that can only be cut together; give up, or mark, what cannot be mended."""
    trial = _Trial(graph)
    failed = trial.failures(graph.groups)
    joins = [blocks for team in _teams(trial.rates(failed)) if (blocks := _blocks(graph, team))]
    if joins:
        for parts in joins:
            graph.join(parts)
        again = trial.failures(graph[next(iter(parts))] for parts in joins)
        alone = {name for parts in joins for name in parts}
        failed = {name: why for name, why in failed.items() if name not in alone} | again
    give_up(graph, failed)


def give_up(graph: Graph, reasons: Mapping[str, str]) -> None:
    """Freeze groups that cannot be mended; or mark them, where they are served by replay."""
    if graph.replay:
        for name, why in reasons.items():
            graph[name].replayed = why
    else:
        graph.give_up({name: unmended(graph.program, why) for name, why in reasons.items()})


class _Trial:
    """Cuts a few units of a group, and sees whether the model can be mended."""

    def __init__(self, graph: Graph):
        self.graph, self.analysis = graph, graph.analysis
        self.sized = sized_nodes(graph.analysis)
        self.computed = computed_factors(graph.analysis)
        self.folder = Folder(graph.analysis)
        self.shared: dict[int, list[Hashable]] = {}
        self.sharing: dict[Hashable, list[Node]] = {}
        self.values: dict[int, set[int]] = {}
        for node in self.sized:
            found = [leaf for source in _stated(node) for leaf in leaves_of(source)]
            sizes = {leaf.value for leaf in found if isinstance(leaf, Size)}
            outputs = (out for out in node.outputs if out is not None)
            self.values[id(node)] = {*sizes, *node.inputs, *outputs}
            self.shared[id(node)] = [leaf for leaf in found if isinstance(leaf, Attribute)]
            self.shared[id(node)] += _place(node)
            for what in self.shared[id(node)]:
                self.sharing.setdefault(what, []).append(node)

    def failures(self, groups: Iterable[Group]) -> dict[str, str]:
        """The groups that cannot be cut by themselves, and why."""
        groups = list(groups)
        stating, computing = self._stating(), self._computing()
        out = {}
        for group in groups:
            nodes = stating.get(group.name, [])
            computed = computing[group.name]
            for units in _trials(group) if nodes or computed else ():
                try:
                    selection = Selection(self.graph, units)
                    solved = solve(self.analysis, selection, nodes).attributes
                    rescale(self.analysis, selection, solved, computed, self.folder)
                except MendError as error:
                    out[group.name] = str(error)
        return out

    def rates(self, names: Iterable[str]) -> Rates:
        """By how much each attribute would shrink, per unit that goes from each of these groups."""
        before, stating = self.analysis.program.attributes, self._stating()
        out: Rates = {}
        for name in names:
            units = next(_trials(self.graph[name]))
            wanted = demands(self.analysis, Selection(self.graph, units), stating.get(name, []))
            out[name] = {a: Fraction(before[a] - new, len(units)) for a, new in wanted.items()}
        return out

    def _stating(self) -> dict[str, list[Node]]:
        """Group -> the nodes that must agree with it, over attributes and code that they share."""
        own: dict[str, list[Node]] = {}
        for node in self.sized:
            for name in self._touched(self.values[id(node)]):
                own.setdefault(name, []).append(node)
        return {
            name: list(
                {
                    id(node): node for first in nodes for node in (first, *self._sharers(first))
                }.values()
            )
            for name, nodes in own.items()
        }

    def _sharers(self, node: Node) -> Iterator[Node]:
        for what in self.shared[id(node)]:
            yield from self.sharing[what]

    def _touched(self, values: Iterable[int]) -> set[str]:
        """The groups that have units along an axis of these values."""
        axes = self.analysis.axes
        parts = {leaf for v in values if v in axes for axis in axes[v] for leaf in leaves(axis)}
        return {self.graph.groups[n].name for leaf in parts for n in self.graph.groups_of(leaf)}

    def _computing(self) -> dict[str, list[Computed]]:
        """Group -> the computed numbers that may change with it."""
        out: dict[str, list[Computed]] = {group.name: [] for group in self.graph}
        for computed in self.computed:
            found = list(leaves_of(computed.source))
            sizes = [leaf.value for leaf in found if isinstance(leaf, Size)]
            for name in self._touched(sizes) if len(sizes) == len(found) else out:
                out[name].append(computed)
        return out


def _stated(node: Node) -> list[Source]:
    call = node.call
    return [i.source for i in call.integers if isinstance(i, TaggedInt)] if call else []


def _place(node: Node) -> list[Hashable]:
    """The place in the code of a call that is given numbers of unknown origin."""
    call = node.call
    if call is None or all(isinstance(size, TaggedInt) for size in call.sizes):
        return []
    return [(call.owner, call.code, call.at)]


def _trials(group: Group) -> Iterator[Ints]:
    """A few units at the end of each block, and every second one: no choice may be special."""
    blocks = group.blocks()
    count = max(1, min(len(block) for block in blocks) // 4)
    for chosen in (slice(-count, None), slice(0, 2 * count, 2)):
        yield np.concatenate([group.units[block[chosen]] for block in blocks])


def _teams(rates: Rates) -> Iterator[dict[str, Fraction]]:
    """Groups that share attributes -> how many units of each shrink these equally."""
    holding: dict[Attribute, list[str]] = {}
    for name, own in rates.items():
        for attribute in own:
            holding.setdefault(attribute, []).append(name)
    left = set(rates)
    for first in rates:
        if first not in left:
            continue
        left.discard(first)
        team, todo = {first: Fraction(1)}, [first]
        while todo:
            name = todo.pop()
            for attribute, rate in rates[name].items():
                for other in holding[attribute]:
                    if other in left:
                        team[other] = team[name] * rate / rates[other][attribute]
                        left.discard(other)
                        todo.append(other)
        if len(team) > 1:
            yield team


def _blocks(graph: Graph, team: Mapping[str, Fraction]) -> dict[str, list[Ints]]:
    """Group -> blocks of its units: one of every block may go at a time; none if none fit."""
    each = {name: share / len(graph[name].blocks()) for name, share in team.items()}
    scale = math.lcm(*(share.denominator for share in each.values()))
    common = math.gcd(*(int(share * scale) for share in each.values()))
    out: dict[str, list[Ints]] = {}
    for name, share in each.items():
        pieces = int(share * scale) // common
        blocks = graph[name].blocks()
        if any(len(block) % pieces or len(block) == pieces for block in blocks):
            return {}
        out[name] = [piece for block in blocks for piece in np.split(block, pieces)]
    return out
