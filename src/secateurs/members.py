"""What is told of coupled units: groups, the axes that they touch, and axes that cannot go."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .trace.balance import places
from .trace.labels import Ints
from .trace.program import owner


@dataclass(frozen=True)
class Member:
    """One axis of one tensor that a group touches.

    Attributes:
        tensor: path of the parameter or buffer, such as 'layer1.0.conv1.weight'.
        dim: which of its dimensions.
        count: how many slices along it go with each unit: 16 where a channel of 4 × 4 pixels is
            flattened.
    """

    tensor: str
    dim: int
    count: int

    def __str__(self) -> str:
        times = f" ×{self.count}" if self.count > 1 else ""
        return f"{self.tensor}[{self.dim}]{times}"


@dataclass
class Group:
    """Interchangeable units along one axis, with everything that is coupled to them.

    Attributes:
        name: the module that first writes the units.
        kind: 'channel', 'neuron', 'width', …; what a unit is called.
        size: how many units there are.
        units: (size,) their numbers among the units of all groups.
        exact: whether deleting a unit equals zeroing it at its reads. False where a statistic
            (a normalisation, a mean) is taken over the axis.
        why_inexact: the operation that takes it; empty if the group is exact.
        balance: block number of every unit, (size,), or None. A plan takes the same number of
            units from each block.
        replayed: why no cut of it can be mended in the model, where that is so and the cut is
            served by replay; see `trace`.
        multiple: as many units must stay as a multiple of this: some kernels take no other sizes.
        writes, reads, carries: the tensors' axes that make, read, or pass on the units.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8),
    ...                           torch.nn.Flatten(), torch.nn.Linear(8 * 4, 2))
    >>> group = sc.trace(net, torch.zeros(1, 3, 4, 4))["0"]
    >>> [str(axis) for axis in group.writes], [str(axis) for axis in group.reads]
    (['0.weight[0]'], ['3.weight[1] ×4'])
    """

    name: str
    kind: str
    size: int
    units: Ints
    exact: bool = True
    why_inexact: str = ""
    balance: Ints | None = None
    multiple: int = 1
    replayed: str = ""
    writes: list[Member] = field(default_factory=list)
    reads: list[Member] = field(default_factory=list)
    carries: list[Member] = field(default_factory=list)

    @property
    def members(self) -> list[str]:
        """The paths of all modules that the group touches, writers first."""
        paths = (owner(m.tensor) for m in self.axes)
        return list(dict.fromkeys(paths))

    @property
    def axes(self) -> list[Member]:
        """Every tensor's axis that the group touches: writers, then readers, then carriers."""
        return [*self.writes, *self.reads, *self.carries]

    def blocks(self) -> list[Ints]:
        """The unit indices of each balance block; one block where there is no constraint."""
        if self.balance is None:
            return [np.arange(self.size)]
        return places(self.balance)

    def allowed(self, each: int) -> int:
        """The most units, but no more than `each`, that may go from every block."""
        blocks = self.blocks()
        each = min(each, *(len(block) - 1 for block in blocks), self.size)
        while each > 0 and (self.size - each * len(blocks)) % self.multiple:
            each -= 1
        return max(each, 0)


@dataclass(frozen=True)
class Frozen:
    """A parameter axis, or a part of one, that cannot be cut, and why.

    Attributes:
        tensor: path of the parameter or buffer.
        dim: which of its dimensions.
        size: how many indices of it are frozen.
        reason: why: an input or output, a kernel axis, an operation by name, a line of code.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> print(sc.trace(net, torch.zeros(1, 4)).frozen[0])
    0.weight[1] (4): input of the network
    """

    tensor: str
    dim: int
    size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}] ({self.size}): {self.reason}"
