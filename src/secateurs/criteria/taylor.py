"""First-order Taylor expansion of the loss on feature maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Averaged, GroupBatch


@dataclass(frozen=True)
class Taylor(Averaged):
    """`Θ(z) = mean over examples of |(1/M) Σ_m ∂C/∂z_m · z_m|`.

    The mean runs over the M positions of a unit within one example; the contributions of several
    readers are summed within the example; the absolute value is taken per example, then averaged.
    M counts positions at the operand that a reader reads. In the paper it counts those of the map
    after the nonlinearity: where 4 × 4 pooling comes between, Θ here is 16 times as large. A
    normalisation by group takes the factor out again, where all readers of the group share it.

    Args:
        gate: sum over the positions instead, without 1/M: `mean |∂C/∂g|`, g the unit's gate.

    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient
    Inference (2016), equations 7 and 8.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> with torch.no_grad():
    ...     net[2].weight[:, 3] = 0  # nothing reads this unit any more
    >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
    >>> cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    >>> float(sc.score(net, sc.trace(net, x), [(x, y)], loss=cross_entropy)["0"][3])
    0.0
    """

    gate: bool = False

    @property
    def name(self) -> str:
        return "taylor-gate" if self.gate else "taylor"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gradient" if self.gate else "mean_gradient"})

    def each(self, batch: GroupBatch) -> Tensor:
        return (batch.gradient if self.gate else batch.mean_gradient).abs()
