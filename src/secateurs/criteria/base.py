"""What a criterion is: four pure functions over batches, for one group at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from ..errors import UnscoredError

Side: TypeAlias = Literal["writes", "reads"]

NEEDS = frozenset(
    "gradient mean_gradient hessian gauss_newton activation sample target change".split()
)
_NOTHING = torch.zeros(0)


@dataclass(frozen=True)
class GroupInfo:
    """What a criterion may know of a group before any data is seen.

    Attributes:
        name: the group's name.
        size: how many units it has.
        writes: for each tensor that writes the units (convolution kernels, linear weights), the
            weights that write each unit, (size, elements per unit).
        reads: the same for each tensor that reads the units.
        scales: the same for each scale of a normalisation that the units pass.
        seed: a number that is the same wherever and however the scores are computed.
        sample: (examples, units), the mean over positions of the activation for the examples of
            a calibration batch; the same on all workers. Empty unless 'sample' is needed.
    """

    name: str
    size: int
    writes: tuple[Tensor, ...] = ()
    reads: tuple[Tensor, ...] = ()
    scales: tuple[Tensor, ...] = ()
    seed: int = 0
    sample: Tensor = _NOTHING


@dataclass(frozen=True)
class GroupBatch:
    """What one batch shows of a group; only what the criterion needs is filled in.

    C_n is the loss of example n alone, and g the gates: one factor for each unit of the network
    in each example, at each operand where a reader reads the unit. They are all 1.

    Attributes:
        gradient: (examples, units): ∂C_n/∂g, summed over the readers.
        mean_gradient: (examples, units): for each reader of the unit, the mean over the M
            positions of ∂C_n/∂z · z at the operand that it reads, summed over the readers. It is
            1/M times what this reader adds to `gradient`.
        hessian: (examples, units): Σ_j ∂²C_n/∂g_i∂g_j over all gates j of the network.
        gauss_newton: (examples, units, draws): the Gauss-Newton form of ∂²C_n/∂g_i², either exact,
            (…, 1), or so many independent estimates of it.
        activation: (examples, units, positions): the map at the one place where the group is
            looked at, see `Scores.sites`.
        target: (examples, …): the second of a pair (input, target).
        change: (examples, units): C_n(g_i = 0) − C_n(1).
    """

    gradient: Tensor = _NOTHING
    mean_gradient: Tensor = _NOTHING
    hessian: Tensor = _NOTHING
    gauss_newton: Tensor = _NOTHING
    activation: Tensor = _NOTHING
    target: Tensor = _NOTHING
    change: Tensor = _NOTHING


@runtime_checkable
class Criterion(Protocol):
    """One importance per unit, higher = keep. States merge, so that workers can share the data.

    Attributes:
        name: how it is called; it tells apart criteria of other options.
        needs: which fields of `GroupBatch` it looks at, and 'sample'; empty if no data is needed.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def init(self, group: GroupInfo) -> Any:
        """The state before any data.

        Raises:
            UnscoredError: this group cannot be scored; it is left out, for the reason given.
        """

    def update(self, state: Any, batch: GroupBatch) -> Any:
        """The state after one more batch."""

    def merge(self, a: Any, b: Any) -> Any:
        """The state after the data of both."""

    def score(self, state: Any) -> Tensor:
        """The importance of each unit, (units,)."""


@runtime_checkable
class Estimate(Criterion, Protocol):
    """A criterion that draws numbers, and says how far off it may be.

    Attributes:
        probes: how many estimates of `GroupBatch.gauss_newton` each example gives; 0 is exact.
    """

    @property
    def probes(self) -> int: ...

    def error(self, state: Any) -> Tensor | None:
        """The standard error of each unit's importance, (units,); None if too little was drawn."""


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


@dataclass(frozen=True)
class Spread:
    """A running mean and variance over values, by updates that lose no digits.

    Attributes:
        count: how many values each unit has shown.
        mean: (units,) float64, their mean.
        squares: (units,) float64, the sum of their squared distances from the mean.

    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances (1982), equation 2.1.

    >>> import torch
    >>> zero = Spread(0, torch.zeros(1).double(), torch.zeros(1).double())
    >>> zero.add(torch.tensor([[1.0], [2.0]])).add(torch.tensor([[6.0]])).variance.tolist()
    [4.666666666666667]
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def zero(cls, group: GroupInfo) -> Spread:
        """The state before any data."""
        nothing = torch.zeros(group.size, dtype=torch.float64)
        return cls(0, nothing, nothing)

    def add(self, values: Tensor) -> Spread:
        """With the (values, units) of one more batch."""
        values = values.double()
        mean = values.mean(0)
        return self.merge(Spread(len(values), mean, (values - mean).square().sum(0)))

    def merge(self, other: Spread) -> Spread:
        """With everything that the other has seen."""
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        mean, squares = self.mean.to(other.mean.device), self.squares.to(other.mean.device)
        apart = other.mean - mean
        return Spread(
            count,
            mean + apart * (other.count / count),
            squares + other.squares + apart.square() * (self.count * other.count / count),
        )

    @property
    def variance(self) -> Tensor:
        """Of the values as a population, (units,)."""
        return self.squares / self.count


class Fixed(ABC):
    """A criterion that looks at no data: its state is its score."""

    needs: frozenset[str] = frozenset()

    @abstractmethod
    def init(self, group: GroupInfo) -> Tensor:
        """The importance of each unit, (units,)."""

    def update(self, state: Tensor, batch: GroupBatch) -> Tensor:
        return state

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        return a

    def score(self, state: Tensor) -> Tensor:
        return state


class Averaged(ABC):
    """A criterion that is a mean over examples of what one example says."""

    @abstractmethod
    def each(self, batch: GroupBatch) -> Tensor:
        """The importance of each unit by each example alone, (examples, units)."""

    def init(self, group: GroupInfo) -> Mean:
        return Mean.zero(group)

    def update(self, state: Mean, batch: GroupBatch) -> Mean:
        return state.add(self.each(batch))

    def merge(self, a: Mean, b: Mean) -> Mean:
        return a.merge(b)

    def score(self, state: Mean) -> Tensor:
        return state.value


def pooled(group: GroupInfo, side: Side | Literal["scales"]) -> Tensor:
    """All weights that write (or read, or scale) each unit, (units, elements) in float64.

    Coupled weights become one number per unit in one way, the same for every criterion that looks
    at weights: the tensors of one side are pooled element by element, as if each unit had one long
    vector of weights. Each tensor counts by how many weights it has for a unit.

    Raises:
        UnscoredError: the group has no such weights.

    >>> import torch
    >>> pooled(GroupInfo("a", 2, writes=(torch.ones(2, 1), torch.zeros(2, 2))), "writes").tolist()
    [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    tensors: tuple[Tensor, ...] = getattr(group, side)
    if not tensors:
        what = "no normalisation scales" if side == "scales" else f"no weight {side}"
        raise UnscoredError(f"{what} all of its units")
    return torch.cat([tensor.double() for tensor in tensors], dim=1)


def suffix(side: Side) -> str:
    """What tells the name of a criterion on the reading weights from one on the writing."""
    return "" if side == "writes" else "-reads"
