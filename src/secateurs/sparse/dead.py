"""Units that zero weights have left without inputs or without readers, and how they go."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import LawError, NotFiniteError, TraceError
from ..gates import TOLERANCE, deviation, recorded_inputs, tensors_of, trace
from ..groups import Graph, Group
from ..plan import Plan
from ..surgery.apply import apply
from ..tables import render
from ..trace.labels import Bools, find
from ..trace.record import as_call, evaluating, model_tensors, modules_of, tensor_of
from .fold import Folder, Reasons, place
from .influence import Influence

log = logging.getLogger("secateurs")
M = TypeVar("M", bound=nn.Module)

NO_INPUTS, NO_READERS = "without inputs", "without readers"
_LAST = "an axis keeps at least one unit"
_BALANCE = "equally many units must go from each block of its group, and never all"


@dataclass(frozen=True)
class DeadUnits:
    """The dead units of a network; see `dead_units`.

    Attributes:
        removed: group -> unit -> 'without inputs' (what it emits is a constant) or 'without
            readers' (no output follows it).
        kept: group -> unit -> why this dead unit stays.
        plan: takes `removed` out.
        shifts: tensor path -> what is added to a bias (or subtracted from a running mean) to make
            up for the constants, in the shape that the tensor has before the cut, float64.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     net[0].weight[1], net[0].bias[1] = 0, 0.5
    >>> dead = sc.dead_units(net, torch.zeros(1, 4))
    >>> dead.removed, list(dead.shifts)
    ({'0': {1: 'without inputs'}}, ['2.bias'])
    """

    removed: dict[str, dict[int, str]]
    kept: dict[str, dict[int, str]]
    plan: Plan
    shifts: dict[str, Tensor]

    def __len__(self) -> int:
        """How many units go."""
        return len(self.plan)

    @property
    def unbalanced(self) -> bool:
        """Whether a dead unit stays because equally many must go from each block of its group."""
        return any(why == _BALANCE for units in self.kept.values() for why in units.values())

    def __str__(self) -> str:
        rows = []
        for name in dict.fromkeys([*self.removed, *self.kept]):
            going = Counter(self.removed.get(name, {}).values())
            staying = Counter(self.kept.get(name, {}).values())
            why = "; ".join(f"{n} × {reason}" for reason, n in staying.items())
            rows.append((name, going[NO_INPUTS], going[NO_READERS], staying.total(), why))
        columns = ("group", NO_INPUTS, NO_READERS, "stay", "why they stay")
        total = sum(map(len, self.kept.values()))
        return render(f"dead units: {len(self)} go, {total} stay", columns, rows)


def dead_units(model: nn.Module, example_inputs: Any) -> DeadUnits:
    """The units that can go without a change to what the network computes.

    A unit whose every input weight is zero emits a constant; a unit whose every reading weight is
    zero is not heard. Both are followed through the whole recorded program, so one that is fed by
    such units only, or read by such units only, is found too. A constant other than zero is moved
    into the biases of its readers; where that is not exact, the unit stays, with the reason.

    Args:
        model: any module that runs, with zeros in its weights; it is left untouched.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.

    Returns:
        What goes, what stays and why, the plan, and what is added to which biases.

    Raises:
        TraceError: the model does not run on these inputs, or its weights hold no values.
        PlanError, MendError: the cut cannot be made.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> with torch.no_grad():
    ...     net[2].weight[:, [1, 5]] = 0
    >>> sc.dead_units(net, torch.zeros(1, 4)).removed
    {'0': {1: 'without readers', 5: 'without readers'}}
    """
    graph = trace(model, example_inputs)
    tensors = model_tensors(model)
    empty = [name for name in graph.program.tensors if tensors[name].is_meta]
    if empty:
        raise TraceError(f"{empty[0]!r} is on the meta device and holds no values; load them first")
    search = _Search(graph, tensors)
    unsure = _unsure(graph)
    if unsure:
        return search.nothing(unsure)
    with torch.no_grad(), evaluating(model):
        influence = Influence(graph, tensors, recorded_inputs(graph, example_inputs))
    return search.result(influence)


def remove_dead(model: M, example_inputs: Any, *, inplace: bool = False) -> M:
    """The network without its dead units; what it computes stays the same, and that is checked.

    Args:
        model: any module that runs, with zeros in its weights.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        inplace: cut the model itself, after a copy has passed the check.

    Returns:
        The smaller model; `dead_units` says which units go, and which stay and why.

    Raises:
        TraceError, PlanError, MendError: the cut cannot be made; nothing was changed.
        LawError: the outputs differ from the model's by more than rounding; nothing was changed.
        NotFiniteError: the model's outputs are not finite, so there is nothing to compare.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> with torch.no_grad():
    ...     net[0].weight[[1, 5]] = 0
    >>> sc.remove_dead(net, torch.zeros(1, 4))[0]
    Linear(in_features=4, out_features=6, bias=True)
    """
    small, steps = model, []
    while True:
        steps.append(dead_units(small, example_inputs))
        small = _without(small, steps[-1])
        # a grouped convolution of one channel a group is free of the balance that held units back
        if not len(steps[-1]) or not steps[-1].unbalanced:
            break
    _check(model, small, example_inputs)
    staying = sum(map(len, steps[-1].kept.values()))
    log.info("%d dead units removed, %d stay; see dead_units", sum(map(len, steps)), staying)
    if not inplace:
        return small
    for step in steps:
        _without(model, step, inplace=True)
    return model


def _without(model: M, dead: DeadUnits, *, inplace: bool = False) -> M:
    small = apply(model, dead.plan, inplace=inplace)
    modules = modules_of(small)
    with torch.no_grad():
        for path, shift in dead.shifts.items():
            tensor, slices = tensor_of(modules, path), dead.plan.tensors.get(path)
            if tensor is not None:
                tensor += shift if slices is None else slices.cut(shift)
    return small


def _check(model: nn.Module, small: nn.Module, example_inputs: Any) -> None:
    """Both give the same outputs, on the inputs and on others like them.

    Raises:
        LawError, NotFiniteError: they do not, or the outputs say nothing.
    """
    for inputs in (example_inputs, _stirred(example_inputs)):
        args, kwargs = as_call(inputs)
        with torch.no_grad(), evaluating(model), evaluating(small):
            wanted = tensors_of(model(*args, **kwargs))
            if not all(bool(t.isfinite().all()) for t in wanted):
                if inputs is not example_inputs:
                    return  # not every network takes any numbers
                raise NotFiniteError("the model's outputs on the example inputs are not finite")
            given = tensors_of(small(*args, **kwargs))
        if [t.shape for t in wanted] != [t.shape for t in given]:
            raise LawError("the cut model returns tensors of other shapes than the original")
        worst, relative = deviation(wanted, given)
        if not relative <= min(TOLERANCE.get(t.dtype, 1e-3) for t in wanted):
            raise LawError(
                f"without its dead units the network gives outputs that differ by {worst:.2e}; the "
                "model was not changed; this is a fault of the search: please report the model"
            )


def _stirred(example_inputs: Any) -> Any:
    """The same inputs with noise on every floating tensor: example inputs are often all zero."""
    draw = torch.Generator().manual_seed(0)

    def stir(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=draw).to(tensor)
        return tensor + noise * (float(tensor.std(correction=0)) or 1.0)

    return torch.utils._pytree.tree_map_only(Tensor, stir, example_inputs)


def _unsure(graph: Graph) -> str:
    """Why nothing can be said of what the program computes for other inputs; empty if it can."""
    if graph.program.looks:
        return "the code looks at values, so other inputs may take another way"
    changing = [node for node in graph.program.nodes if node.op._schema.is_mutable]
    if changing:
        return f"{place(changing[0])} changes a tensor in place that others see"
    return ""


# ---------------------------------------------------------------------- which can go
class _Search:
    """Which units are dead, and which of them can go together."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]):
        self.graph = graph
        self.count = len(graph.classes)
        self.unwritten = self._untouched(tensors, "writes")
        self.unread = self._untouched(tensors, "reads")

    def nothing(self, why: str) -> DeadUnits:
        """Every dead unit stays, for one reason."""
        dead = np.flatnonzero((self.unwritten | self.unread) & (self.graph.group_of >= 0))
        return self._told(
            np.zeros(self.count, dtype=bool), {}, dict.fromkeys(dead.tolist(), why), {}
        )

    def result(self, influence: Influence) -> DeadUnits:
        """What goes and what stays, as large as the constants, the balance and the axes allow."""
        graph, folder = self.graph, Folder(self.graph, influence)
        heard, loud, why_heard = self._heard(influence)
        stuck: Reasons = {
            unit: why_heard[unit]
            for unit in np.flatnonzero((self.unwritten | self.unread) & heard).tolist()
            if graph.group_of[unit] >= 0
        }
        free = ~heard & (graph.group_of >= 0)
        for group in graph.groups:
            if not group.exact:
                dead = group.units[~heard[group.units]]
                stuck |= dict.fromkeys(dead.tolist(), group.why_inexact)
                dead_by_weights = group.units[(self.unwritten | self.unread)[group.units]]
                stuck |= dict.fromkeys(dead_by_weights.tolist(), group.why_inexact)
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

    def _told(
        self, gone: Bools, why: Reasons, stays: Reasons, shifts: dict[str, Tensor]
    ) -> DeadUnits:
        removed = self._by_group({u: why[u] for u in np.flatnonzero(gone).tolist()})
        plan = self.graph.plan({name: list(units) for name, units in removed.items()})
        return DeadUnits(removed, self._by_group(stays), plan, shifts)

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
        limit = min(fewest, min(map(len, blocks)) - 1)
        back: Reasons = {}
        for block in blocks:
            extra = block[gone[block]][limit:]
            gone[extra] = False
            why = _LAST if len(blocks) == 1 else _BALANCE
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
                back[kept] = _LAST
        return back
