"""Layer-adaptive magnitude."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Fixed, GroupInfo, Side, pooled, suffix


@dataclass(frozen=True)
class Lamp(Fixed):
    """`Θ(u) = ‖w_u‖² / Σ_v ‖w_v‖²` over the units v of the group with `‖w_v‖ ≥ ‖w_u‖`.

    The best unit of each group has 1, so that groups can be compared as they are.

    Args:
        side: the weights that write the unit, or those that read it: 'writes' or 'reads'.

    Source: Lee et al., Layer-adaptive sparsity for the magnitude-based pruning (2021), equation 2,
    there for single weights. Units that tie count one another.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [3.0], [-3.0]]))
    >>> sc.score(net, sc.trace(net, torch.zeros(1, 1)), criterion="lamp")["0"].round(3).tolist()
    [0.053, 0.5, 0.5]
    """

    side: Side = "writes"

    @property
    def name(self) -> str:
        return "lamp" + suffix(self.side)

    def init(self, group: GroupInfo) -> Tensor:
        energy = pooled(group, self.side).square().sum(1)
        rising = energy.sort().values
        no_less = rising.flip(0).cumsum(0).flip(0)[torch.searchsorted(rising, energy)]
        return energy / no_less.where(no_less > 0, torch.ones_like(no_less))
