"""What a criterion is: four pure functions over batches, for one group at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupInfo:
    """What a criterion may know of a group before any data is seen.

    Attributes:
        name: the group's name.
        size: how many units it has.
        weights: for each tensor that writes the units (convolution kernels, linear weights), the
            writing weights, (size, elements per unit). Tensors that read them where none writes.
        seed: a number that is the same wherever and however the scores are computed.
    """

    name: str
    size: int
    weights: tuple[Tensor, ...]
    seed: int


@dataclass(frozen=True)
class GroupBatch:
    """What one batch shows of a group; only what the criterion needs is filled in.

    Attributes:
        gradient: (examples, units): for each reader of the units, the mean over the M positions
            of ∂C/∂z · z at the operand that it reads, summed over the readers. C is the loss of
            that example alone. It is 1/M times the derivative of the loss by the unit's gate.
        activation: (examples, units): the mean over positions of the operand that the first
            reader reads.
    """

    gradient: Tensor
    activation: Tensor


@runtime_checkable
class Criterion(Protocol):
    """One importance per unit, higher = keep. States merge, so that workers can share the data.

    Attributes:
        name: how it is called.
        needs: a subset of {'gradient', 'activation'}; empty if no data is needed.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def init(self, group: GroupInfo) -> Any:
        """The state before any data."""

    def update(self, state: Any, batch: GroupBatch) -> Any:
        """The state after one more batch."""

    def merge(self, a: Any, b: Any) -> Any:
        """The state after the data of both."""

    def score(self, state: Any) -> Tensor:
        """The importance of each unit, (units,)."""


@dataclass(frozen=True)
class Mean:
    """A running sum over examples: what most criteria keep.

    Attributes:
        total: (units,) float64, the sum over the examples that were seen.
        examples: how many they are.

    >>> import torch
    >>> state = Mean(torch.zeros(2, dtype=torch.float64), 0)
    >>> state.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).value.tolist()
    [2.0, 3.0]
    """

    total: Tensor
    examples: int

    @classmethod
    def zero(cls, group: GroupInfo) -> Mean:
        """The state before any data."""
        return cls(torch.zeros(group.size, dtype=torch.float64), 0)

    def add(self, values: Tensor) -> Mean:
        """With the (examples, units) values of one more batch."""
        total = self.total.to(values.device) + values.double().sum(0)
        return Mean(total, self.examples + len(values))

    def merge(self, other: Mean) -> Mean:
        """With everything that the other has seen."""
        total = self.total + other.total.to(self.total.device)
        return Mean(total, self.examples + other.examples)

    @property
    def value(self) -> Tensor:
        """The mean over examples, (units,)."""
        return self.total / self.examples
