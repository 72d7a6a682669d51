"""Which elements of a program's values follow its inputs, and which of them its outputs follow.

Every operation has a map that says which elements of its result are made from marked elements of
its operands (`spread_of`). Forward from the inputs, the maps mark what varies: the rest is
constant, whatever the input. Backward from the outputs, their transposes mark what is needed: the
rest changes no output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..groups import Graph
from ..trace.program import Instead, Node, Program, Ref
from .spread import Marks, Spread, factors, is_random, spread_of


class Influence:
    """What varies and what is needed in one program, for one set of weights.

    Args:
        graph: the trace of the model.
        tensors: the model's tensors by path.
        inputs: the input tensors, as the program was recorded for.

    Attributes:
        varying: value -> (its shape), true where an element may follow the inputs; a value that
            is not here is constant.
        needed: value -> (its shape), true where an output follows an element, for those in
            `varying`.
        operands: node position -> the arguments of a linear read of which some element is a
            constant other than zero.
    """

    def __init__(self, graph: Graph, tensors: dict[str, Tensor], inputs: Sequence[Tensor]):
        self.program: Program = graph.program
        self.varying: Marks = {}
        self.needed: Marks = {}
        self.operands: dict[int, list[Any]] = {}
        self._reads = {(read.position, read.arg) for read in graph.analysis.reads}
        spreads: list[tuple[Node, Spread]] = []
        for ident in self.program.inputs:
            self.varying[ident] = torch.ones(
                self.program.values[ident].shape, dtype=torch.bool, device=inputs[0].device
            )
        followed = {
            position: self._followed(position, node, spreads)
            for position, node in enumerate(self.program.nodes)
        }
        self.program.replay(tensors, inputs, instead=followed)
        self._backward(spreads)

    def is_needed(self, value: int, like: Tensor) -> Tensor:
        """Where an output follows the elements of a value; everywhere if it is constant."""
        if value not in self.varying:
            return torch.ones_like(like, dtype=torch.bool)
        return self.needed.get(value, torch.zeros_like(like, dtype=torch.bool))

    def both_vary(self, position: int) -> bool:
        """Whether a node is a product of two operands that both follow the inputs."""
        node = self.program.nodes[position]
        return sum(ident in self.varying for ident in factors(node)) > 1

    # ------------------------------------------------------------------ forward and backward
    def _followed(self, position: int, node: Node, spreads: list[tuple[Node, Spread]]) -> Instead:
        """The node as it is, and on the side where what it gives varies."""

        def run(*args: Any, **kwargs: Any) -> Any:
            result = node.op(*args, **kwargs)
            marked = {i: self.varying[i].float() for i in node.inputs if i in self.varying}
            random = is_random(node)
            if marked or random:
                spread = spread_of(self.program, node, args, self.varying)
                spreads.append((node, spread))
                for ident, marks in zip(node.outputs, spread(marked), strict=True):
                    if ident is not None:
                        found = torch.ones_like(marks) if random else marks
                        if bool((found > 0.5).any()):
                            self.varying[ident] = found > 0.5
            self._keep(position, node, args)
            return result

        return run

    def _keep(self, position: int, node: Node, args: Sequence[Any]) -> None:
        for at, arg in enumerate(node.args):
            if (position, at) in self._reads and isinstance(arg, Ref):
                known = args[at] != 0
                if arg.id in self.varying:
                    known &= ~self.varying[arg.id]
                if bool(known.any()):
                    self.operands[position] = list(args)

    def _backward(self, spreads: list[tuple[Node, Spread]]) -> None:
        for ident in self.program.output_ids():
            if ident in self.varying:
                self.needed[ident] = torch.ones_like(self.varying[ident])
        for node, spread in reversed(spreads):
            wanted = [i for i in node.outputs if i is not None and i in self.needed]
            varying = [i for i in dict.fromkeys(node.inputs) if i in self.varying]
            if not wanted or not varying:
                continue
            with torch.enable_grad():
                marks = {
                    i: torch.zeros_like(self.varying[i], dtype=torch.float32, requires_grad=True)
                    for i in varying
                }
                made = dict(zip(node.outputs, spread(marks), strict=True))
                pulled = [(made[i], self.needed[i].float()) for i in wanted]
                pulled = [(out, need) for out, need in pulled if out.requires_grad]
                if not pulled:
                    continue
                found = torch.autograd.grad(
                    [out for out, _ in pulled],
                    [marks[i] for i in varying],
                    [need for _, need in pulled],
                    allow_unused=True,
                )
            for ident, grad in zip(varying, found, strict=True):
                if grad is not None:
                    before = self.needed.get(ident)
                    now = grad > 0.5
                    self.needed[ident] = now if before is None else before | now
