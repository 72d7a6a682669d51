"""Make the recording for inputs of one kind, and try whether its examples are independent.

A recording bakes in the batch size. Three recordings, of 5, 7 and 11 examples, tell how each number
in it depends on that size; a run on data then tells whether an example's values depend on that
example alone. Where both hold, rows of many units and examples can share one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import SecateursError, TraceError
from ..frontend import recorded
from ..gates import TOLERANCE, deviation, trace
from ..groups import Graph
from ..trace.labels import leaves
from ..trace.model import as_call, input_tensors, model_tensors
from ..trace.modes import evaluating
from .recording import Affine, Layout, Recording, ordered_inputs, pick_examples, tensors_in

SIZES = (5, 7, 11)


class DiffersError(SecateursError):
    """Two recordings did not execute the same operations."""


def recording_for(model: nn.Module, call: Any, groups: Mapping[str, int]) -> Recording:
    """The best recording there is for inputs like these.

    Args:
        model: in eval mode.
        call: as `trace` takes it.
        groups: name -> size of the groups that it must have.

    Raises:
        TraceError: the model does not run, or has other groups on these inputs.
    """
    examples = len(input_tensors(call)[0])
    try:
        made = _scaled(model, call, examples)
        _check_groups(made.graph, groups)
    except SecateursError as error:
        made = Recording(model, trace(model, call), examples, why=str(error))
        _check_groups(made.graph, groups)
        made.faithful = replays(model, made.graph, call)
        if made.faithful and not made.holds:
            made.why = "the model changes values in place that something else still reads"
    return made


def replays(model: nn.Module, graph: Graph, call: Any) -> bool:
    """Whether a recording does what the model does, on other values than it was made with."""
    if graph.program.looks:
        return False
    examples = len(input_tensors(call)[0])
    other = _probe(call, examples, examples)
    args, kwargs = as_call(other)
    with torch.no_grad(), evaluating(model):
        try:
            found = graph.program.replay(model_tensors(model), ordered_inputs(graph, other))
        except (RuntimeError, IndexError, ValueError):
            return False
        return _close(tensors_in(model(*args, **kwargs)), tensors_in(found))


def _check_groups(graph: Graph, groups: Mapping[str, int]) -> None:
    if {group.name: group.size for group in graph.groups} != dict(groups):
        raise TraceError(
            "the network has other groups for this input shape than for the traced one; "
            "use inputs like the example inputs"
        )


def _scaled(model: nn.Module, call: Any, examples: int) -> Recording:
    """A recording that runs on any number of examples.

    Raises:
        DiffersError: the operations, or what they compute, depend on the other examples.
    """
    first = _probe(call, examples, SIZES[0])
    graph = trace(model, first)
    if graph.program.looks:
        raise DiffersError("the model looks at values, and may run otherwise for others")
    if any(node.op._schema.is_mutable for node in graph.program.nodes):
        raise DiffersError("the model changes values in place that something else still reads")
    programs = [graph.program] + [recorded(model, _probe(call, examples, n)) for n in SIZES[1:]]
    if len({len(p.nodes) for p in programs}) + len({len(p.values) for p in programs}) > 2:
        raise DiffersError("the operations that run depend on the number of examples")
    affine = {}
    for position, nodes in enumerate(zip(*(p.nodes for p in programs), strict=True)):
        if len({(n.op, n.inputs, n.outputs, n.multiple) for n in nodes}) > 1:
            raise DiffersError("the operations that run depend on the number of examples")
        args = tuple(_general(list(one)) for one in zip(*(n.args for n in nodes), strict=True))
        kwargs = {key: _general([n.kwargs[key] for n in nodes]) for key in nodes[0].kwargs}
        if args != nodes[0].args or kwargs != nodes[0].kwargs:
            affine[position] = (args, kwargs)
    for ident, tensor in graph.program.constants.items():
        if not all(_same(tensor, p.constants.get(ident)) for p in programs[1:]):
            raise DiffersError("a constant of the code depends on the examples")
    made = Recording(model, graph, SIZES[0], affine)
    made.layouts = _check_examples(made, model, call, examples)
    return made


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and bool(torch.equal(a, b))


def _general(args: list[Any]) -> Any:
    """One argument in three recordings as a function of the number of examples."""
    first, second, third = args
    if isinstance(first, (list, tuple)) and len(first) == len(second) == len(third):
        return [_general(list(items)) for items in zip(*args, strict=True)]
    if first == second == third:
        return first
    if all(type(arg) is int for arg in args):
        slope, rest = divmod(second - first, SIZES[1] - SIZES[0])
        found = Affine(slope, first - slope * SIZES[0])
        if not rest and found.at(SIZES[2]) == third:
            return found
    raise DiffersError(
        f"an operation takes {first!r}, {second!r} and {third!r} as examples are added"
    )


def _probe(call: Any, examples: int, n: int) -> Any:
    """n examples, no two alike, made from those of a batch."""
    some = pick_examples(call, torch.arange(n) % examples, examples)

    def vary(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != n:
            return tensor
        if tensor.is_floating_point():
            factors = 1 + torch.arange(n, dtype=tensor.dtype, device=tensor.device) / 10
            return tensor * factors.reshape(-1, *[1] * (tensor.dim() - 1))
        rolled = [t.roll(i, -1) if t.dim() else t for i, t in enumerate(tensor)]
        return torch.stack(rolled)

    return pytree.tree_map_only(Tensor, vary, some)


def _check_examples(
    made: Recording, model: nn.Module, call: Any, examples: int
) -> dict[int, Layout]:
    """Where the examples lie in each value, checked on data.

    Raises:
        DiffersError: an example's values depend on the other examples, or the recording does not do
            what the model does.
    """
    n, m = SIZES[:2]
    batch = _probe(call, examples, n)
    rows = (3 * torch.arange(m) + 1) % n
    args, kwargs = as_call(batch)
    with torch.no_grad():
        one = made.values(batch, n)
        two = made.values(pick_examples(batch, rows, n), m)
        given = model(*args, **kwargs)
    if not _close(tensors_in(given), tensors_in(made.outputs(one))):
        raise DiffersError("the recording does not give what the model gives: it looks at values")
    layouts = {}
    values = made.graph.program.values
    for ident in one:
        if not values[ident].live:
            continue
        layout = _layout(made.graph, ident)
        if layout is None:
            alike = _close([one[ident]], [two[ident]])
        else:
            layouts[ident] = layout
            alike = _close([layout.pick(one[ident], rows.to(one[ident].device))], [two[ident]])
        if not alike:
            raise DiffersError("the model mixes the examples of a batch")
    return layouts


def _layout(graph: Graph, value: int) -> Layout | None:
    """Where the analysis saw the batch; None if nowhere, or twice."""
    found = []
    for dim, axis in enumerate(graph.analysis.axes[value]):
        outer, inner, seen = 1, 1, False
        for leaf in leaves(axis):
            if leaf.batch:
                seen = True
            elif seen:
                inner *= leaf.size
            else:
                outer *= leaf.size
        if seen:
            found.append(Layout(dim, outer, inner))
    return found[0] if len(found) == 1 else None


def _close(wanted: list[Tensor], given: list[Tensor]) -> bool:
    """Whether tensors differ by rounding only; integers may differ where they round another way."""
    if [t.shape for t in wanted] != [t.shape for t in given]:
        return False
    floats = [(a, b) for a, b in zip(wanted, given, strict=True) if a.is_floating_point()]
    for a, b in floats:
        if torch.equal(a, b):
            continue
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            return False
        if not finite.all():
            a, b = a[finite], b[finite]
        _, relative = deviation([a], [b])
        if not relative <= TOLERANCE.get(a.dtype, 1e-3):
            return False
    return True
