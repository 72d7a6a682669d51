"""Which units are interchangeable: families along one axis, and the constraints on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .members import Group, Member
from .trace import attention
from .trace.analyse import Analysis
from .trace.balance import Cell, split_cells
from .trace.labels import Factor, Ints, find, leaves
from .trace.program import owner
from .units import Units

_ALONE = "no other unit could take its place: it is the only one of its group"


class Grouping:
    """The groups of an analysed network.

    Attributes:
        units: what they are made of.
        groups: the groups, in the order of the axes that write them.
        families: (tensor, dim) -> (units in order of position, slices per unit) of each family.
        group_of, index_of: (units,) the group of each unit, or -1, and its number there.
    """

    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.units = Units(analysis)
        self.groups: list[Group] = []
        self.families: dict[tuple[str, int], list[tuple[Ints, int]]] = {}
        self.group_of: Ints = np.full(len(self.units.classes), -1)
        self.index_of: Ints = np.zeros(len(self.units.classes), dtype=np.int64)
        self._numbers: dict[int, list[int]] = {}  # of the groups along a factor
        self._assign()
        self._mark_inexact()
        self._balance()
        self._find_multiples()
        self._leave_aside()
        self._freeze_groups({n: _ALONE for n, g in enumerate(self.groups) if g.size == 1})
        self._describe()
        self._leave_buffers()

    def _assign(self) -> None:
        """Put every unit in the group of the first axis that writes it (else touches it)."""
        analysis = self.analysis
        self.families = {
            (name, dim): self.units.families(parts) for name, dim, parts in self.units.slots
        }
        ranked = sorted(
            self.families,
            key=lambda s: (
                analysis.roles.get(s) != "writes",
                analysis.order.get(s[0], 1 << 30),
                s[1],
            ),
        )
        self.group_of = np.full(len(self.units.classes), -1)
        self.index_of = np.zeros(len(self.units.classes), dtype=np.int64)
        names: set[str] = set()
        kinds = self._kinds()
        first: dict[int, tuple[str, int]] = {}  # the same families recur on many axes
        for slot in ranked:
            first.setdefault(id(self.families[slot]), slot)
        for slot in first.values():
            for units, count in self.families[slot]:
                units = units[self.group_of[units] < 0]
                if not len(units):
                    continue
                kind = kinds.get(int(units[0]), analysis.kinds.get(slot, "width"))
                name = _name(slot, count, kind, names)
                names.add(name)
                self.group_of[units] = len(self.groups)
                self.index_of[units] = np.arange(len(units))
                self.groups.append(Group(name, kind, len(units), units))

    def _kinds(self) -> dict[int, str]:
        """What units are called for what is done along them: head, kv-head, head-dim, expert."""
        out: dict[int, str] = {}
        experts = ((axis, "expert") for axis in self.analysis.chosen)
        for axis, kind in (*attention.kinds(self.analysis), *experts):
            for part in leaves(axis):
                out.update(dict.fromkeys(self.units.incidence(part)[1].tolist(), kind))
        return out

    def _mark_inexact(self) -> None:
        for axis, reason in self.analysis.labels.inexact:
            for factor in leaves(axis):
                for group in np.unique(self.group_of[self.units.incidence(factor)[1]]).tolist():
                    self.groups[group].exact = False
                    self.groups[group].why_inexact = reason

    def _balance(self) -> None:
        """Turn 'equal counts from each block of this axis' into a block number per unit."""
        cells: list[Cell] = [()]
        cell_of = np.zeros(len(self.group_of), dtype=np.int64)
        merged = np.arange(len(self.groups))
        spoiled: dict[int, str] = {}
        for number, (labels, reason) in enumerate(self.analysis.labels.balanced):
            blocks = labels.shape[0]
            positions, units = self.units.locate(labels.ravel())
            touched, row = np.unique(units, return_inverse=True)
            at = row * blocks + positions // labels.shape[1]
            counts = np.bincount(at, minlength=len(touched) * blocks).reshape(-1, blocks)
            odd = (counts != counts[:, :1]).any(axis=1)
            uneven, counts = touched[odd], counts[odd]
            if not len(uneven):
                continue
            single = (counts > 0).sum(axis=1) == 1
            block, weight = counts.argmax(axis=1), counts.max(axis=1)
            fits = bool(single.all()) and len(np.unique(block)) == blocks
            if not single.all():  # one of each kind takes equally many from every block
                weight = np.ones_like(weight)
                kinds, block = np.unique(counts, axis=0, return_inverse=True)
                block, lost = block.reshape(-1), kinds.sum(axis=0)
                fits = bool((lost == lost[0]).all())
            if not fits:
                why = f"{reason}: no equal count can go from each"
                spoiled |= dict.fromkeys(uneven.tolist(), why)
                continue
            weight //= np.gcd.reduce(weight)
            shape = (len(cells), int(block.max()) + 1, int(weight.max()) + 1)
            codes = np.ravel_multi_index((cell_of[uneven], block, weight), shape)
            found, which = np.unique(codes, return_inverse=True)
            cell_of[uneven] = len(cells) + which  # each goes on to a cell within its own
            within = zip(*(np.unravel_index(found, shape)), strict=True)
            cells += [(*cells[cell], (number, int(b), int(w))) for cell, b, w in within]
            owners = np.unique(merged[self.group_of[uneven]])
            merged[np.isin(merged, owners)] = owners[0]
        self._merge(merged)
        for group in self.groups:
            own = cell_of[group.units]
            if own.any():
                group.balance = split_cells(cells, own)
                if group.balance is None:
                    spoiled[int(group.units[0])] = "its balance constraints overlap only in part"
                elif min(map(len, group.blocks())) == 1:
                    spoiled[int(group.units[0])] = "equal counts must go from blocks of one unit"
        if spoiled:
            given_up = {int(self.group_of[unit]): reason for unit, reason in spoiled.items()}
            self._freeze_groups(given_up)

    def _find_multiples(self) -> None:
        """Turn 'this axis has a multiple of n indices' into multiples of units."""
        for axis, multiple in self.analysis.labels.multiples:
            for units, count in self.units.families(tuple(leaves(axis))):
                step = multiple // math.gcd(multiple, count)
                for number in np.unique(self.group_of[units]).tolist():
                    group = self.groups[number]
                    group.multiple = math.lcm(group.multiple, step)

    def _leave_aside(self) -> None:
        """Units that only what runs aside holds have no importance to measure."""
        program, order = self.analysis.program, self.analysis.order
        if not program.aside.nodes:
            return
        evaluated = np.zeros(len(self.groups), dtype=bool)
        for (name, _), families in self.families.items():
            if order.get(name, 0) < len(program.nodes):
                for units, _ in families:
                    evaluated[self.group_of[units[self.group_of[units] >= 0]]] = True
        left = np.flatnonzero(~evaluated).tolist()
        self._freeze_groups(dict.fromkeys(left, "no output in eval mode depends on it"))

    def _leave_buffers(self) -> None:
        """Units that are in no parameter, and that nothing reads or writes, are no use to cut."""
        known = self.analysis.program.parameters
        own = (g for g in self.groups if not (g.writes or g.reads))
        idle = (g.name for g in own if not any(m.tensor in known for m in g.carries))
        self.give_up(dict.fromkeys(idle, "only buffers hold it"))

    def _merge(self, merged: Ints) -> None:
        """Join groups that share a balance constraint."""
        if (merged == np.arange(len(merged))).all():
            return
        for number, into in enumerate(merged.tolist()):
            if into != number:
                target, extra = self.groups[into], self.groups[number]
                target.units = np.r_[target.units, extra.units]
                target.size = len(target.units)
                target.exact &= extra.exact
                target.why_inexact = target.why_inexact or extra.why_inexact
        self._keep([g for g, into in enumerate(merged.tolist()) if into == g])

    def _keep(self, numbers: list[int]) -> None:
        """Keep only these groups, and number units anew."""
        self._numbers.clear()
        self.groups = [self.groups[number] for number in numbers]
        self.group_of[:] = -1
        for number, group in enumerate(self.groups):
            self.group_of[group.units] = number
            self.index_of[group.units] = np.arange(group.size)

    def _freeze_groups(self, reasons: Mapping[int, str]) -> None:
        """Give up groups: their units are frozen for these reasons."""
        for number, reason in reasons.items():
            self.units.freeze(self.groups[number].units, reason)
        self._keep([n for n in range(len(self.groups)) if n not in reasons])

    def groups_of(self, factor: Factor) -> list[int]:
        """The numbers of the groups that have units along a leaf factor."""
        factor = find(factor)
        if factor.labels is None and factor.repeats:
            factor = find(factor.repeats[0].own)
        known = self._numbers.get(id(factor))
        if known is None:
            units = self.units.incidence(factor)[1]
            known = np.unique(self.group_of[units]).tolist() if len(units) else []
            self._numbers[id(factor)] = known
        return known

    def join(self, parts: Mapping[str, Sequence[Ints]]) -> None:
        """Make groups, by name, one: equally many units must go from each block of any of them."""
        named = {group.name: group for group in self.groups}
        first, *others = (named[name] for name in parts)
        blocks = [named[name].units[block] for name in parts for block in parts[name]]
        first.units = np.concatenate(blocks)
        first.balance = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
        first.size = len(first.units)
        for other in others:
            first.exact &= other.exact
            first.why_inexact = first.why_inexact or other.why_inexact
        gone = {id(other) for other in others}
        self._keep([n for n, group in enumerate(self.groups) if id(group) not in gone])
        self._describe()

    def give_up(self, reasons: Mapping[str, str]) -> None:
        """Freeze whole groups, by name, for the reasons given."""
        if not reasons:
            return
        numbers = {n: reasons[g.name] for n, g in enumerate(self.groups) if g.name in reasons}
        self._freeze_groups(numbers)
        self._describe()

    def _describe(self) -> None:
        """Say which axes each group touches."""
        for group in self.groups:
            group.writes, group.reads, group.carries = [], [], []
        touched: dict[int, list[tuple[int, int]]] = {}
        for (name, dim), families in self.families.items():
            if id(families) not in touched:
                touched[id(families)] = [
                    (number, count)
                    for units, count in families
                    for number in np.unique(self.group_of[units]).tolist()
                    if number >= 0
                ]
            role = self.analysis.roles.get((name, dim), "carries")
            for number, count in touched[id(families)]:
                getattr(self.groups[number], role).append(Member(name, dim, count))


def _name(slot: tuple[str, int], count: int, kind: str, taken: set[str]) -> str:
    """A name for the units of an axis: its module, and more where others have taken that."""
    tensor, dim = slot
    path = owner(tensor) or tensor
    names = [path, f"{path}:{kind}", f"{tensor}[{dim}]", f"{tensor}[{dim}]x{count}"]
    if kind == "head-dim":  # the module goes by its heads
        names = names[1:]
    return next((n for n in names if n not in taken), f"{tensor}[{dim}]#{len(taken)}")
