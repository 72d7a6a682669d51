"""Empirical Fisher information of the gates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Averaged, GroupBatch


@dataclass(frozen=True)
class Fisher(Averaged):
    """`Θ_i = ½ · mean over examples of (∂C_n/∂g_i)²`.

    Where the loss is a negative log likelihood and the network fits its data, this is ½ ∂²C/∂g_i².

    Source: Theis et al., Faster gaze prediction with dense networks and Fisher pruning (2018),
    section 3.2, Δ_k = (1/2N) Σ_n g_nk².

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
