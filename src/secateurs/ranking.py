"""Rank units over the whole network, and choose which go next."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from .budget import met
from .cost import Cost
from .errors import ConfigError, nearest
from .groups import Graph, Group, Selection
from .scores import Array, Scores
from .trace.program import owner


def ranks(values: Array) -> Array:
    """The place of each value among all, from 1/n for the smallest to 1; ties share the mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place] / len(values)


def _over(scale: Array) -> float:
    """A divisor; 1 where it would be zero, since all scores are zero then."""
    return float(scale) or 1.0


NORMALIZATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda v: v,
    "l1": lambda v: v / _over(np.abs(v).sum()),
    "l2": lambda v: v / _over(np.sqrt(np.square(v).sum())),
    "max": lambda v: v / _over(np.abs(v).max()),
    "mean": lambda v: v / _over(np.abs(v).mean()),
    "rank": ranks,
}


@dataclass(frozen=True)
class Limits:
    """What may be removed.

    Attributes:
        only, ignore: patterns of module paths ('layer1.*'); a group is matched by its writers.
        min_keep: units that stay in every group.
        max_remove: the largest fraction of a group's original units that may go.
        round_to: the size of every cut group stays a multiple of this.
        exact_only: leave groups alone whose cut changes a statistic.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> [group] = sc.trace(net, torch.zeros(1, 4))
    >>> Limits(ignore=("0",)).allows(group), Limits(only=("*",)).allows(group)
    (False, True)
    """

    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    min_keep: int = 1
    max_remove: float = 0.95
    round_to: int = 1
    exact_only: bool = True

    def allows(self, group: Group) -> bool:
        paths = [group.name, *(owner(m.tensor) for m in group.writes)]
        if self.exact_only and not group.exact:
            return False
        if any(fnmatchcase(path, pattern) for path in paths for pattern in self.ignore):
            return False
        return not self.only or any(fnmatchcase(p, q) for p in paths for q in self.only)

    def check(self, graph: Graph) -> None:
        """Refuse a pattern that matches nothing: it is likely a typing error.

        Raises:
            ConfigError: names the pattern and the nearest group.
        """
        paths = {p for g in graph.groups for p in (g.name, *g.members)}
        paths |= {owner(frozen.tensor) for frozen in graph.frozen}
        for pattern in (*self.only, *self.ignore):
            if not any(fnmatchcase(path, pattern) for path in paths):
                hint = nearest(pattern, sorted(paths))
                raise ConfigError(f"the pattern {pattern!r} matches no module{hint}")

    def floor(self, group: Group, original: int) -> int:
        """How many units of each balance block must stay."""
        blocks = group.blocks()
        stay = max(self.min_keep, math.ceil(original * (1 - self.max_remove) - 1e-9), 1)
        return max(1, math.ceil(stay / len(blocks)))


@dataclass(frozen=True)
class Move:
    """Units of one group that go together: one of each block, and as many as rounding needs."""

    score: float
    group: str
    units: tuple[int, ...]


def importance(
    scores: Scores,
    cost: Cost,
    *,
    normalize: str = "l2",
    flops_weight: float = 1e-3,
    cost_power: float = 0.0,
    measure: str = "macs",
) -> dict[str, Array]:
    """Scores that can be compared over layers: Θ/‖Θ‖ / c^γ − λ·Θ_flops.

    Args:
        scores: raw scores per group.
        cost: of the same network.
        normalize: how each group's scores are scaled: 'none'; 'l1', 'l2', 'max' or 'mean' divide
            by `Σ|Θ|`, `√ΣΘ²`, `max |Θ|` or the mean of `|Θ|`, which keeps the sign; 'rank' puts
            each score's place among those of its group, over their number.
        flops_weight: λ. Θ_flops is what deleting one unit of the group saves in MACs, divided by
            the largest such saving of any group.
        cost_power: γ. c is what deleting one unit saves of `measure`, divided likewise. At ½, with
            'l2', the ranking is that of (Θ²/ΣΘ²) / c: the share of the group's energy that is lost
            for each MAC that is saved. A score below zero is multiplied instead: of two units that
            do as much harm, the dearer goes first.
        measure: 'macs', 'params' or 'units': what the budget is in.

    Returns:
        group -> (units,) float64, to be compared over all groups; higher = keep. Groups that the
        criterion left unscored are left out.

    Raises:
        ConfigError: no such normalisation.

    Source: Molchanov et al. (2016), section 2.2, 'Normalization' and 'FLOPs regularized pruning'
    (there Θ_flops is in absolute FLOPs; here it is relative, so that λ suits any network). The
    division by the cost is the greedy solution of the knapsack problem, Dantzig (1957).
    """
    if normalize not in NORMALIZATIONS:
        hint = nearest(normalize, NORMALIZATIONS)
        raise ConfigError(f"no normalisation is called {normalize!r}{hint}")
    flops, price = _saved(cost, "macs"), _saved(cost, measure)
    out = {}
    for name, values in scores.values.items():
        scaled = NORMALIZATIONS[normalize](values)
        per_cost = scaled / price[name] ** np.copysign(cost_power, scaled)
        out[name] = per_cost - flops_weight * flops[name]
    return out


def _saved(cost: Cost, measure: str) -> dict[str, float]:
    """What deleting one unit of each group saves, relative to the largest saving of any group."""
    saved = cost.saved_per_unit(measure)
    largest = max(saved.values(), default=0.0) or 1.0
    return {name: max(value / largest, 1e-9) for name, value in saved.items()}


def moves(
    graph: Graph, ranked: Mapping[str, Array], limits: Limits, originals: Mapping[str, int]
) -> list[Move]:
    """Everything that may go, least important first; a group that is not ranked stays whole."""
    out: list[Move] = []
    for group in graph.groups:
        if group.name in ranked and limits.allows(group):
            out += _moves_of(group, ranked[group.name], limits, originals.get(group.name, 0))
    return sorted(out, key=lambda move: move.score)


def _moves_of(group: Group, values: Array, limits: Limits, original: int) -> list[Move]:
    blocks = [block[np.argsort(values[block], kind="stable")] for block in group.blocks()]
    spare = min(map(len, blocks)) - limits.floor(group, original or group.size)
    out: list[Move] = []
    waiting: list[int] = []
    left, latest = group.size, -math.inf
    for k in range(spare):
        waiting += [int(block[k]) for block in blocks]
        left -= len(blocks)
        if left % math.lcm(limits.round_to, group.multiple) == 0:
            # a group's moves must stay in order, so that its sizes pass through the multiples
            latest = max(latest, float(values[waiting].mean()))
            out.append(Move(latest, group.name, tuple(waiting)))
            waiting = []
    return out


def choose(
    graph: Graph,
    cost: Cost,
    candidates: list[Move],
    target: Mapping[str, int],
    at_most: int,
) -> dict[str, list[int]]:
    """The least important moves: about `at_most` units, fewer if the budget is met before."""
    counts = np.cumsum([len(move.units) for move in candidates])
    low, high = 1, min(len(candidates), int(np.searchsorted(counts, at_most)) + 1)
    if met(target, cost, _selection(graph, candidates[:high])):
        while low < high:
            middle = (low + high) // 2
            if met(target, cost, _selection(graph, candidates[:middle])):
                high = middle
            else:
                low = middle + 1
    return _by_group(candidates[:high])


def smallest(graph: Graph, limits: Limits, scored: Container[str] | None = None) -> Selection:
    """Everything that may go, gone; of the groups that have scores, if these are named."""
    groups = [g for g in graph.groups if scored is None or g.name in scored]
    flat = {group.name: np.zeros(group.size) for group in groups}
    sizes = {group.name: group.size for group in graph.groups}
    return _selection(graph, moves(graph, flat, limits, sizes))


def _by_group(chosen: list[Move]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for move in chosen:
        out.setdefault(move.group, []).extend(move.units)
    return out


def _selection(graph: Graph, chosen: list[Move]) -> Selection:
    units = {group.name: group.units for group in graph.groups}
    picked = [units[name][indices] for name, indices in _by_group(chosen).items()]
    return Selection(graph, np.concatenate(picked) if picked else np.zeros(0, dtype=np.int64))
