"""Minimum weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import GroupBatch, GroupInfo


@dataclass(frozen=True)
class Weight:
    """`Θ(w) = (1/|w|) Σ w²` over the weights that write a unit, all writers pooled.

    Source: Molchanov et al. (2016), section 2.2, 'Minimum weight'.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0] * 4, [2.0] * 4, [0.0] * 4]))
    >>> sc.score(net, sc.trace(net, torch.zeros(1, 4)), criterion="weight")["0"].tolist()
    [1.0, 4.0, 0.0]
    """

    name: str = "weight"
    needs: frozenset[str] = frozenset()

    def init(self, group: GroupInfo) -> Tensor:
        return torch.cat([w.double() for w in group.weights], dim=1).square().mean(1)

    def update(self, state: Tensor, batch: GroupBatch) -> Tensor:
        return state

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        return a

    def score(self, state: Tensor) -> Tensor:
        return state
