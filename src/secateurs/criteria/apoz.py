"""Average percentage of zeros."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Averaged, GroupBatch


@dataclass(frozen=True)
class Apoz(Averaged):
    """Θ = 1 − APoZ, the fraction of examples and positions at which the activation is not zero.

    It says something only after an activation that gives exact zeros, such as ReLU.

    Source: Hu et al., Network Trimming (2016), equation 1.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(),
    ...                           torch.nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> x = torch.tensor([[1.0], [2.0], [3.0], [-1.0]])
    >>> sc.score(net, sc.trace(net, x), [x], criterion="apoz")["0"].tolist()
    [0.75, 0.25]
    """

    @property
    def name(self) -> str:
        return "apoz"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"activation"})

    def each(self, batch: GroupBatch) -> Tensor:
        return (batch.activation != 0).double().mean(2)
