"""First-order Taylor expansion of the loss on feature maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import GroupBatch, GroupInfo, Mean


@dataclass(frozen=True)
class Taylor:
    """Θ(z) = mean over examples of |(1/M) Σ_m ∂C/∂z_m · z_m|.

    The mean runs over the M positions of a unit within one example; the contributions of several
    readers are summed within the example; the absolute value is taken per example, then averaged.

    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient
    Inference (2016), equations 7 and 8.
    """

    name: str = "taylor"
    needs: frozenset[str] = frozenset({"gradient"})

    def init(self, group: GroupInfo) -> Mean:
        return Mean.zero(group)

    def update(self, state: Mean, batch: GroupBatch) -> Mean:
        return state.add(batch.gradient.abs())

    def merge(self, a: Mean, b: Mean) -> Mean:
        return a.merge(b)

    def score(self, state: Mean) -> Tensor:
        return state.value
