"""Groups of coupled units: what can be cut from a traced network, and what cannot, and why."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PlanError, nearest
from .tables import render
from .trace import attention
from .trace.analyse import Analysis
from .trace.balance import split_cells
from .trace.labels import Axis, Bools, Factor, Ints, axis_size, find, leaves
from .trace.program import Program, owner
from .trace.resolve import Resolved, resolve

if TYPE_CHECKING:
    from .plan import Plan

log = logging.getLogger("secateurs")

_SINGLE = "an axis of one index"
_ALONE = "no other unit could take its place: it is the only one of its group"
_UNTOUCHED = "the traced run did not touch this parameter"


@dataclass(frozen=True)
class Member:
    """One axis of one tensor that a group touches.

    Attributes:
        tensor: path of the parameter or buffer, such as 'layer1.0.conv1.weight'.
        dim: which of its dimensions.
        count: how many slices along it go with each unit: 16 where a channel of 4 × 4 pixels is
            flattened.
    """

    tensor: str
    dim: int
    count: int

    def __str__(self) -> str:
        times = f" ×{self.count}" if self.count > 1 else ""
        return f"{self.tensor}[{self.dim}]{times}"


@dataclass
class Group:
    """Interchangeable units along one axis, with everything that is coupled to them.

    Attributes:
        name: the module that first writes the units.
        kind: 'channel', 'neuron', 'width', …; what a unit is called.
        size: how many units there are.
        units: (size,) their numbers among the units of all groups.
        exact: whether deleting a unit equals zeroing it at its reads. False where a statistic
            (a normalisation, a mean) is taken over the axis.
        why_inexact: the operation that takes it; empty if the group is exact.
        balance: block number of every unit, (size,), or None. A plan takes the same number of
            units from each block.
        multiple: as many units must stay as a multiple of this: some kernels take no other sizes.
        writes, reads, carries: the tensors' axes that make, read, or pass on the units.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8),
    ...                           torch.nn.Flatten(), torch.nn.Linear(8 * 4, 2))
    >>> group = sc.trace(net, torch.zeros(1, 3, 4, 4))["0"]
    >>> [str(axis) for axis in group.writes], [str(axis) for axis in group.reads]
    (['0.weight[0]'], ['3.weight[1] ×4'])
    """

    name: str
    kind: str
    size: int
    units: Ints
    exact: bool = True
    why_inexact: str = ""
    balance: Ints | None = None
    multiple: int = 1
    writes: list[Member] = field(default_factory=list)
    reads: list[Member] = field(default_factory=list)
    carries: list[Member] = field(default_factory=list)

    @property
    def members(self) -> list[str]:
        """The paths of all modules that the group touches, writers first."""
        paths = (owner(m.tensor) for m in self.axes)
        return list(dict.fromkeys(paths))

    @property
    def axes(self) -> list[Member]:
        """Every tensor's axis that the group touches: writers, then readers, then carriers."""
        return [*self.writes, *self.reads, *self.carries]

    def blocks(self) -> list[Ints]:
        """The unit indices of each balance block; one block where there is no constraint."""
        if self.balance is None:
            return [np.arange(self.size)]
        return [np.flatnonzero(self.balance == b) for b in np.unique(self.balance)]

    def allowed(self, each: int) -> int:
        """The most units, but no more than `each`, that may go from every block."""
        blocks = self.blocks()
        each = min(each, *(len(block) - 1 for block in blocks), self.size)
        while each > 0 and (self.size - each * len(blocks)) % self.multiple:
            each -= 1
        return max(each, 0)


@dataclass(frozen=True)
class Frozen:
    """A parameter axis, or a part of one, that cannot be cut, and why.

    Attributes:
        tensor: path of the parameter or buffer.
        dim: which of its dimensions.
        size: how many indices of it are frozen.
        reason: why: an input or output, a kernel axis, an operation by name, a line of code.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> print(sc.trace(net, torch.zeros(1, 4)).frozen[0])
    0.weight[1] (4): input of the network
    """

    tensor: str
    dim: int
    size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}] ({self.size}): {self.reason}"


class Selection:
    """A set of units to delete, as masks over any axis of the program."""

    def __init__(self, graph: Graph, units: Iterable[int]):
        self.graph = graph
        resolved = graph.resolved
        chosen = np.asarray(units if isinstance(units, np.ndarray) else list(units), dtype=np.int64)
        self.count = len(chosen)
        gone = np.zeros(len(resolved.root), dtype=bool)
        gone[graph.classes[chosen]] = True
        product, left, right = resolved.triples
        while (new := (gone[left] | gone[right]) & ~gone[product]).any():
            gone[product[new]] = True
        self._gone: Bools = gone  # by class
        self._masks: dict[int, Bools] = {}

    def _removed(self, factor: Factor) -> Bools:
        mask = self._masks.get(id(factor))
        if mask is None:
            mask = self._fewer(factor) if factor.labels is None else self.gone(factor.labels)
            self._masks[id(factor)] = mask
        return mask

    def _fewer(self, factor: Factor) -> Bools:
        """Which indices go of a factor without labels: of a repetition, as many as copies do."""
        mask = np.zeros(factor.size, dtype=bool)
        if factor.copies is not None and factor.frozen is None:
            own = self.removed((factor.copies.own,)).reshape(-1, factor.size)
            mask[factor.size - int(own[0].sum()) :] = True
        return mask

    def gone(self, labels: Ints) -> Bools:
        """Which of these labels go, in the same shape."""
        mask: Bools = self._gone[self.graph.resolved.root[labels]]
        return mask

    def removed(self, axis: Axis) -> Bools:
        """Which indices of an axis go, (size,)."""
        parts = leaves(axis)
        if not parts:
            return np.zeros(1, dtype=bool)
        mask = self._removed(parts[0])
        for part in parts[1:]:
            mask = (mask[:, None] | self._removed(part)[None, :]).ravel()
        return mask

    def size(self, axis: Axis) -> int:
        """How many indices of an axis stay."""
        out = 1
        for part in leaves(axis):
            out *= part.size - int(np.count_nonzero(self._removed(part)))
        return out


class Graph:
    """A traced network: its program, its groups, and its frozen axes; `trace` makes one.

    It iterates over its groups, `len` counts them, and printing it gives a table of them.

    Attributes:
        groups: what can be cut.
        analysis: the axes of every value of the program, and what reads them.
        rebuilt: whether a cut builds the layers anew from their configuration, as in Keras.
    """

    def __init__(self, analysis: Analysis, *, rebuilt: bool = False):
        self.analysis = analysis
        self.rebuilt = rebuilt
        self.groups: list[Group] = []
        self._build()

    @property
    def program(self) -> Program:
        """The operations that ran, which can be replayed."""
        return self.analysis.program

    @property
    def size(self) -> int:
        """How many units there are, in all groups."""
        return sum(group.size for group in self.groups)

    # ------------------------------------------------------------------ lookup
    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        """The group of this name, or the one that the module of this path belongs to.

        Raises:
            PlanError: no group, or several, go by this name.
        """
        for group in self.groups:
            if group.name == name:
                return group
        found = self._owners(name, "writes") or self._owners(name, "carries")
        if len(found) == 1:
            others = ", ".join(m for m in found[0].members if m != name)
            log.info("%r is coupled with %s; the group is %r", name, others, found[0].name)
            return found[0]
        if found:
            names = ", ".join(repr(g.name) for g in found)
            raise PlanError(f"module {name!r} belongs to several groups: {names}; name one of them")
        frozen = [f for f in self.frozen if owner(f.tensor) == name]
        read = [repr(g.name) for g in self._owners(name, "reads")]
        if frozen or read:
            why = str(frozen[0]) if frozen else "nothing reads what it makes"
            hint = f"; it only reads {', '.join(read)}" if read else ""
            raise PlanError(f"module {name!r} cannot be cut: {why}{hint}")
        known = [g.name for g in self.groups] + [m for g in self.groups for m in g.members]
        raise PlanError(f"no group is called {name!r}{nearest(name, dict.fromkeys(known))}")

    def _owners(self, module: str, role: str) -> list[Group]:
        """The groups in which a module, or one of its tensors, has this role."""
        return [
            g
            for g in self.groups
            if any(
                module in (owner(m.tensor), m.tensor, f"{m.tensor}[{m.dim}]")
                for m in getattr(g, role)
            )
        ]

    # ------------------------------------------------------------------ plans
    def plan(self, units: Mapping[str, Iterable[int]]) -> Plan:
        """A validated plan: group (or module path) -> indices of the units to delete.

        Raises:
            PlanError: a wrong name, an index out of range or twice, all units of a group, or
                unequal counts where the group is balanced.
            MendError: an integer in the model's code fixes a size that would change.

        >>> import torch, secateurs as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> sc.trace(net, torch.zeros(1, 4)).plan({"0": [1, 5]}).groups
        {'0': [1, 5]}
        """
        from .plan import make_plan

        return make_plan(self, units)

    def random_plan(self, fraction: float, seed: int = 0, *, exact_only: bool = True) -> Plan:
        """A valid random plan that deletes about this fraction of every group's units.

        Args:
            fraction: of each group's units, at least 0 and below 1; rounded down, and balanced.
            seed: of the draw.
            exact_only: leave groups alone whose cut changes a statistic.

        Raises:
            PlanError: the fraction is out of range, or ten draws gave no valid plan.
            MendError: an integer in the model's code fixes a size that would change.

        >>> import torch, secateurs as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> len(sc.trace(net, torch.zeros(1, 4)).random_plan(0.25))
        2
        """
        from .plan import random_plan

        return random_plan(self, fraction, seed, exact_only=exact_only)

    def select(self, plan: Mapping[str, Iterable[int]]) -> Selection:
        """The masks of a plan's units; names and indices are taken as valid."""
        chosen = [self[name].units[np.asarray(list(idx), int)] for name, idx in plan.items()]
        return Selection(self, np.concatenate(chosen) if chosen else np.zeros(0, int))

    # ------------------------------------------------------------------ building
    def _build(self) -> None:
        analysis = self.analysis
        slots = []
        for name, ident in analysis.program.tensors.items():
            if not analysis.program.values[ident].shape:
                continue
            for dim, axis in enumerate(analysis.tensor_axes(name, ident)):
                if axis:
                    parts = tuple(leaves(axis))
                    slots.append((name, dim, parts))
                    for factor in parts:
                        if factor.frozen is None:
                            analysis.labels.of(factor)
        self.slots: list[tuple[str, int, Axis]] = slots  # every axis of a tensor, in its leaves
        self.resolved: Resolved = resolve(analysis.labels)
        self._incidence: dict[int, tuple[Ints, Ints]] = {}
        self._families: dict[Axis, list[tuple[Ints, int]]] = {}
        self._number_units()
        self._assign()
        self._mark_inexact()
        self._balance()
        self._find_multiples()
        self._leave_training_only()
        self._freeze_groups({n: _ALONE for n, g in enumerate(self.groups) if g.size == 1})
        self._describe()
        self._leave_buffers()

    def _number_units(self) -> None:
        """Every class that can go by itself and holds a slice of the model is a unit."""
        resolved = self.resolved
        distinct = {id(part): part.labels for _, _, parts in self.slots for part in parts}
        held = np.zeros(len(resolved.root), dtype=bool)
        for labels in distinct.values():
            if labels is not None:
                held[resolved.root[labels]] = True
        classes = np.flatnonzero(held)
        product = np.isin(classes, np.fromiter(resolved.products, dtype=np.int64))
        base = set(classes[~product & ~resolved.frozen[classes]].tolist())
        todo = classes[product].tolist()
        while todo:
            cls = todo.pop()
            if cls in resolved.products:
                todo += resolved.products[cls]
            elif not resolved.frozen[cls]:
                base.add(cls)
        self.classes: Ints = np.array(sorted(base), dtype=np.int64)
        self.unit_of: Ints = np.full(len(resolved.root), -1)
        self.unit_of[self.classes] = np.arange(len(self.classes))

    def incidence(self, factor: Factor) -> tuple[Ints, Ints]:
        """Which positions of a leaf factor go with which units: (positions, units)."""
        factor = find(factor)
        known = self._incidence.get(id(factor))
        if known is None:
            none = np.zeros(0, dtype=np.int64)
            known = (none, none) if factor.labels is None else self._locate(factor.labels)
            self._incidence[id(factor)] = known
        return known

    def groups_of(self, factor: Factor) -> list[int]:
        """The numbers of the groups that have units along a leaf factor."""
        factor = find(factor)
        if factor.labels is None and factor.copies is not None:
            factor = factor.copies.own
        units = self.incidence(factor)[1]
        return np.unique(self.group_of[units]).tolist() if len(units) else []

    def _locate(self, labels: Ints) -> tuple[Ints, Ints]:
        """Which positions of a label vector go with which units."""
        classes = self.resolved.root[labels]
        units = self.unit_of[classes]
        at = np.flatnonzero(units >= 0)
        extra = [
            (position, unit)
            for position in np.flatnonzero(units < 0).tolist()
            for unit in self._units_under(int(classes[position]))
        ]
        if not extra:
            return at, units[at]
        more = np.array(extra).T
        return np.r_[at, more[0]], np.r_[units[at], more[1]]

    def _units_under(self, cls: int) -> set[int]:
        if self.unit_of[cls] >= 0:
            return {int(self.unit_of[cls])}
        operands = self.resolved.products.get(cls, ())
        return set().union(*(self._units_under(operand) for operand in operands))

    def axis_incidence(self, axis: Axis) -> tuple[Ints, Ints]:
        """Which indices of an axis go with which units: (indices, units)."""
        parts = leaves(axis)
        if len(parts) == 1:
            return self.incidence(parts[0])
        shape = [part.size for part in parts]
        everywhere = np.arange(math.prod(shape)).reshape(shape)
        where, which = [], []
        for d, part in enumerate(parts):
            positions, units = self.incidence(part)
            if not len(positions):
                continue
            lines = np.moveaxis(everywhere, d, 0)[positions].reshape(len(positions), -1)
            where.append(lines.ravel())
            which.append(np.repeat(units, lines.shape[1]))
        none = [np.zeros(0, dtype=np.int64)]
        return np.concatenate(where or none), np.concatenate(which or none)

    def _slot_counts(self, parts: Axis) -> list[tuple[Ints, int]]:
        """(units in order of position, slices per unit) for each family on an axis."""
        if parts in self._families:
            return self._families[parts]
        out = self._families[parts] = []
        total = axis_size(parts)
        for part in parts:
            positions, units = self.incidence(part)
            if len(units) == part.size and (units[1:] > units[:-1]).all():
                out.append((units, total // part.size))  # the common case: one unit an index
            elif len(units):
                distinct, first, counts = np.unique(units, return_index=True, return_counts=True)
                times = counts * (total // part.size)
                order = np.argsort(positions[first], kind="stable")
                distinct, times = distinct[order], times[order]
                out += [(distinct[times == n], int(n)) for n in np.unique(times)]
        return out

    def _assign(self) -> None:
        """Put every unit in the group of the first axis that writes it (else touches it)."""
        analysis = self.analysis
        self._counts = {(name, dim): self._slot_counts(parts) for name, dim, parts in self.slots}
        ranked = sorted(
            self._counts,
            key=lambda s: (
                analysis.roles.get(s) != "writes",
                analysis.order.get(s[0], 1 << 30),
                s[1],
            ),
        )
        self.group_of: Ints = np.full(len(self.classes), -1)
        self.index_of: Ints = np.zeros(len(self.classes), dtype=np.int64)
        names: set[str] = set()
        kinds = self._kinds()
        first: dict[int, tuple[str, int]] = {}  # the same families recur on many axes
        for slot in ranked:
            first.setdefault(id(self._counts[slot]), slot)
        for slot in first.values():
            for units, count in self._counts[slot]:
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
                out.update(dict.fromkeys(self.incidence(part)[1].tolist(), kind))
        return out

    def _mark_inexact(self) -> None:
        for axis, reason in self.analysis.labels.inexact:
            for factor in leaves(axis):
                for group in np.unique(self.group_of[self.incidence(factor)[1]]).tolist():
                    self.groups[group].exact = False
                    self.groups[group].why_inexact = reason

    def _balance(self) -> None:
        """Turn 'equal counts from each block of this axis' into a block number per unit."""
        cells: dict[int, list[tuple[int, int]]] = {}
        merged = np.arange(len(self.groups))
        spoiled: dict[int, str] = {}
        for number, (labels, reason) in enumerate(self.analysis.labels.balanced):
            blocks = labels.shape[0]
            positions, units = self._locate(labels.ravel())
            touched, row = np.unique(units, return_inverse=True)
            counts = np.zeros((len(touched), blocks), dtype=np.int64)
            np.add.at(counts, (row, positions // labels.shape[1]), 1)
            odd = (counts != counts[:, :1]).any(axis=1)
            uneven, counts = touched[odd], counts[odd]
            if not len(uneven):
                continue
            single = (counts > 0).sum(axis=1) == 1
            block = counts.argmax(axis=1)
            fits = bool(single.all()) and len(np.unique(block)) == blocks
            if not single.all():  # one of each kind takes equally many from every block
                kinds, block = np.unique(counts, axis=0, return_inverse=True)
                block, lost = block.reshape(-1), kinds.sum(axis=0)
                fits = bool((lost == lost[0]).all())
            if not fits:
                why = f"{reason}: no equal count can go from each"
                spoiled |= dict.fromkeys(uneven.tolist(), why)
                continue
            for unit, b in zip(uneven.tolist(), block.tolist(), strict=True):
                cells.setdefault(unit, []).append((number, b))
            owners = np.unique(merged[self.group_of[uneven]])
            merged[np.isin(merged, owners)] = owners[0]
        self._merge(merged)
        for group in self.groups if cells else ():
            own = [tuple(cells.get(unit, ())) for unit in group.units.tolist()]
            if any(own):
                group.balance = split_cells(own)
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
            for units, count in self._slot_counts(tuple(leaves(axis))):
                step = multiple // math.gcd(multiple, count)
                for number in np.unique(self.group_of[units]).tolist():
                    group = self.groups[number]
                    group.multiple = math.lcm(group.multiple, step)

    def _leave_training_only(self) -> None:
        """Units that no tensor of the eval run holds have no importance to measure there."""
        program, order = self.analysis.program, self.analysis.order
        if not program.training.nodes:
            return
        evaluated = np.zeros(len(self.groups), dtype=bool)
        for (name, _), families in self._counts.items():
            if order.get(name, 0) < len(program.nodes):
                for units, _ in families:
                    evaluated[self.group_of[units[self.group_of[units] >= 0]]] = True
        left = np.flatnonzero(~evaluated).tolist()
        self._freeze_groups(dict.fromkeys(left, "it runs in training mode only"))

    def _leave_buffers(self) -> None:
        """Units that are in no parameter, and that nothing reads or writes, are no use to cut."""
        known = self.program.parameters
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
        self.groups = [self.groups[number] for number in numbers]
        self.group_of[:] = -1
        for number, group in enumerate(self.groups):
            self.group_of[group.units] = number
            self.index_of[group.units] = np.arange(group.size)

    def _freeze_groups(self, reasons: Mapping[int, str]) -> None:
        """Give up groups: their units are frozen for these reasons."""
        for number, reason in reasons.items():
            units = self.groups[number].units
            classes = self.classes[units]
            self.resolved.frozen[classes] = True
            self.resolved.reason_of[classes] = len(self.resolved.reasons)
            self.resolved.reasons.append(reason)
            self.unit_of[classes] = -1
        self._incidence.clear()
        self.__dict__.pop("frozen", None)
        self._keep([n for n in range(len(self.groups)) if n not in reasons])

    def join(self, parts: Mapping[str, Sequence[Ints]]) -> None:
        """Make groups, by name, one: equally many units must go from each block of any of them."""
        first, *others = (self[name] for name in parts)
        blocks = [self[name].units[block] for name in parts for block in parts[name]]
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
        for (name, dim), families in self._counts.items():
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

    @cached_property
    def frozen(self) -> list[Frozen]:
        """Every parameter axis, or part of one, that is in no group, with its reason."""
        program, out = self.analysis.program, []
        for name, dim, parts in self.slots:
            reason, size = self._why_frozen(parts)
            if size:
                out.append(Frozen(name, dim, size, reason))
        for name, shape in program.parameters.items():
            touched = name in program.tensors
            for dim, n in enumerate(shape):
                if n == 1 or not touched:
                    out.append(Frozen(name, dim, n, _SINGLE if n == 1 else _UNTOUCHED))
        return out

    def _why_frozen(self, parts: Axis) -> tuple[str, int]:
        """Why an axis is in no group, and how many indices of it; none if it is in one."""
        if any(len(np.unique(self.incidence(part)[0])) == part.size for part in parts):
            return "", 0
        reasons: dict[str, int] = {}
        for part in parts:
            if part.frozen is not None:
                reasons.setdefault(part.frozen, part.size)
            elif part.labels is not None:
                held = np.setdiff1d(np.arange(part.size), self.incidence(part)[0])
                for cls in self.resolved.root[part.labels[held]].tolist():
                    why = self.resolved.reason(cls) or "no unit"
                    reasons[why] = reasons.get(why, 0) + 1
        return next(iter(reasons.items()), ("", 0))

    # ------------------------------------------------------------------ printing
    def __str__(self) -> str:
        rows = [
            (
                g.name,
                g.kind,
                g.size,
                "yes" if g.exact else f"no: {g.why_inexact}",
                "" if g.balance is None else f"{len(g.blocks())} blocks",
                ", ".join(m for m in g.members if m != g.name),
            )
            for g in self.groups
        ]
        columns = ("group", "kind", "units", "exact", "balance", "coupled with")
        return render(
            f"groups: {len(self.groups)}; frozen axes: {len(self.frozen)} (see .frozen)",
            columns,
            rows,
        )

    def __repr__(self) -> str:
        return f"<Graph: {len(self.groups)} groups, {len(self.frozen)} frozen axes>"

    def records(self) -> list[dict[str, Any]]:
        """The groups as plain data: name, kind, size, exact, balance and members of each."""
        return [
            {
                "name": g.name,
                "kind": g.kind,
                "size": g.size,
                "exact": g.exact,
                "balance": None if g.balance is None else g.balance.tolist(),
                "members": g.members,
            }
            for g in self.groups
        ]


def _name(slot: tuple[str, int], count: int, kind: str, taken: set[str]) -> str:
    """A name for the units of an axis: its module, and more where others have taken that."""
    tensor, dim = slot
    path = owner(tensor) or tensor
    names = [path, f"{path}:{kind}", f"{tensor}[{dim}]", f"{tensor}[{dim}]x{count}"]
    if kind == "head-dim":  # the module goes by its heads
        names = names[1:]
    return next((n for n in names if n not in taken), f"{tensor}[{dim}]#{len(taken)}")
