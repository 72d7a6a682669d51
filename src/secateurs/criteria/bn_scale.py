"""Scale of the normalisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Fixed, GroupInfo, pooled


@dataclass(frozen=True)
class BnScale(Fixed):
    """`Θ(γ) = mean |γ|` over the scales of all normalisations that the unit passes.

    Groups that pass none (a network without BatchNorm) are not scored.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming (2017),
    section 3, where training drives γ towards zero first.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2),
    ...                           torch.nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = net[1].weight.copy_(torch.tensor([-2.0, 1.0]))
    >>> sc.score(net, sc.trace(net, torch.zeros(1, 2)), criterion="bn-scale")["0"].tolist()
    [2.0, 1.0]
    """

    @property
    def name(self) -> str:
        return "bn-scale"

    def init(self, group: GroupInfo) -> Tensor:
        return pooled(group, "scales").abs().mean(1)
