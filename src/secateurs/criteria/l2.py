"""ℓ2 norm of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Fixed, GroupInfo, Side, pooled, suffix


@dataclass(frozen=True)
class L2(Fixed):
    """`Θ(w) = √(Σ w²)` over the weights w of a unit, pooled over all tensors.

    Args:
        side: the weights that write the unit, or those that read it: 'writes' or 'reads'.

    Source: Li et al., Pruning Filters for Efficient ConvNets (2017), section 4.4 compares it with
    the ℓ1 norm.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[0.0, -1.0], [3.0, -4.0]]))
    >>> sc.score(net, sc.trace(net, torch.zeros(1, 2)), criterion="l2")["0"].tolist()
    [1.0, 5.0]
    """

    side: Side = "writes"

    @property
    def name(self) -> str:
        return "l2" + suffix(self.side)

    def init(self, group: GroupInfo) -> Tensor:
        return pooled(group, self.side).square().sum(1).sqrt()
