"""What a network draws by lot even in eval mode, so that both sides of a proof draw the same.

A cut shortens the axes along which some networks draw. From one seed, the cut network and the
original would then draw other numbers, and a proof would blame the cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .trace.program import Node, Program

# What the rules follow and whose numbers depend on no tensor: of others, what they are drawn from
# has to be proved too.
_FREE = frozenset(
    f"aten.{name}"
    for name in "rand.default randn.default rand_like.default randn_like.default "
    "bernoulli_.float".split()
)

# What drew, from which distribution, of which shape -> the numbers, in the order of the draws.
Draws = dict[tuple[str, tuple[Any, ...], tuple[int, ...]], deque[torch.Tensor]]


def draws(program: Program) -> list[Node]:
    """The nodes that draw by lot, from no tensor."""
    return [node for node in program.nodes if str(node.op) in _FREE]


class Drawn(TorchDispatchMode):
    """Keeps what is drawn: the operation, its distribution and a copy of its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[str, tuple[Any, ...], torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if str(func) in _FREE:
            self.drawn.append((str(func), tuple(args[1:]), out.clone()))
        return out

    def kept(self, nodes: list[Node], keep: Callable[[torch.Tensor, int], torch.Tensor]) -> Draws:
        """What `keep` leaves of each draw, given its numbers and the value that the node made.

        Nothing, unless the nodes are what was drawn.
        """
        out: Draws = {}
        if [str(node.op) for node in nodes] == [name for name, _, _ in self.drawn]:
            for node, (name, distribution, numbers) in zip(nodes, self.drawn, strict=True):
                for value in node.outputs:  # each of these operations makes one tensor
                    if value is not None:
                        small = keep(numbers, value)
                        key = name, distribution, tuple(small.shape)
                        out.setdefault(key, deque()).append(small)
        return out


class Redrawn(TorchDispatchMode):
    """Gives what was drawn before, in that order, where the same is drawn again."""

    def __init__(self, numbers: Draws) -> None:
        super().__init__()
        self.numbers = numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})  # drawn all the same: others go on from the same seed
        if str(func) in _FREE:
            queue = self.numbers.get((str(func), tuple(args[1:]), tuple(out.shape)))
            if queue:
                out.copy_(queue.popleft())
        return out
