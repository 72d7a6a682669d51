"""Information gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import DataError, UnscoredError
from .base import GroupBatch, GroupInfo

# What was counted, and how: edges (units, bins − 1), and label -> (units, bins) examples.
State: TypeAlias = tuple[Tensor, dict[int, Tensor]]


@dataclass(frozen=True)
class InformationGain:
    """`Θ = H(x) + H(y) − H(x, y)` in nats, of a unit's activation x and the label y.

    x is the mean over positions of the activation, quantised by edges that lie between the
    quantiles of a calibration batch: every bin holds as many of its examples as ties allow. The
    edges are fixed before the first batch. Entropies are those of the counts with the correction
    of Miller and Madow, (occupied cells − 1) / 2N, so that Θ may be a little below zero.

    Args:
        bins: how many values x is quantised to.
        edges: rising; quantise a target that is a number, one per example, at these. Without
            them, the target must be a class, one integer per example.

    Source: Molchanov et al. (2016), section 2.2, 'Mutual information': IG(y|x). Miller, Note on
    the bias of information estimates (1955).

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.eye(2))
    >>> y = torch.arange(64) % 2  # the first unit is the label, the second says nothing of it
    >>> x = torch.stack([y.float(), (torch.arange(64) // 2 % 2).float()], 1)
    >>> scores = sc.score(net, sc.trace(net, x), [(x, y)], criterion=InformationGain(bins=2))
    >>> scores["0"].round(3).tolist()
    [0.701, -0.008]
    """

    bins: int = 8
    edges: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        at = "@" + ",".join(f"{edge:g}" for edge in self.edges) if self.edges else ""
        return "information-gain" + (f"-{self.bins}" if self.bins != 8 else "") + at

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"activation", "sample", "target"})

    def init(self, group: GroupInfo) -> State:
        if len(group.sample) < self.bins:
            raise UnscoredError(
                f"the {self.bins} bins of information gain need a calibration batch of at least "
                f"as many examples, not {len(group.sample)}"
            )
        rising = group.sample.double().sort(0).values
        at = torch.arange(1, self.bins, device=rising.device) * len(rising) // self.bins
        # between two examples of the batch; where they tie, as at zero after a ReLU, on their value
        between = (rising[at - 1] + rising[at]) / 2
        return between.T.contiguous(), {}

    def update(self, state: State, batch: GroupBatch) -> State:
        edges, seen = state
        means = batch.activation.double().mean(2).T.contiguous()
        where = torch.searchsorted(edges.to(means.device), means)
        cells = torch.nn.functional.one_hot(where, self.bins).double()  # (units, examples, bins)
        labels = self._labels(batch.target).to(means.device)
        return edges, _joined(
            seen, {label: cells[:, labels == label].sum(1) for label in labels.unique().tolist()}
        )

    def merge(self, a: State, b: State) -> State:
        return a[0], _joined(a[1], b[1])

    def score(self, state: State) -> Tensor:
        joint = torch.stack(list(state[1].values()), 1)  # (units, labels, bins)
        return _entropy(joint.sum(1)) + _entropy(joint.sum(2)) - _entropy(joint.flatten(1))

    def _labels(self, target: Tensor) -> Tensor:
        if target.dim() != 1:
            raise DataError(
                "information gain needs one label per example, (examples,), not a target of shape "
                f"{tuple(target.shape)}"
            )
        if self.edges:
            return torch.bucketize(target.double(), target.new_tensor(self.edges).double())
        if target.is_floating_point() or target.is_complex():
            raise DataError(
                f"information gain needs classes, not {target.dtype}; quantise a number with "
                "InformationGain(edges=(…))"
            )
        return target


def _joined(a: dict[int, Tensor], b: dict[int, Tensor]) -> dict[int, Tensor]:
    """The counts of both, label by label, in the order of the labels."""
    both = {label: counts.cpu() for label, counts in a.items()}
    for label, counts in b.items():
        both[label] = both[label] + counts.cpu() if label in both else counts.cpu()
    return dict(sorted(both.items()))


def _entropy(counts: Tensor) -> Tensor:
    """(units,): the entropy of each row of counts, corrected for its bias."""
    total = counts.sum(1, keepdim=True)
    plain = torch.special.entr(counts / total).sum(1)
    return plain + ((counts > 0).sum(1) - 1) / (2 * total[:, 0])
