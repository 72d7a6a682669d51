"""Which units are dead, and which of the dead ones can go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..groups import Graph, Group
from ..trace.labels import Bools, find
from .fold import Folder, Reasons, place
from .influence import Influence

NO_INPUTS, NO_READERS = "without inputs", "without readers"
LAST = "an axis keeps at least one unit"
BALANCE = "equally many units must go from each block of its group, and never all"


class Found(NamedTuple):
    """What goes and what stays, each as group -> unit -> why; and what biases take."""

    removed: dict[str, dict[int, str]]
    kept: dict[str, dict[int, str]]
    shifts: dict[str, Tensor]


class Search:
    """Which units are dead, and which of them can go together."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]):
        self.graph = graph
        self.count = len(graph.classes)
        # units of which every writing, or every reading, weight is zero
        self.silent: Bools = self._untouched(tensors, "writes") | self._untouched(tensors, "reads")
        self.silent &= graph.group_of >= 0

    def nothing(self, why: str) -> Found:
        """Every dead unit stays, for one reason."""
        dead = np.flatnonzero(self.silent).tolist()
        return self._told(np.zeros(self.count, dtype=bool), {}, dict.fromkeys(dead, why), {})

    def result(self, influence: Influence) -> Found:
        """What goes and what stays, as large as the constants, the balance and the axes allow."""
        graph, folder = self.graph, Folder(self.graph, influence)
        heard, loud, why_heard = self._heard(influence)
        stuck = {unit: why_heard[unit] for unit in np.flatnonzero(self.silent & heard).tolist()}
        free = ~heard & (graph.group_of >= 0)
        for group in graph.groups:
            if not group.exact:
                dead = group.units[(free | self.silent)[group.units]]
                stuck |= dict.fromkeys(dead.tolist(), group.why_inexact)
                free[group.units] = False
        while True:
            gone, held_back = self._possible(free)
            shifts, unfit = folder.fold(gone)
            if not unfit:
                break
            stuck |= unfit
            free[list(unfit)] = False
        why = {u: NO_READERS if loud[u] else NO_INPUTS for u in np.flatnonzero(gone).tolist()}
        return self._told(gone, why, held_back | stuck, shifts)

    def _told(self, gone: Bools, why: Reasons, stays: Reasons, shifts: dict[str, Tensor]) -> Found:
        going = {unit: why[unit] for unit in np.flatnonzero(gone).tolist()}
        return Found(self._by_group(going), self._by_group(stays), shifts)

    def _by_group(self, units: Reasons) -> dict[str, dict[int, str]]:
        out: dict[str, dict[int, str]] = {}
        for unit in sorted(units):
            group = self.graph.groups[self.graph.group_of[unit]]
            index = int(self.graph.index_of[unit])
            out.setdefault(group.name, {})[index] = units[unit]
        return out

    def _untouched(self, tensors: Mapping[str, Tensor], role: str) -> Bools:
        """The units whose slices of every weight in this role are zero, (units,)."""
        graph = self.graph
        seen, used = (np.zeros(self.count, dtype=bool) for _ in range(2))
        for name, dim, axis in graph.slots:
            if graph.analysis.roles.get((name, dim)) != role:
                continue
            at, units = graph.axis_incidence(axis)
            blocked = graph.analysis.blocked.get(name)
            blocks = blocked.blocks if blocked is not None and dim == 1 else 1
            lines = (tensors[name].detach() != 0).unflatten(0, (blocks, -1)).unsqueeze(-1)
            lines = lines.movedim(dim + 1, 1).flatten(2).any(2).flatten()
            seen[units] = True
            used[units[lines.cpu().numpy()[at]]] = True
        return seen & ~used

    def _heard(self, influence: Influence) -> tuple[Bools, Bools, Reasons]:
        """The units whose reads carry what varies to an output; those that vary; where."""
        graph = self.graph
        heard, loud = (np.zeros(self.count, dtype=bool) for _ in range(2))
        where: Reasons = {}
        for read in graph.analysis.reads:
            at, units = graph.axis_incidence(read.axis)
            varying = influence.varying.get(read.value)
            if varying is None or not len(units):
                continue
            if read.position in influence.operands and influence.both_vary(read.position):
                varying = varying | (influence.operands[read.position][read.arg] != 0)
            carried = varying & influence.is_needed(read.value, varying)
            marks = (
                lines.movedim(read.dim, 0).flatten(1).any(1).cpu().numpy()
                for lines in (varying, carried)
            )
            varies, carries = (units[lines[at]] for lines in marks)
            loud[varies] = True
            heard[carries] = True
            node = graph.program.nodes[read.position]
            why = f"what it emits is not constant where {place(node)} reads it"
            for unit in carries.tolist():
                where.setdefault(unit, why)
        return heard, loud, where

    def _possible(self, free: Bools) -> tuple[Bools, Reasons]:
        """The most of these units that can go together, and why the others are held back."""
        gone = free.copy()
        held_back: Reasons = {}
        while True:
            before = gone.copy()
            for group in self.graph.groups:
                held_back |= self._evened(group, gone)
            held_back |= self._unemptied(gone)
            if (gone == before).all():
                return gone, held_back

    def _evened(self, group: Group, gone: Bools) -> Reasons:
        """Hold units back until each block of a group loses equally many, and none all."""
        blocks = [group.units[block] for block in group.blocks()]
        fewest = min(int(gone[block].sum()) for block in blocks)
        limit = group.allowed(fewest)
        back: Reasons = {}
        for block in blocks:
            extra = block[gone[block]][limit:]
            gone[extra] = False
            why = LAST if len(blocks) == 1 else BALANCE
            back |= dict.fromkeys(extra.tolist(), why)
        return back

    def _unemptied(self, gone: Bools) -> Reasons:
        """Hold one unit back on every axis that would lose all its indices."""
        back: Reasons = {}
        for vector in self.graph.analysis.labels.vectors:
            at, units = self.graph.incidence(find(vector))
            taken = np.zeros(vector.size, dtype=bool)
            taken[at[gone[units]]] = True
            if taken.all() and len(units):
                kept = int(units[gone[units]][0])
                gone[kept] = False
                back[kept] = LAST
        return back
