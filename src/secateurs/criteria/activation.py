"""Mean activation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Averaged, GroupBatch


@dataclass(frozen=True)
class Activation(Averaged):
    """Θ(z) = mean over examples and positions of the unit's activation.

    It is read at the output of the last nonlinearity before the first reader: `Scores.sites`.

    Args:
        absolute: the mean of |z| instead.

    Source: Molchanov et al. (2016), section 2.2, 'Activation'.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-3.0]]))
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> sc.score(net, sc.trace(net, x), [x], criterion="activation")["0"].tolist()
    [1.5, -4.5]
    >>> sc.score(net, sc.trace(net, x), [x], criterion="activation-abs")["0"].tolist()
    [1.5, 4.5]
    """

    absolute: bool = False

    @property
    def name(self) -> str:
        return "activation-abs" if self.absolute else "activation"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"activation"})

    def each(self, batch: GroupBatch) -> Tensor:
        maps = batch.activation.abs() if self.absolute else batch.activation
        return maps.mean(2)
