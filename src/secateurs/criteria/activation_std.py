"""Standard deviation of the activation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import GroupBatch, GroupInfo, Spread


@dataclass(frozen=True)
class ActivationStd:
    """Θ(z) = standard deviation of the activation over all examples and positions.

    It is that of a population, √(Σ (z − μ)² / n); μ is the mean over all the data.

    Source: Molchanov et al. (2016), section 2.2, 'Activation'.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [3.0]]))
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> sc.score(net, sc.trace(net, x), [x], criterion="activation-std")["0"].tolist()
    [0.5, 1.5]
    """

    @property
    def name(self) -> str:
        return "activation-std"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"activation"})

    def init(self, group: GroupInfo) -> Spread:
        return Spread.zero(group)

    def update(self, state: Spread, batch: GroupBatch) -> Spread:
        return state.add(batch.activation.movedim(1, 2).flatten(0, 1))

    def merge(self, a: Spread, b: Spread) -> Spread:
        return a.merge(b)

    def score(self, state: Spread) -> Tensor:
        return state.variance.sqrt()
