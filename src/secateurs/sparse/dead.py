"""Units that zero weights have left without inputs or without readers, and how they go."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import LawError, NotFiniteError, TraceError
from ..gates import TOLERANCE, deviation, recorded_inputs, tensors_of, trace
from ..groups import Graph
from ..plan import Plan
from ..surgery.apply import apply
from ..tables import render
from ..trace.model import as_call, model_tensors, modules_of, tensor_of
from ..trace.modes import evaluating
from .fold import place
from .influence import Influence
from .search import NO_INPUTS, NO_READERS, Search

log = logging.getLogger("secateurs")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class DeadUnits:
    """The dead units of a network; see `dead_units`.

    Attributes:
        removed: group -> unit -> 'without inputs' (what it emits is a constant) or 'without
            readers' (no output follows it).
        kept: group -> unit -> why this dead unit stays.
        plan: takes `removed` out.
        shifts: tensor path -> what is added to a bias or to a running mean to make up for the
            constants, in the shape that the tensor has before the cut, float64.

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
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments,
            of the size that the network is used at: where a map is smaller than a kernel, some
            weights read padding only.

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
    search, unsure = Search(graph, tensors), _unsure(graph)
    if unsure:
        found = search.nothing(unsure)
    else:
        with torch.no_grad(), evaluating(model):
            influence = Influence(graph, tensors, recorded_inputs(graph, example_inputs))
        found = search.result(influence)
    plan = graph.plan({name: list(units) for name, units in found.removed.items()})
    return DeadUnits(found.removed, found.kept, plan, found.shifts)


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
        if not len(steps[-1]) or not steps[-1].kept:
            break  # else what held a unit back may be gone: other units, groups of a convolution
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
