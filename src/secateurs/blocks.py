"""Residual blocks: what is added to the trunk of a network, found in the additions that ran.

An addition s + f is residual where f is made from s: from s itself, or from a value that s carries.
The branch is f, and a block without it leaves the trunk as it is.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ConfigError, TraceError, nearest
from .members import Group
from .trace.analyse import Read
from .trace.labels import Axis, leaves
from .trace.program import Intercept, Ref
from .trace.rules import is_affine, is_move, op_name

if TYPE_CHECKING:
    from .groups import Graph


@dataclass
class Block(Group):
    """Residual branches that are skipped together: a group of one unit, whose gate multiplies them.

    A plan cannot cut it: no axis shrinks. `score` and `oracle` take it among their `groups`.

    Attributes:
        branches: the names of the branches.

    >>> import torch, secateurs as sc
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.stem, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)
    ...         self.a, self.b = (torch.nn.Sequential(
    ...             torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8)) for _ in "ab")
    ...     def forward(self, x):
    ...         x = self.stem(x)
    ...         x = x + self.a(x)
    ...         return self.head(x + self.b(x))
    >>> net, x, y = Net(), torch.randn(16, 4), torch.randint(2, (16,))
    >>> graph = sc.trace(net, x)
    >>> [block.name for block in graph.blocks]
    ['a', 'b']
    >>> loss = torch.nn.CrossEntropyLoss(reduction="none")
    >>> found = sc.oracle(net, graph, [(x, y)], loss=loss, groups=graph.blocks)
    >>> {name: change.shape for name, change in found.loss.items()}
    {'a': (1,), 'b': (1,)}
    """

    branches: tuple[str, ...] = ()


def block(name: str, branches: Iterable[str]) -> Block:
    """A block of these branches."""
    return Block(name, "block", 1, np.zeros(0, dtype=np.int64), branches=tuple(branches))


def join(graph: Graph, paths: Iterable[str]) -> list[Block]:
    """One block for each path: all branches whose names lie at or under it.

    Raises:
        ConfigError: no branch lies under one of the paths.
    """
    out = []
    for path in paths:
        own = [name for name in graph.branches if f"{name}.".startswith(f"{path}.")]
        if not own:
            raise ConfigError(
                f"no residual branch lies under {path!r}{nearest(path, graph.branches)}"
            )
        out.append(block(path, own))
    return out


def chosen(graph: Graph, groups: Iterable[Group] | None) -> list[Group]:
    """The groups that are asked for: all that can be cut, unless some are named.

    Raises:
        ConfigError: none is given, two have one name, or one is of another network.
    """
    if groups is None:
        return graph.groups
    out = list(groups)
    if not out:
        raise ConfigError("groups= holds no group; a network without residual sums has no blocks")
    own = {group.name: group for group in graph.groups}
    for i, group in enumerate(out):
        if any(group.name == other.name for other in out[:i]):
            raise ConfigError(f"two of groups= are called {group.name!r}; ask for each by itself")
        if isinstance(group, Block):
            reads_of(graph, group)
        elif group.name not in own or own[group.name].size != group.size:
            hint = nearest(group.name, own)
            raise ConfigError(f"group {group.name!r} is none of this graph{hint}")
    return out


def reads_of(graph: Graph, group: Block) -> list[Read]:
    """Where a block's branches enter the trunk, in any trace of the network.

    Raises:
        TraceError: this trace has no such branch.
    """
    for name in group.branches:
        if name not in graph.branches:
            raise TraceError(
                f"the network has no residual branch {name!r} for this input shape; use inputs "
                f"like the example inputs{nearest(name, graph.branches)}"
            )
    return [graph.branches[name] for name in group.branches]


def skip(graph: Graph, group: Block) -> dict[int, Intercept]:
    """Intercepts that multiply a block's branches by zero."""
    return {read.position: _skipped(read.arg) for read in reads_of(graph, group)}


def _skipped(arg: int) -> Intercept:
    def intercept(args: list[Any]) -> list[Any]:
        args[arg] = args[arg].new_zeros(args[arg].shape)  # zero even where it is infinite
        return args

    return intercept


def branches(graph: Graph) -> dict[str, Read]:
    """Every residual branch by name, in the order in which they enter the trunk.

    A branch is named by the innermost module that holds its weights, those left aside that other
    branches use too.
    """
    found = list(_Search(graph).found())
    uses = Counter(weight for weights, _ in found for weight in weights)
    out: dict[str, Read] = {}
    for weights, read in found:
        name = _holder({weight for weight in weights if uses[weight] == 1} or weights)
        again = sum(known == name or known.startswith(f"{name}#") for known in out)
        out[f"{name}#{again + 1}" if again else name] = read
    return out


def _holder(weights: set[str]) -> str:
    """The innermost module that holds all of these weights."""
    paths = [weight.split(".")[:-1] for weight in weights]
    shared = itertools.takewhile(lambda same: len(set(same)) == 1, zip(*paths, strict=False))
    return ".".join(same[0] for same in shared) or "the model"


def _free(axes: list[Axis]) -> int | None:
    """The last dimension that does not hold the examples."""
    free = [d for d, axis in enumerate(axes) if not any(leaf.batch for leaf in leaves(axis))]
    return free[-1] if free else None


class _Search:
    """Goes through the additions of a program in order."""

    def __init__(self, graph: Graph):
        self.graph, self.program = graph, graph.program
        self.made: dict[int, int] = {}  # value -> the node that makes it
        self.past: dict[int, int] = {}  # value -> all that it is made from, a bit for each value
        self.trunk: dict[int, int] = {}  # what a residual addition gives -> its trunk
        for position, node in enumerate(self.program.nodes):
            before = 0
            for value in node.inputs:
                before |= self.past.get(value, 0) | 1 << value
            for out in node.outputs:
                if out is not None and out not in node.inputs:
                    self.made.setdefault(out, position)
                    self.past[out] = self.past.get(out, 0) | before

    def found(self) -> Iterator[tuple[set[str], Read]]:
        """The weights of each residual branch, and where it is added."""
        axes = self.graph.analysis.axes
        for position, node in enumerate(self.program.nodes):
            sides = [arg.id for arg in node.args[:2] if isinstance(arg, Ref)]
            if op_name(node.op) != "add" or len(sides) < 2 or not self._alike(*sides):
                continue
            arg, weights = self._branch(sides)
            dim = _free(axes[sides[arg]])
            if weights and dim is not None:
                self.trunk |= {out: sides[1 - arg] for out in node.outputs if out is not None}
                yield weights, Read(position, arg, sides[arg], dim, axes[sides[arg]][dim])

    def _alike(self, one: int, other: int) -> bool:
        a, b = self.program.values[one], self.program.values[other]
        return a.live and b.live and a.shape == b.shape

    def _branch(self, sides: list[int]) -> tuple[int, set[str]]:
        """Which side of an addition is a branch of the other, and its weights.

        There are none where neither is one, or either could be.
        """
        for affine in (False, True):
            found = [(i, self._leaves(sides[1 - i], sides[i], affine)) for i in (0, 1)]
            own = [one for one in found if one[1]]
            if own:
                return own[0] if len(own) == 1 else (0, set())
        return 0, set()

    def _leaves(self, trunk: int, branch: int, affine: bool) -> set[str]:
        """The weights of a branch that leaves the trunk; none if it does not.

        Where the trunk comes as it is, any branch with weights will do. Where it comes through a
        shortcut of its own, such as a convolution, the branch is not such a shortcut too, and its
        weights are used nowhere else: the sums within a recurrent cell are no residual ones.
        """
        past = self.past.get(branch, 0)
        start = next((v for v in self._carried(trunk, affine) if past >> v & 1), None)
        if start is None or (affine and start in self._carried(branch, True)):
            return set()
        inside = self._inside(start, branch)
        weights = self._weights(inside)
        if affine and weights & self._weights(set(range(len(self.program.nodes))) - inside):
            return set()
        return weights

    def _carried(self, value: int, affine: bool) -> Iterator[int]:
        """The values that a value is, moved or with branches added; or is an affine image of."""
        while True:
            yield value
            if value in self.trunk:
                value = self.trunk[value]
                continue
            if value not in self.made:
                return
            node = self.program.nodes[self.made[value]]
            live = {i for i in node.inputs if self.program.values[i].live}
            if len(live) != 1 or not (is_affine(node.op) if affine else is_move(node.op)):
                return
            (value,) = live

    def _inside(self, start: int, branch: int) -> set[int]:
        """The nodes on the ways from one value to another."""
        past = self.past[branch] | 1 << branch
        return {
            position
            for position, node in enumerate(self.program.nodes)
            if any(
                out is not None and past >> out & 1 and self.past[out] >> start & 1
                for out in node.outputs
            )
        }

    def _weights(self, nodes: set[int]) -> set[str]:
        """The parameters of more than one dimension that some nodes take, on whatever way."""
        program, used = self.program, 0
        for position in nodes:
            for value in program.nodes[position].inputs:
                if not program.values[value].live:
                    used |= self.past.get(value, 0) | 1 << value
        return {
            name
            for name, ident in program.tensors.items()
            if used >> ident & 1
            and name in program.parameters
            and len(program.values[ident].shape) > 1
        }
