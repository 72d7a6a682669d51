"""The oracle: how much the loss changes when the unit goes, exactly."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import GroupBatch, GroupInfo, Mean


@dataclass(frozen=True)
class Oracle:
    """`Θ(i) = |mean over examples of C_n(g_i = 0) − C_n(1)|`, computed and not estimated.

    Args:
        signed: without the absolute value: what the network does better without goes first.

    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient
    Inference (2016), section 2.1: oracle-abs, and oracle-loss where signed.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> with torch.no_grad():
    ...     net[2].weight[:, 3] = 0  # nothing reads this unit any more
    >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
    >>> cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    >>> scores = sc.score(net, sc.trace(net, x), [(x, y)], loss=cross_entropy, criterion="oracle")
    >>> float(scores["0"][3])
    0.0
    """

    signed: bool = False
    needs: frozenset[str] = frozenset({"change"})

    @property
    def name(self) -> str:
        return "oracle-loss" if self.signed else "oracle"

    def init(self, group: GroupInfo) -> Mean:
        return Mean.zero(group)

    def update(self, state: Mean, batch: GroupBatch) -> Mean:
        return state.add(batch.change)

    def merge(self, a: Mean, b: Mean) -> Mean:
        return a.merge(b)

    def score(self, state: Mean) -> Tensor:
        return state.value if self.signed else state.value.abs()
