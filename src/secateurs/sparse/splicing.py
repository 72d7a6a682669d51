"""One change of masks: which weights go, and which come back.

The rule of dynamic network surgery: T → 0 where S ≤ a·t, T → 1 where S > b·t, and T stays between
the two. A weight is therefore kept afterwards where its *standing* is above t: S/a of one that was
kept, S/b of one that was gone. The threshold that leaves K weights lies just below the K-th largest
standing, and no search is needed.

Source: Guo, Yao, Chen, Dynamic Network Surgery for Efficient DNNs (2016), section 3.2, equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Named: TypeAlias = Mapping[str, Tensor]
Terms: TypeAlias = Mapping[str, tuple[float, float]]


def layer_of(name: str) -> str:
    """The module path of a parameter."""
    return name.rpartition(".")[0]


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Module path -> its parameters among these."""
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(layer_of(name), []).append(name)
    return out


def standing(saliency: Tensor, mask: Tensor, band: tuple[float, float], *, splice: bool) -> Tensor:
    """What a threshold is held against: S/a where a weight is kept, S/b where it is gone.

    Args:
        saliency, mask: of one shape.
        band: (a, b), the parts of the threshold at which a weight goes and comes back.
        splice: whether anything may come back.

    >>> s, kept = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([True, False, False])
    >>> (standing(s, kept, (0.9, 1.1), splice=True) > 1).tolist()
    [True, False, True]
    >>> (standing(s, kept, (0.9, 1.1), splice=False) > 1).tolist()
    [True, False, False]
    """
    gone = saliency / band[1] if splice else torch.full_like(saliency, -torch.inf)
    return torch.where(mask, saliency / band[0], gone)


def statistics(saliency: Named) -> dict[str, tuple[float, float]]:
    """Layer -> mean and standard deviation of the saliency over its weights and biases.

    >>> statistics({"0.weight": torch.tensor([[1.0, 3.0]]), "0.bias": torch.tensor([2.0, 2.0])})
    {'0': (2.0, 0.707...)}
    """
    out = {}
    for layer, names in layers_of(saliency).items():
        values = torch.cat([saliency[name].flatten() for name in names]).double()
        out[layer] = (float(values.mean()), float(values.std(correction=0)))
    return out


class Rule(Protocol):
    """How a pool of weights chooses what it keeps."""

    def choose(self, stand: Named, terms: Terms, done: float) -> dict[str, Tensor]:
        """The masks after a change.

        Args:
            stand: parameter -> the standing of its weights.
            terms: layer -> (mean, deviation) by which layers are made comparable.
            done: how much of the way to the target is to be gone by now, 0 to 1.
        """


@dataclass(frozen=True)
class Count:
    """The best are kept, of all in the pool together.

    With `terms` of the layers this is t = μ + c·σ with one c for all, found.

    Attributes:
        start, end: how many are kept at the start of the way and at its end.
        least: how many weights stay in each layer, come what may.
    """

    start: int
    end: int
    least: int = 1

    def choose(self, stand: Named, terms: Terms, done: float) -> dict[str, Tensor]:
        """See `Rule.choose`."""
        held = _held(stand, self.least)
        scaled = {}
        for name, values in stand.items():
            mean, deviation = terms[layer_of(name)]
            scaled[name] = ((values - mean) / max(deviation, 1e-30)).masked_fill_(
                held[name], torch.inf
            )
        flat = torch.cat([values.flatten() for values in scaled.values()])
        best = _best(flat, round(self.start + (self.end - self.start) * done))
        parts = best.split([values.numel() for values in scaled.values()])
        return {
            name: part.view(values.shape)
            for (name, values), part in zip(scaled.items(), parts, strict=True)
        }


@dataclass(frozen=True)
class Thresholds:
    """The paper's own: t = max(μ + c·σ, 0), with c given for each layer.

    Attributes:
        c: layer -> c.
        least: how many weights stay in each layer, come what may.
    """

    c: Mapping[str, float]
    least: int = 1

    def choose(self, stand: Named, terms: Terms, done: float) -> dict[str, Tensor]:
        """See `Rule.choose`; there is no way to go, the thresholds hold from the start."""
        held, out = _held(stand, self.least), {}
        for name, values in stand.items():
            mean, deviation = terms[layer_of(name)]
            threshold = max(mean + self.c[layer_of(name)] * deviation, 0.0)
            out[name] = (values > threshold) | held[name]
        return out


@dataclass(frozen=True)
class Pattern:
    """At most n of every m neighbours along an axis are kept.

    Attributes:
        n, m: the pattern.
        axes: parameter -> the dimension along which m weights are neighbours.
    """

    n: int
    m: int
    axes: Mapping[str, int]

    def choose(self, stand: Named, terms: Terms, done: float) -> dict[str, Tensor]:
        """See `Rule.choose`."""
        n = round(self.m + (self.n - self.m) * done)
        return {name: self._of(values, n, self.axes[name]) for name, values in stand.items()}

    def _of(self, values: Tensor, n: int, axis: int) -> Tensor:
        groups = values.movedim(axis, -1).unflatten(-1, (-1, self.m))
        first = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, first, True)
        chosen &= groups > -torch.inf  # nothing comes back that may not
        return chosen.flatten(-2).movedim(-1, axis).contiguous()


def _held(stand: Named, least: int) -> dict[str, Tensor]:
    """The best few weights of each layer; biases alone would make no layer."""
    held = {name: torch.zeros_like(values, dtype=torch.bool) for name, values in stand.items()}
    for names in layers_of(stand).values():
        weights = [name for name in names if stand[name].dim() > 1] or names
        flat = torch.cat([stand[name].flatten() for name in weights])
        best = torch.zeros_like(flat, dtype=torch.bool)
        best[flat.topk(min(least, len(flat))).indices] = True
        for name, part in zip(
            weights, best.split([stand[n].numel() for n in weights]), strict=True
        ):
            held[name] = part.view(stand[name].shape)
    return held


def _best(values: Tensor, count: int) -> Tensor:
    """Which are the `count` largest; of equal ones the first; never one at −∞."""
    if count >= len(values):
        return values > -torch.inf
    limit = values.kthvalue(len(values) - count).values
    chosen = values > limit
    ties = (
        (values == limit).nonzero().flatten() if limit > -torch.inf else values.new_zeros(0).long()
    )
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen
