"""Mean activation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import GroupBatch, GroupInfo, Mean


@dataclass(frozen=True)
class Activation:
    """Θ(z) = mean over examples and positions of what the first reader of the unit reads.

    Source: Molchanov et al. (2016), section 2.2, 'Activation'.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [3.0]]))
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> sc.score(net, sc.trace(net, x), [x], criterion="activation")["0"].tolist()
    [1.5, 4.5]
    """

    name: str = "activation"
    needs: frozenset[str] = frozenset({"activation"})

    def init(self, group: GroupInfo) -> Mean:
        return Mean.zero(group)

    def update(self, state: Mean, batch: GroupBatch) -> Mean:
        return state.add(batch.activation)

    def merge(self, a: Mean, b: Mean) -> Mean:
        return a.merge(b)

    def score(self, state: Mean) -> Tensor:
        return state.value
