"""A recording that runs on any number of examples, and where the examples lie in its values.

A recording bakes in the batch size. Three recordings, of 5, 7 and 11 examples, tell how each number
in it depends on that size; a run on data then tells whether an example's values depend on that
example alone. Where both hold, rows of many units and examples can share one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import SecateursError, TraceError
from ..gates import TOLERANCE, deviation, trace
from ..groups import Graph
from ..trace import rules
from ..trace.labels import leaves
from ..trace.program import Node, Ref, fill
from ..trace.record import as_call, evaluating, input_tensors, model_tensors, record
from .kernels import kernel_of

SIZES = (5, 7, 11)

Rows: TypeAlias = "slice | Tensor"  # of the examples of a batch: a run, or indices


@dataclass(frozen=True)
class Layout:
    """Where the examples lie in a value: dimension `dim` is (outer, examples, inner)."""

    dim: int
    outer: int
    inner: int

    def split(self, value: Tensor) -> Tensor:
        """The value with the examples in dimension `dim + 1` of its own."""
        shape = value.shape
        return value.reshape(*shape[: self.dim], self.outer, -1, self.inner, *shape[self.dim + 1 :])

    def pick(self, value: Tensor, rows: Rows) -> Tensor:
        """The value of some examples only; a view where they are a run."""
        if self.outer == self.inner == 1:
            return _take(value, self.dim, rows)
        part = _take(self.split(value), self.dim + 1, rows)
        return part.reshape(*value.shape[: self.dim], -1, *value.shape[self.dim + 1 :])


def _take(value: Tensor, dim: int, rows: Rows) -> Tensor:
    if isinstance(rows, slice):
        return value.narrow(dim, rows.start, rows.stop - rows.start)
    return value.index_select(dim, rows)


@dataclass(frozen=True)
class Affine:
    """A number in a recording that is `slope · examples + base`."""

    slope: int
    base: int

    def at(self, n: int) -> int:
        return self.slope * n + self.base


class DiffersError(SecateursError):
    """Two recordings did not execute the same operations."""


class Recording:
    """One recording of a model, with its graph.

    Attributes:
        graph: traced on `size` examples.
        layouts: value -> where the examples lie in it; None if the recording runs on `size`
            examples only.
        why: what keeps it from running on another number; empty if nothing does.
        faithful: whether it does what the model does on other values too.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        size: int,
        affine: Mapping[int, tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
        why: str = "",
    ):
        self.graph, self.size, self.why = graph, size, why
        self.layouts: dict[int, Layout] | None = None
        self.faithful = True
        self._affine = affine or {}
        self._tensors = {name: t.detach() for name, t in model_tensors(model).items()}
        self._shared: dict[int, Tensor] | None = None
        self._kernels = [kernel_of(graph.program, position) for position in range(len(self.nodes))]
        self._scaled = self._scaled_nodes()

    @property
    def nodes(self) -> list[Node]:
        return self.graph.program.nodes

    @property
    def holds(self) -> bool:
        """Whether its values can be held and replayed in part: nothing changes in place."""
        return self.faithful and not any(node.op._schema.is_mutable for node in self.nodes)

    def bytes_per_example(self, value: int) -> float:
        """What a value takes in memory for each example."""
        known = self.graph.program.values[value]
        count = 1
        for n in known.shape:
            count *= n
        return count * known.dtype.itemsize / self.size

    # ------------------------------------------------------------------ running
    def arguments(self, position: int, n: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of a node in a run on n examples."""
        if position not in self._affine:
            node = self.nodes[position]
            return node.args, node.kwargs
        args, kwargs = self._affine[position]
        return [_at(arg, n) for arg in args], {key: _at(arg, n) for key, arg in kwargs.items()}

    def run(
        self,
        position: int,
        env: Mapping[int, Tensor],
        n: int,
        intercept: Callable[[list[Any]], list[Any]] | None = None,
        instead: Callable[..., Any] | None = None,
    ) -> list[tuple[int, Tensor]]:
        """Run one node on values of n examples: its outputs, (value, tensor)."""
        node = self.nodes[position]
        noted, noted_kwargs = self.arguments(position, n)
        args = [fill(arg, env) for arg in noted]
        if intercept is not None:
            args = intercept(args)
        kwargs = {key: fill(arg, env) for key, arg in noted_kwargs.items()}
        result = (instead or self._kernels[position])(*args, **kwargs)
        results = result if node.multiple else (result,)
        return [(out, t) for out, t in zip(node.outputs, results, strict=True) if out is not None]

    def static(self, n: int) -> dict[int, Tensor]:
        """The tensors of the model, and what is computed from them alone, for n examples."""
        program = self.graph.program
        if self._shared is None:
            self._shared = dict(program.constants)
            self._shared |= {ident: self._tensors[name] for name, ident in program.tensors.items()}
            for position in self._still(scaled=False):
                self._shared.update(self.run(position, self._shared, n))
        env = dict(self._shared)
        for position in self._still(scaled=True):
            env.update(self.run(position, env, n))
        return env

    def _still(self, *, scaled: bool) -> list[int]:
        """The nodes that do not depend on the inputs."""
        values = self.graph.program.values
        return [
            position
            for position, node in enumerate(self.nodes)
            if not any(values[out].live for out in node.outputs if out is not None)
            and (position in self._scaled) == scaled
        ]

    def _scaled_nodes(self) -> set[int]:
        """The nodes whose arguments depend on the number of examples, and what follows them."""
        touched: set[int] = set()
        found = set()
        for position, node in enumerate(self.nodes):
            if position in self._affine or touched.intersection(node.inputs):
                found.add(position)
                touched.update(out for out in node.outputs if out is not None)
        return found

    def inputs(self, call: Any) -> dict[int, Tensor]:
        """The values of the input tensors."""
        return dict(zip(self.graph.program.inputs, ordered_inputs(self.graph, call), strict=True))

    def outputs(self, env: Mapping[int, Tensor]) -> Any:
        """What the model returns, from the values of its outputs."""
        return pytree.tree_map_only(Ref, lambda ref: env[ref.id], self.graph.program.outputs)

    def values(self, call: Any, n: int) -> dict[int, Tensor]:
        """Every value of a run, all held."""
        env = self.static(n) | self.inputs(call)
        for position, node in enumerate(self.nodes):
            if any(out is not None and out not in env for out in node.outputs):
                env.update(self.run(position, env, n))
        return env


def ordered_inputs(graph: Graph, call: Any) -> list[Tensor]:
    """The input tensors in the order of the recording."""
    if isinstance(call, Mapping):
        if set(graph.program.keywords) != set(call):
            raise TraceError(
                f"the graph was traced with the inputs {', '.join(graph.program.keywords)}"
            )
        call = {name: call[name] for name in graph.program.keywords}
    return input_tensors(call)


def _at(arg: Any, n: int) -> Any:
    if isinstance(arg, Affine):
        return arg.at(n)
    return [_at(item, n) for item in arg] if isinstance(arg, list) else arg


# ---------------------------------------------------------------------- making one
def pick_examples(tree: Any, rows: Rows, examples: int) -> Any:
    """Some of the examples of a batch: of every tensor with so many along its first dimension."""

    def pick(tensor: Tensor) -> Tensor:
        if tensor.dim() and len(tensor) == examples:
            return _take(tensor, 0, rows if isinstance(rows, slice) else rows.to(tensor.device))
        return tensor

    return pytree.tree_map_only(Tensor, pick, tree)


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
    programs = [graph.program] + [
        record(model, _probe(call, examples, n), rules.supported) for n in SIZES[1:]
    ]
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


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a nest, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _close(wanted: list[Tensor], given: list[Tensor]) -> bool:
    """Whether tensors differ by rounding only; integers may differ where they round another way."""
    if [t.shape for t in wanted] != [t.shape for t in given]:
        return False
    floats = [(a, b) for a, b in zip(wanted, given, strict=True) if a.is_floating_point()]
    for a, b in floats:
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            return False
        _, relative = deviation([a[finite]], [b[finite]])
        if not relative <= TOLERANCE.get(a.dtype, 1e-3):
            return False
    return True
