"""The gated network, and the law of the cut.

Deleting a unit gives the same function as the uncut network in which every read of the unit is
multiplied by zero. The gate sits on the operand that a reader reads.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from .draws import Drawn, Redrawn, draws
from .errors import LawError, TraceError
from .frontend import FrontEnd
from .groups import Graph, Selection
from .mendable import give_up, settle
from .plan import Plan
from .reach import unreached
from .surgery.replay import Replayed
from .trace.analyse import Read, analyse
from .trace.labels import Axis
from .trace.model import as_call, input_tensors, model_tensors
from .trace.modes import evaluating
from .trace.program import Instead, Intercept, Node, Program, Ref
from .trace.sizes import resized_args
from .unseen import unseen
from .ways import turning

# The largest relative error that rounding explains, by precision.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Proof:
    """How far a cut model is from the original gated at its reads.

    Attributes:
        exact: whether the plan touches exact groups only. Otherwise the reference retakes the
            statistics over the units that stay.
        max_error: the largest absolute difference of any output.
        max_relative_error: the same over the largest absolute value of the reference.
        tolerance: the relative error that rounding explains at the precision of the outputs, or
            of what the model rounds to on the way: 1e-9 in float64, 1e-3 in float32, more below.
        replay: whether the cut model is a static program.

    >>> proof = Proof(exact=True, max_error=4e-16, max_relative_error=2e-16, tolerance=1e-9)
    >>> proof.holds
    True
    """

    exact: bool
    max_error: float
    max_relative_error: float
    tolerance: float
    replay: bool = False

    @property
    def holds(self) -> bool:
        """Whether the law of the cut holds up to rounding; False for NaN."""
        return self.max_relative_error <= self.tolerance

    def demand(self) -> None:
        """Go on only if the law holds.

        Raises:
            LawError: it does not.
        """
        if not self.holds:
            raise LawError(
                f"{self}\n  the model was not changed; this is a fault of the trace: please report "
                "the model with the units that were deleted"
            )

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "is BROKEN"
        how = "exact" if self.exact else "statistics retaken over the units that stay"
        how += ", served by replay" if self.replay else ""
        return (
            f"the law of the cut {verdict} ({how}): largest deviation {self.max_error:.2e}, "
            f"relative {self.max_relative_error:.2e}, tolerance {self.tolerance:.0e}"
        )


def trace(model: nn.Module, example_inputs: Any = None, *, replay: bool = False) -> Graph:
    """Run the model once and find what can be cut from it.

    Args:
        model: any module that runs, or a Keras model; it is left untouched.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
            A Keras model takes them as Keras does, and where it knows the shape of its inputs,
            they can be left out of this and of all that follows.
        replay: offer what can be cut, though the model's own code could not run it and cannot be
            mended. `apply` then gives a static program (`Replayed`) for plans that take of it. It
            is not to be had where the code looks at values.

    Returns:
        The graph, with its program, its groups, and the axes that are frozen, with reasons.

    Raises:
        TraceError: the model does not run on these inputs, returns no tensor, or is a static
            program already.

    It runs in eval mode, on tensors that have shapes and no values; where the code looks at a
    value, it runs once more for real.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [(g.name, g.kind, g.size) for g in sc.trace(net, torch.zeros(1, 4)).groups]
    [('0', 'neuron', 8)]
    """
    if isinstance(model, FrontEnd):
        return model.traced(example_inputs)
    if not isinstance(model, nn.Module):
        raise TraceError(f"a torch.nn.Module is expected first, not {type(model).__name__}")
    if any(isinstance(module, Replayed) for module in model.modules()):
        raise TraceError(
            f"{type(model).__name__} is, or holds, a static program, in which nothing more can be "
            "cut; trace the model that it was made from, and choose all units in one plan"
        )
    with no_collection():
        graph = grouped(model, example_inputs, replay=replay)
        give_up(graph, unseen(graph, model, example_inputs))
    return graph


def grouped(model: nn.Module, example_inputs: Any, *, replay: bool) -> Graph:
    """The same, whatever numbers the code may compute from sizes."""
    graph = Graph(analyse(model, example_inputs))
    graph.replay = replay and not graph.program.looks
    settle(graph)
    give_up(graph, turning(graph))
    graph.give_up(unreached(graph))
    return graph


@contextmanager
def no_collection() -> Iterator[None]:
    """Hold the garbage collector: a trace makes many small objects and keeps nearly all of them."""
    running, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if not frozen:  # what was made counts as old at once, without being walked through
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def gate(graph: Graph, selection: Selection) -> dict[int, Intercept]:
    """Intercepts that multiply every read of the selected units by zero."""
    by_node: dict[int, list[tuple[Read, np.ndarray[Any, Any]]]] = {}
    for read in graph.analysis.reads:
        removed = selection.removed(read.axis)
        if removed.any():
            by_node.setdefault(read.position, []).append((read, removed))
    return {position: _gated(gates) for position, gates in by_node.items()}


def _gated(gates: list[tuple[Read, Any]]) -> Intercept:
    def intercept(args: list[Any]) -> list[Any]:
        for read, removed in gates:
            x = args[read.arg]
            shape = [1] * x.dim()
            shape[read.dim] = -1
            mask = torch.from_numpy(removed).to(x.device).reshape(shape)
            args[read.arg] = x.masked_fill(mask, 0)  # zero even where x is infinite
        return args

    return intercept


def statistics(graph: Graph, selection: Selection) -> dict[int, Instead]:
    """Replacements that take every statistic over the units that stay only."""
    out: dict[int, Instead] = {}
    for position in graph.analysis.statistics:
        node = graph.program.nodes[position]
        touched = (axis for ident in node.inputs for axis in graph.analysis.axes[ident])
        if any(selection.removed(axis).any() for axis in touched):
            out[position] = _retaken(graph, selection, node)
    return out


def _retaken(graph: Graph, selection: Selection, node: Node) -> Instead:
    """Run a node on what stays of its operands, and put zeros where something went."""
    axes, points = graph.analysis.axes, graph.analysis.points
    stated = resized_args(graph.analysis, node, selection)

    def run(*args: Any, **kwargs: Any) -> Any:
        small = [
            _keep(arg, axes[ref.id], selection) if isinstance(ref, Ref) else stated[i]
            for i, (arg, ref) in enumerate(zip(args, node.args, strict=True))
        ]
        result = node.op(*small, **kwargs)
        if not node.multiple:
            return spread(result, node.outputs[0])
        return [spread(*pair) for pair in zip(result, node.outputs, strict=True)]

    def spread(out: Any, ident: int | None) -> Any:
        if ident is None:
            return out
        if ident in points:  # numbers among those that stay, as they are among all
            kept = np.flatnonzero(~selection.removed(points[ident]))
            out = torch.from_numpy(kept).to(out.device)[out]
        return _spread(out, axes[ident], selection)

    return run


def _keep(tensor: torch.Tensor, axes: list[Axis], selection: Selection) -> torch.Tensor:
    for dim, axis in enumerate(axes):
        removed = selection.removed(axis)
        if removed.any():
            kept = torch.from_numpy(np.flatnonzero(~removed)).to(tensor.device)
            tensor = tensor.index_select(dim, kept)
    return tensor


def _spread(tensor: torch.Tensor, axes: list[Axis], selection: Selection) -> torch.Tensor:
    for dim, axis in enumerate(axes):
        removed = selection.removed(axis)
        if removed.any():
            kept = torch.from_numpy(np.flatnonzero(~removed)).to(tensor.device)
            shape = (*tensor.shape[:dim], len(removed), *tensor.shape[dim + 1 :])
            tensor = tensor.new_zeros(shape).index_copy(dim, kept, tensor)
    return tensor


def zeroed(graph: Graph, model: nn.Module, selection: Selection) -> dict[str, torch.Tensor] | None:
    """The weights that read the selected units, with zeros there: W·diag(g) in the model itself.

    None where the units are read by anything but a plain weight.
    """
    analysis, own = graph.analysis, model_tensors(model)
    for read in analysis.reads:
        if selection.removed(read.axis).any():
            weights = [i for i in analysis.program.nodes[read.position].inputs if i != read.value]
            names = [name for i in weights for name in analysis.read_by(i, read.axis)]
            if not names:
                return None
    out: dict[str, torch.Tensor] = {}
    for name, dim, axis in graph.slots:
        if analysis.roles.get((name, dim)) == "reads" and selection.removed(axis).any():
            removed = torch.from_numpy(selection.removed(axis)).to(own[name].device)
            if len(removed) != own[name].shape[dim]:
                return None  # the groups of a convolution read other units each
            out[name] = out.get(name, own[name]).index_fill(dim, removed.nonzero()[:, 0], 0)
    return out


def recorded_inputs(graph: Graph, example_inputs: Any) -> list[torch.Tensor]:
    """The input tensors in the order of the recording."""
    if isinstance(example_inputs, Mapping):
        names = graph.program.keywords
        if set(names) != set(example_inputs):
            raise TraceError(f"the graph was traced with the inputs {', '.join(names)}")
        example_inputs = {name: example_inputs[name] for name in names}
    return input_tensors(example_inputs)


def gated_output(graph: Graph, model: nn.Module, plan: Plan, example_inputs: Any) -> Any:
    """What the uncut model gives when every read of the plan's units is multiplied by zero."""
    selection = graph.select(plan.groups)
    with torch.no_grad(), evaluating(model):
        if graph.program.looks and plan.exact:  # other values may take another way than recorded
            weights = zeroed(graph, model, selection)
            if weights is not None:
                args, kwargs = as_call(example_inputs)
                return torch.func.functional_call(model, weights, args, kwargs)
        return graph.program.replay(
            model_tensors(model),
            recorded_inputs(graph, example_inputs),
            gate(graph, selection),
            statistics(graph, selection),
        )


def verify(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    example_inputs: Any = None,
    *,
    graph: Graph | None = None,
) -> Proof:
    """Check the law of the cut: the cut model against the original gated at its reads.

    Both run in eval mode on the example inputs; use a float64 model for a proof to rounding.

    Args:
        model: the uncut model.
        small: the cut model.
        plan: the plan that made one from the other.
        example_inputs: as for `trace`.
        graph: the trace of `model` on inputs of these shapes, if at hand.

    Returns:
        How far the two are apart; `holds` says whether rounding explains it.

    Raises:
        PlanError: the plan was not made for `model`.
        LawError: the cut model does not run, or returns another structure, or what was recorded
            does not run with the units gated.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)).double()
    >>> x = torch.randn(3, 4, dtype=torch.float64)
    >>> plan = sc.trace(net, x).plan({"0": [1, 5]})
    >>> sc.verify(net, sc.apply(net, plan), plan, x).holds
    True
    """
    plan.check(model)
    if graph is None:
        graph = trace(model, example_inputs, replay=plan.replay)
    state, drawn = torch.get_rng_state(), Drawn()
    lots = draws(graph.program)
    try:
        with drawn if lots else nullcontext():
            reference = gated_output(graph, model, plan, example_inputs)
    except RuntimeError as error:
        raise LawError(
            "there is nothing to compare with: what was recorded does not run when the units are "
            f"gated, as where values decide a shape: {error}"
        ) from error
    torch.set_rng_state(state)  # what is random even in eval mode is the same for both
    axes, selection = graph.analysis.axes, graph.select(plan.groups)
    again = drawn.kept(lots, lambda numbers, value: _keep(numbers, axes[value], selection))
    args, kwargs = as_call(example_inputs)
    try:
        with torch.no_grad(), evaluating(small), Redrawn(again) if again else nullcontext():
            result = small(*args, **kwargs)
    except Exception as error:
        raise LawError(f"the cut model does not run: {type(error).__name__}: {error}") from error
    return _compare(plan, graph.program, reference, result)


def _compare(plan: Plan, program: Program, reference: Any, result: Any) -> Proof:
    wanted, given = tensors_of(reference), tensors_of(result)
    if [tuple(t.shape) for t in wanted] != [tuple(t.shape) for t in given]:
        raise LawError("the cut model returns tensors of other shapes than the original")
    if any(tensor.is_meta for tensor in (*wanted, *given)):
        raise LawError("on the meta device there are no values to compare; verify a real model")
    tolerance = min(TOLERANCE.get(t.dtype, 1e-3) for t in wanted)
    inside = max((TOLERANCE.get(dtype, 0) for dtype in program.roundings()), default=0)
    return Proof(plan.exact, *deviation(wanted, given), max(tolerance, inside), plan.replay)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """The tensors in what a model takes or returns, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def deviation(wanted: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> tuple[float, float]:
    """The largest absolute and relative difference of tensors of equal shapes, NaN if any is.

    The relative one is over the largest absolute value of the wanted tensor.
    """
    worst, relative = 0.0, 0.0
    for a, b in zip(wanted, given, strict=True):
        a, b = a.detach().double(), b.detach().double()
        error = float((a - b).abs().max()) if a.numel() else 0.0
        scale = float(a.abs().max()) if a.numel() else 1.0
        ratio = error / scale if scale > 0 else error
        if error != error or ratio != ratio:
            return float("nan"), float("nan")
        worst, relative = max(worst, error), max(relative, ratio)
    return worst, relative
