"""Empirical Fisher information of the gates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Averaged, GroupBatch


@dataclass(frozen=True)
class Fisher(Averaged):
    """`Θ_i = ½ · mean over examples of (∂C_n/∂g_i)²`.

    Where the loss is a negative log likelihood, this is about the Gauss-Newton form of ½ ∂²C/∂g_i²:
    equal in expectation over labels drawn from the network's own prediction, and so near it as far
    as that prediction is the distribution of the data's labels.

    Source: Theis et al., Faster gaze prediction with dense networks and Fisher pruning (2018),
    Δ_k = (1/2N) Σ_n g_nk², g_nk the derivative by a feature map's mask.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False),
    ...                           torch.nn.Linear(2, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.fill_(1.0), net[1].weight.copy_(torch.tensor([[2.0, 0.0]]))
    >>> x = torch.tensor([[1.0], [-1.0]])  # the derivatives are 2 and -2
    >>> scores = sc.score(net, sc.trace(net, x), [(x, x)], loss=lambda o, t: o.sum(1),
    ...                   criterion="fisher")
    >>> scores["0"].tolist()
    [2.0, 0.0]
    """

    @property
    def name(self) -> str:
        return "fisher"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gradient"})

    def each(self, batch: GroupBatch) -> Tensor:
        return batch.gradient.square() / 2
