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
    """The module path of a parameter, or the path of a Keras variable's layer.

    >>> layer_of("features.0.weight"), layer_of("encoder/conv2d/kernel")
    ('features.0', 'encoder/conv2d')
    """
    return name[: max(name.rfind("."), name.rfind("/"), 0)]


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Module path -> its parameters among these."""
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(layer_of(name), []).append(name)
    return out


def standing(saliency: Tensor, mask: Tensor, band: tuple[float, float], *, splice: bool) -> Tensor:
    """What a threshold is held against: S/a where a weight is kept, S/b where it is gone.

    Below zero, where a division would turn the band round, it is S·a and S·b: of one saliency, a
    weight that is kept never stands lower than one that is gone.

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
    low, high = band
    kept = torch.where(saliency < 0, saliency * low, saliency / low)
    back = torch.where(saliency < 0, saliency * high, saliency / high)
    return torch.where(mask, kept, back if splice else -torch.inf)


def statistics(saliency: Named) -> dict[str, tuple[float, float]]:
    """Layer -> mean and standard deviation of the saliency over its weights and biases.

    The deviation is exactly 0 where all are equal.

    >>> statistics({"0.weight": torch.tensor([[1.0, 3.0]]), "0.bias": torch.tensor([2.0, 2.0])})
    {'0': (2.0, 0.707...)}
    """
    out = {}
    for layer, names in layers_of(saliency).items():
        values = torch.cat([saliency[name].flatten() for name in names]).double()
        alike = bool(values.min() == values.max())  # as at a start from zeros
        out[layer] = (float(values.mean()), 0.0 if alike else float(values.std(correction=0)))
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

    With `terms` of the layers this is t = μ + c·σ with one c for all, found. A layer of deviation 0
    is measured by its mean instead. What shares a mask goes by the mean of (standing − μ)/σ, and
    counts as many times as it is shared.

    Attributes:
        start, end: how many are kept at the start of the way and at its end.
        least: how many weights stay in each layer, come what may.
        shared: the parameters that share a mask, in groups.
    """

    start: int
    end: int
    least: int = 1
    shared: tuple[tuple[str, ...], ...] = ()

    def choose(self, stand: Named, terms: Terms, done: float) -> dict[str, Tensor]:
        """See `Rule.choose`."""
        held = _held(stand, self.least)
        scaled = {}
        for name, values in stand.items():
            mean, deviation = terms[layer_of(name)]
            scale = deviation or abs(mean) or 1.0
            scaled[name] = ((values - mean) / scale).masked_fill_(held[name], torch.inf)
        for first, *rest in self.shared:
            scaled[first] = torch.stack([scaled[first], *map(scaled.pop, rest)]).mean(0)
        flat = torch.cat([values.flatten() for values in scaled.values()])
        count = round(self.start + (self.end - self.start) * done)
        best = (
            _best_of_shared(flat, count, self._copies(scaled))
            if self.shared
            else _best(flat, count)
        )
        parts = best.split([values.numel() for values in scaled.values()])
        out = {
            name: part.view(values.shape)
            for (name, values), part in zip(scaled.items(), parts, strict=True)
        }
        return out | {name: out[first] for first, *rest in self.shared for name in rest}

    def _copies(self, values: Named) -> Tensor:
        """How often each of these weights counts."""
        times = {group[0]: len(group) for group in self.shared}
        return torch.cat(
            [torch.full_like(own, times.get(name, 1)).flatten() for name, own in values.items()]
        ).long()


@dataclass(frozen=True)
class Thresholds:
    """The paper's own: t = max(μ + c·σ, 0), with c given and μ and σ of the layer.

    Attributes:
        c: parameter -> c.
        least: how many weights stay in each layer, come what may.
    """

    c: Mapping[str, float]
    least: int = 1

    def choose(self, stand: Named, terms: Terms, done: float) -> dict[str, Tensor]:
        """See `Rule.choose`; there is no way to go, the thresholds hold from the start."""
        held, out = _held(stand, self.least), {}
        for name, values in stand.items():
            mean, deviation = terms[layer_of(name)]
            threshold = max(mean + self.c[name] * deviation, 0.0)
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
    """The best few weights of each layer, of those that may stay; biases alone make no layer."""
    held = {name: torch.zeros_like(values, dtype=torch.bool) for name, values in stand.items()}
    for names in layers_of(stand).values():
        weights = [name for name in names if stand[name].dim() > 1] or names
        flat = torch.cat([stand[name].flatten() for name in weights])
        best = torch.zeros_like(flat, dtype=torch.bool)
        best[flat.topk(min(least, len(flat))).indices] = True
        best &= flat > -torch.inf
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


def _best_of_shared(values: Tensor, count: int, copies: Tensor) -> Tensor:
    """The same where each counts as often as `copies` says: as many as `count` has room for."""
    order = values.argsort(descending=True, stable=True)
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[order] = copies[order].cumsum(0) <= count
    return chosen & (values > -torch.inf)
