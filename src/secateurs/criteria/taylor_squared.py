"""Squared Taylor expansion of the loss in the gates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import GroupBatch, GroupInfo, Mean


@dataclass(frozen=True)
class TaylorSquared:
    """`Θ_i = (∂C/∂g_i)²`, or `(∂C/∂g_i − ½ Σ_j ∂²C/∂g_i∂g_j)²`, at the gates g = 1.

    C is the mean loss over all the data, and the sum runs over all gates of the network: the
    square is taken once, at the end, so that examples which disagree cancel.

    Args:
        order: 1, or 2 for the second form, by one product of the Hessian with a vector of ones.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (2019), section 3.1,
    (g_m w_m)² and (g_m w_m − ½ w_m H_m W)², here with the gates in the place of the weights.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False),
    ...                           torch.nn.Linear(2, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.fill_(1.0), net[1].weight.copy_(torch.tensor([[2.0, 0.0]]))
    >>> x = torch.ones(1, 1)
    >>> def square(output, target):
    ...     return output.square().sum(1)
    >>> graph, data = sc.trace(net, x), [(x, x)]
    >>> sc.score(net, graph, data, loss=square, criterion="taylor-squared")["0"].tolist()
    [64.0, 0.0]
    >>> sc.score(net, graph, data, loss=square, criterion="taylor-second")["0"].tolist()
    [16.0, 0.0]
    """

    order: int = 1

    @property
    def name(self) -> str:
        return "taylor-squared" if self.order == 1 else "taylor-second"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gradient"} if self.order == 1 else {"gradient", "hessian"})

    def init(self, group: GroupInfo) -> Mean:
        return Mean.zero(group)

    def update(self, state: Mean, batch: GroupBatch) -> Mean:
        if self.order == 1:
            return state.add(batch.gradient)
        return state.add(batch.gradient - batch.hessian / 2)

    def merge(self, a: Mean, b: Mean) -> Mean:
        return a.merge(b)

    def score(self, state: Mean) -> Tensor:
        return state.value.square()
