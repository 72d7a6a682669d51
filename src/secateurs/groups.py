"""A traced network: what can be cut from it, and what cannot, and why."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PlanError, nearest
from .grouping import Grouping
from .members import Frozen, Group, Member
from .selection import Selection
from .tables import render
from .trace.analyse import Analysis
from .trace.labels import Axis, Factor, Ints
from .trace.program import Program, owner

if TYPE_CHECKING:
    from .blocks import Block
    from .plan import Plan
    from .trace.analyse import Read

log = logging.getLogger("secateurs")

__all__ = ["Frozen", "Graph", "Group", "Member", "Selection"]

_FEW = {0: "it has no index", 1: "an axis of one index"}
_UNTOUCHED = "the traced run did not touch this parameter"


class Graph:
    """A traced network: its program, its groups, and its frozen axes; `trace` makes one.

    It iterates over its groups, `len` counts them, and printing it gives a table of them.

    Attributes:
        analysis: the axes of every value of the program, and what reads them.
        rebuilt: whether a cut builds the layers anew from their configuration, as in Keras.
        replay: whether a plan that cannot be mended in the model is served by replay.
        slots: (tensor, dim, axis in its leaves) of every axis of a tensor.
        resolved: the classes of labels, and which of them can never go.
        families: (tensor, dim) -> (units in order of position, slices per unit) of each family.
    """

    def __init__(self, analysis: Analysis, *, rebuilt: bool = False):
        self.analysis = analysis
        self.rebuilt = rebuilt
        self.replay = False
        self._grouping = Grouping(analysis)
        self._units = self._grouping.units
        self.slots, self.resolved = self._units.slots, self._units.resolved
        self.families = self._grouping.families

    @property
    def groups(self) -> list[Group]:
        """What can be cut."""
        return self._grouping.groups

    @property
    def program(self) -> Program:
        """The operations that ran, which can be replayed."""
        return self.analysis.program

    @property
    def size(self) -> int:
        """How many units there are, in all groups."""
        return sum(group.size for group in self.groups)

    # ------------------------------------------------------------------ residual blocks
    @cached_property
    def branches(self) -> dict[str, Read]:
        """Every residual branch by name, and the addition by which it enters the trunk."""
        from .blocks import branches

        return branches(self)

    @property
    def blocks(self) -> list[Block]:
        """The residual branches, a block each: `score` and `oracle` take them as `groups`."""
        from .blocks import block

        return [block(name, [name]) for name in self.branches]

    def joined(self, paths: Iterable[str]) -> list[Block]:
        """One block for each of these paths, of all residual branches at or under it.

        So the twelve layers of a transformer, of two branches each, are twelve blocks.

        Raises:
            ConfigError: no branch lies under one of the paths.
        """
        from .blocks import join

        return join(self, paths)

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
        if name in self.branches:
            raise PlanError(
                f"{name!r} is a residual block, which holds no axis that a plan could cut; `score` "
                "and `oracle` tell what it is worth, and where it may go, skip it in the model"
            )
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
        from .planning import make_plan

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
        from .planning import random_plan

        return random_plan(self, fraction, seed, exact_only=exact_only)

    def select(self, plan: Mapping[str, Iterable[int]]) -> Selection:
        """The masks of a plan's units; names and indices are taken as valid."""
        chosen = [self[name].units[np.asarray(list(idx), int)] for name, idx in plan.items()]
        return Selection(self, np.concatenate(chosen) if chosen else np.zeros(0, int))

    # ------------------------------------------------------------------ units
    @property
    def classes(self) -> Ints:
        """(units,) The class of labels that each unit is."""
        return self._units.classes

    @property
    def group_of(self) -> Ints:
        """(units,) The number of each unit's group; -1 where it is in none."""
        return self._grouping.group_of

    @property
    def index_of(self) -> Ints:
        """(units,) The number of each unit in its group."""
        return self._grouping.index_of

    def incidence(self, factor: Factor) -> tuple[Ints, Ints]:
        """Which positions of a leaf factor go with which units: (positions, units)."""
        return self._units.incidence(factor)

    def axis_incidence(self, axis: Axis) -> tuple[Ints, Ints]:
        """Which indices of an axis go with which units: (indices, units)."""
        return self._units.axis_incidence(axis)

    def groups_of(self, factor: Factor) -> list[int]:
        """The numbers of the groups that have units along a leaf factor."""
        return self._grouping.groups_of(factor)

    def join(self, parts: Mapping[str, Sequence[Ints]]) -> None:
        """Make groups, by name, one: equally many units must go from each block of any of them."""
        self._grouping.join(parts)

    def give_up(self, reasons: Mapping[str, str]) -> None:
        """Freeze whole groups, by name, for the reasons given."""
        self._grouping.give_up(reasons)
        self.__dict__.pop("frozen", None)

    # ------------------------------------------------------------------ what cannot go
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
                if n < 2 or not touched:
                    out.append(Frozen(name, dim, n, _FEW.get(n, _UNTOUCHED)))
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
                    why = self._reason(cls)
                    reasons[why] = reasons.get(why, 0) + 1
        return next(iter(reasons.items()), ("", 0))

    def _reason(self, cls: int) -> str:
        """Why a class of slices cannot go: for a product, why what takes it along cannot."""
        why, operands = self.resolved.reason(cls), self.resolved.products.get(cls, ())
        return why or next((w for c in sorted(operands) if (w := self._reason(c))), "")

    # ------------------------------------------------------------------ printing
    def __str__(self) -> str:
        rows = [
            (
                g.name,
                g.kind,
                g.size,
                ("yes" if g.exact else f"no: {g.why_inexact}")
                + (", by replay" if g.replayed else ""),
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
        return records(self.groups)


def records(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Groups as plain data: name, kind, size, exact, balance and members of each."""
    return [
        {
            "name": g.name,
            "kind": g.kind,
            "size": g.size,
            "exact": g.exact,
            "balance": None if g.balance is None else g.balance.tolist(),
            "members": g.members,
        }
        for g in groups
    ]
