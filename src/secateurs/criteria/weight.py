"""Minimum weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Fixed, GroupInfo, Side, pooled, suffix


@dataclass(frozen=True)
class Weight(Fixed):
    """`Θ(w) = (1/|w|) Σ w²` over the weights w of a unit, pooled over all tensors.

    Args:
        side: the weights that write the unit, or those that read it: 'writes' or 'reads'.

    Source: Molchanov et al. (2016), section 2.2, 'Minimum weight'.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0] * 4, [2.0] * 4, [0.0] * 4]))
    >>> sc.score(net, sc.trace(net, torch.zeros(1, 4)), criterion="weight")["0"].tolist()
    [1.0, 4.0, 0.0]
    """

    side: Side = "writes"

    @property
    def name(self) -> str:
        return "weight" + suffix(self.side)

    def init(self, group: GroupInfo) -> Tensor:
        return pooled(group, self.side).square().mean(1)
