"""Mean activation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import GroupBatch, GroupInfo, Mean


@dataclass(frozen=True)
class Activation:
    """Θ(z) = mean over examples and positions of what the first reader of the unit reads.

    Source: Molchanov et al. (2016), section 2.2, 'Activation'.
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
