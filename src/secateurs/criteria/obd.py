"""Optimal Brain Damage on gates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import GroupBatch, GroupInfo, Spread


@dataclass(frozen=True)
class Obd:
    """`Θ_i = ½ · mean over examples of ∂²C_n/∂g_i²`, in the Gauss-Newton form, at g = 1.

    With J = ∂output/∂g and H the loss's own Hessian in the output, the form is `diag(Jᵀ H J)`: the
    second derivatives of the network itself are dropped, as in the paper. They are zero where the
    output is piecewise linear in a gate, as it is for ReLUs where a unit is read once.

    Args:
        probes: 0 computes it exactly, at one backward pass per output of the network. Otherwise
            so many times per example, a vector r of random signs gives `(Jᵀr)_i (JᵀHr)_i`, whose
            mean is the same: two backward passes each, however many outputs there are. The signs
            come from the seed and the example's own tensors, wherever it is seen.
            `Scores.error` is the standard error over all draws; it is empty after a single one. It
            counts how examples differ too: in expectation, its square is no smaller than that of
            the standard error about the exact value on the same data.

    Source: LeCun, Denker, Solla, Optimal Brain Damage (1990), s_k = ½ h_kk u_k² with the
    Levenberg-Marquardt form of h_kk, here for a gate, u_k = 1; Hutchinson (1990) for the estimate.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False),
    ...                           torch.nn.Linear(2, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.fill_(1.0), net[1].weight.copy_(torch.tensor([[3.0, 0.0]]))
    >>> x = torch.ones(1, 1)
    >>> def square(output, target):
    ...     return output.square().sum(1)  # C = 9 g², so that ½ C'' = 9
    >>> graph, data = sc.trace(net, x), [(x, x)]
    >>> sc.score(net, graph, data, loss=square, criterion="obd")["0"].tolist()
    [9.0, 0.0]
    """

    probes: int = 0

    @property
    def name(self) -> str:
        if self.probes < 2:
            return "obd-hutchinson" if self.probes else "obd"
        return f"obd-hutchinson-{self.probes}"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gauss_newton"})

    def init(self, group: GroupInfo) -> Spread:
        return Spread.zero(group)

    def update(self, state: Spread, batch: GroupBatch) -> Spread:
        return state.add(batch.gauss_newton.movedim(-1, 1).flatten(0, 1) / 2)

    def merge(self, a: Spread, b: Spread) -> Spread:
        return a.merge(b)

    def score(self, state: Spread) -> Tensor:
        return state.mean

    def error(self, state: Spread) -> Tensor | None:
        """√(s²/n), s² the unbiased variance over all n draws, (units,); None of a single draw."""
        if state.count < 2:
            return None
        return (state.squares / (state.count - 1) / state.count).sqrt()
