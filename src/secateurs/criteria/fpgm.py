"""Distance from the geometric median of the filters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Fixed, GroupInfo, Side, pooled, suffix


@dataclass(frozen=True)
class Fpgm(Fixed):
    """`Θ(w_i) = Σ_j ‖w_i − w_j‖₂` over the other units j of the group.

    The unit nearest to the geometric median of all is the one that the others can stand in for.

    Args:
        side: the weights that write the unit, or those that read it: 'writes' or 'reads'.

    Source: He et al., Filter Pruning via Geometric Median (2019), equation 7.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[0.0], [1.0], [5.0]]))
    >>> sc.score(net, sc.trace(net, torch.zeros(1, 1)), criterion="fpgm")["0"].tolist()
    [6.0, 5.0, 9.0]
    """

    side: Side = "writes"

    @property
    def name(self) -> str:
        return "fpgm" + suffix(self.side)

    def init(self, group: GroupInfo) -> Tensor:
        weights = pooled(group, self.side)
        # by differences: the product form loses the small distances that matter here
        return torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
