"""A recording that runs on any number of examples, and where the examples lie in its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import TraceError
from ..groups import Graph
from ..trace.model import input_tensors, model_tensors
from ..trace.program import Node, Ref, fill
from .fused import fused_calls
from .kernels import kernel_of

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
        values = graph.program.values
        self._bytes = [math.prod(v.shape) * v.dtype.itemsize / size for v in values]
        self._fused = dict(enumerate(fused_calls(graph.program), len(self.nodes)))
        self._kernels = [kernel_of(graph.program, position) for position in range(len(self.nodes))]
        self._kernels += [call.node.op for call in self._fused.values()]
        self._scaled = self._scaled_nodes()

    @property
    def nodes(self) -> list[Node]:
        return self.graph.program.nodes

    def node(self, position: int) -> Node:
        """A node of the program; past its end, a call of a fused kernel."""
        nodes = self.nodes
        return nodes[position] if position < len(nodes) else self._fused[position].node

    def steps(self, apart: Set[int]) -> list[int]:
        """The positions of all nodes in order, with fused calls as the one node that each is.

        A call that holds one of the nodes `apart` is taken in its parts.
        """
        calls = {
            part: position
            for position, call in self._fused.items()
            if call.parts.isdisjoint(apart)
            for part in call.parts
        }
        return list(dict.fromkeys(calls.get(i, i) for i in range(len(self.nodes))))

    @property
    def holds(self) -> bool:
        """Whether its values can be held and replayed in part: nothing changes in place."""
        return self.faithful and not any(node.op._schema.is_mutable for node in self.nodes)

    def bytes_per_example(self, value: int) -> float:
        """What a value takes in memory for each example."""
        return self._bytes[value]

    # ------------------------------------------------------------------ running
    def arguments(self, position: int, n: int) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of a node in a run on n examples."""
        if position not in self._affine:
            node = self.node(position)
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
        node = self.node(position)
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


def pick_examples(tree: Any, rows: Rows, examples: int) -> Any:
    """Some of the examples of a batch: of every tensor with so many along its first dimension."""

    def pick(tensor: Tensor) -> Tensor:
        if tensor.dim() and len(tensor) == examples:
            return _take(tensor, 0, rows if isinstance(rows, slice) else rows.to(tensor.device))
        return tensor

    return pytree.tree_map_only(Tensor, pick, tree)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a nest, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
