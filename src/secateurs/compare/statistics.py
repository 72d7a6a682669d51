"""Rank correlation of a criterion with the oracle, and how sure it is.

Spearman's ρ and Kendall's τ_b (both allow for ties), as in table 1 of Molchanov et al. 2016: within
each layer and their mean, over all layers with scores as they are, and over all layers with each
layer's scores divided by their ℓ2 norm. The oracle itself is never scaled.

**Intervals** are percentile bootstraps: units are drawn with replacement within their layer, so
that every draw has as many of each as the network; the same draws serve every criterion. Examples
are not drawn: what another sample of data would change is not in the interval. Of more than `MOST`
units as many stand for all, and the interval is narrowed by the root of their share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Scores = Mapping[str, Sequence[float]]
Statistic = Callable[[Floats, Floats, Floats], Floats]

MOST = 256
DRAWS = 400
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Attributes:
        spread: the standard deviation over seeds, where several.
        draws: what the bootstrap drew, where the interval is of one.
    """

    value: float
    low: float
    high: float
    spread: float | None = None
    draws: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference, paired by draw: of two criteria that met the same."""
        differences = np.subtract(self.draws, other.draws)
        return Estimate(
            self.value - other.value, *_interval(differences), None, tuple(differences.tolist())
        )


@dataclass(frozen=True)
class Coefficients:
    """One coefficient in all forms; None, or no entry, where it is not defined.

    Attributes:
        layers: within each layer.
        per_layer: the mean over layers.
        all_layers: over all units, scores as they are.
        all_l2: over all units, each layer's scores divided by √ΣΘ².
    """

    layers: dict[str, Estimate] = field(default_factory=dict)
    per_layer: Estimate | None = None
    all_layers: Estimate | None = None
    all_l2: Estimate | None = None


@dataclass(frozen=True)
class Correlation:
    """How one criterion ranks units beside the oracle.

    Attributes:
        seeds: how many sets of scores; the coefficients are their mean.
        units: how many were compared over all layers.
        skipped: layer -> why it has no coefficient of its own.
    """

    criterion: str
    spearman: Coefficients
    kendall: Coefficients
    seeds: int
    units: int
    skipped: dict[str, str]


def correlate(
    criterion: str,
    scores: Sequence[Scores],
    oracle: Scores,
    bootstrap: Bootstrap | None = None,
) -> Correlation:
    """Correlate the scores of a criterion with the oracle.

    Args:
        criterion: its name.
        scores: for each seed, layer -> one number per unit, higher = keep.
        oracle: layer -> one number per unit, higher = keep.
        bootstrap: the draws; give the same to every criterion, to compare them on the same.

    >>> oracle = {"conv": [1.0, 2.0, 3.0, 4.0], "fc": [5.0, 6.0, 7.0, 8.0]}
    >>> found = correlate("c", [{"conv": [1, 2, 4, 3], "fc": [4, 3, 2, 1]}], oracle)
    >>> {name: round(one.value, 2) for name, one in found.spearman.layers.items()}
    {'conv': 0.8, 'fc': -1.0}
    >>> round(found.spearman.per_layer.value, 2), round(found.kendall.per_layer.value, 2)
    (-0.1, -0.17)
    """
    skipped = _unusable(scores, oracle)
    names = [name for name in oracle if name not in skipped]
    truth = [np.asarray(oracle[name], float) for name in names]
    runs = [[np.asarray(one[name], float) for name in names] for one in scores]
    skipped |= _unranked(names, truth, runs)
    bootstrap = bootstrap or Bootstrap()
    rho, tau = (
        _coefficients(statistic, names, truth, runs, skipped, bootstrap)
        for statistic in (spearman, kendall)
    )
    return Correlation(criterion, rho, tau, len(scores), sum(map(len, truth)), skipped)


def _unusable(scores: Sequence[Scores], oracle: Scores) -> dict[str, str]:
    """Layers that are left out altogether, and why."""
    out = {}
    for name, truth in oracle.items():
        if any(name not in one for one in scores):
            out[name] = "not scored by this criterion"
        elif not np.isfinite([truth, *(one[name] for one in scores)]).all():
            out[name] = "a score is not finite"
        elif not len(truth):
            out[name] = "no units"
    return out


def _unranked(names: list[str], truth: list[Floats], runs: list[list[Floats]]) -> dict[str, str]:
    """Layers without a coefficient of their own, and why."""
    out = {}
    for i, name in enumerate(names):
        if len(truth[i]) < 2:
            out[name] = "one unit: nothing to rank"
        elif truth[i].min() == truth[i].max():
            out[name] = "to the oracle all units are equal"
        elif any(run[i].min() == run[i].max() for run in runs):
            out[name] = "to the criterion all units are equal"
    return out


def _coefficients(
    statistic: Statistic,
    names: list[str],
    truth: list[Floats],
    runs: list[list[Floats]],
    skipped: dict[str, str],
    bootstrap: Bootstrap,
) -> Coefficients:
    layers: dict[str, list[Floats]] = {}
    for i, name in enumerate(names):
        if name not in skipped:
            drawn = bootstrap.draws({name: len(truth[i])})
            layers[name] = [drawn.of(statistic, run[i], truth[i]) for run in runs]
    if not runs or not names:
        return Coefficients()
    drawn = bootstrap.draws({name: len(truth[i]) for i, name in enumerate(names)})
    oracle = np.concatenate(truth)
    whole = [drawn.of(statistic, np.concatenate(run), oracle) for run in runs]
    scaled = [drawn.of(statistic, np.concatenate([_l2(v) for v in run]), oracle) for run in runs]
    return Coefficients(
        {name: one for name, values in layers.items() if (one := _estimate(values)) is not None},
        _estimate([np.mean(each, axis=0) for each in zip(*layers.values(), strict=True)]),
        _estimate(whole),
        _estimate(scaled),
    )


def _l2(values: Floats) -> Floats:
    largest = np.abs(values).max(initial=0.0)
    if not largest:
        return values
    values = values / largest  # or the squares might overflow
    scaled: Floats = values / np.sqrt(np.square(values).sum())
    return scaled


def _estimate(runs: Sequence[Floats]) -> Estimate | None:
    """From one row per seed: the coefficient itself, then that of every draw."""
    if not runs or not all(math.isfinite(run[0]) for run in runs):
        return None
    values = np.array([run[0] for run in runs])
    mean = np.mean(runs, axis=0)
    spread = float(values.std(ddof=1)) if len(runs) > 1 else None
    return Estimate(float(values.mean()), *_interval(mean), spread, tuple(mean.tolist()))


def _interval(draws: Floats) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


# ---------------------------------------------------------------------- the draws
@dataclass(frozen=True)
class Draws:
    """Which units a bootstrap draws.

    Attributes:
        units: (m,) those that may be drawn; all, or `MOST` that stand for them.
        counts: (1 + draws, m) how often each is in a draw; the first row is the sample itself.
        narrow: √(m / n), 1 if all may be drawn.
    """

    units: npt.NDArray[np.int64]
    counts: Floats
    narrow: float

    @classmethod
    def make(cls, sizes: Sequence[int], draws: int, seed: int) -> Draws:
        """Draw within each of these layers."""
        random = np.random.default_rng(seed)
        total = sum(sizes)
        share = min(1.0, MOST / total)
        starts = np.cumsum([0, *sizes[:-1]])
        units, counts = [], []
        for start, size in zip(starts, sizes, strict=True):
            some = min(size, max(2, round(share * size)))
            chosen = np.sort(random.choice(size, some, replace=False))
            units.append(start + chosen)
            drawn = random.multinomial(some, np.full(some, 1 / some), size=draws)
            counts.append(np.concatenate([np.ones((1, some)), drawn]))
        all_units = np.concatenate(units)
        return cls(all_units, np.concatenate(counts, axis=1), math.sqrt(len(all_units) / total))

    def of(self, statistic: Statistic, a: Floats, b: Floats) -> Floats:
        """(1 + draws,): the coefficient of all units, then around it that of every draw.

        A draw in which nothing can be told apart counts as 0.
        """
        found = statistic(a[self.units], b[self.units], self.counts)
        whole = found[:1] if self.narrow == 1 else statistic(a, b, np.ones((1, len(a))))
        if self.narrow < 1:
            found = whole + self.narrow * (found - found[0])
        return np.concatenate([whole, np.clip(np.nan_to_num(found[1:]), -1, 1)])


class Bootstrap:
    """Draws made once: every criterion meets the same."""

    def __init__(self, count: int = DRAWS, seed: int = 0) -> None:
        self.count, self.seed = count, seed
        self._made: dict[tuple[tuple[str, int], ...], Draws] = {}

    def draws(self, layers: Mapping[str, int]) -> Draws:
        """Within each of these layers, by name and size; other layers are drawn independently."""
        key = tuple(layers.items())
        if key not in self._made:
            digest = hashlib.sha256(repr((self.seed, key)).encode()).digest()
            own = int.from_bytes(digest[:8], "big")
            self._made[key] = Draws.make(list(layers.values()), self.count, own)
        return self._made[key]


def spearman(a: Floats, b: Floats, counts: Floats) -> Floats:
    """Spearman's ρ of each draw: Pearson's r of the ranks, tied units sharing theirs.

    Args:
        a, b: (n,) what is ranked.
        counts: (draws, n) how often each unit is in each draw.

    Returns:
        (draws,); NaN where a draw has only one value of either.

    >>> spearman(np.array([1., 2, 3, 4]), np.array([1., 3, 2, 4]), np.ones((1, 4))).round(3)
    array([0.8])
    """
    x, y = _midranks(a, counts), _midranks(b, counts)
    xy, xx, yy = (np.einsum("dn,dn,dn->d", counts, p, q) for p, q in ((x, y), (x, x), (y, y)))
    return _ratio(xy, xx * yy)


def _midranks(values: Floats, counts: Floats) -> Floats:
    """The rank of every unit in every draw, less the mean rank."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, values[order][1:] != values[order][:-1]])
    tied = np.add.reduceat(counts[:, order], starts, axis=1)
    middle = np.cumsum(tied, axis=1) - tied / 2 - counts.sum(axis=1, keepdims=True) / 2
    ranks = np.empty_like(counts)
    ranks[:, order] = np.repeat(middle, np.diff(np.r_[starts, len(order)]), axis=1)
    return ranks


def kendall(a: Floats, b: Floats, counts: Floats) -> Floats:
    """Kendall's τ_b of each draw: pairs in the same order less those in the other, over all untied.

    Arguments and result as for `spearman`.

    >>> kendall(np.array([1., 2, 3, 4]), np.array([1., 3, 2, 4]), np.ones((1, 4))).round(3)
    array([0.667])
    """
    if len(counts) == 1 and (counts == 1).all():  # O(n log n); the matrices below are for draws
        from scipy.stats import kendalltau

        return np.array([kendalltau(a, b).statistic])
    signs = [(v[:, None] > v).astype(np.float32) - (v[:, None] < v) for v in (a, b)]
    pairs = [(0, 1), (0, 0), (1, 1)]
    few = counts.astype(np.float32)
    ab, aa, bb = (
        np.einsum("dn,dn->d", few @ (signs[i] * signs[j]), few).astype(np.float64) for i, j in pairs
    )
    return _ratio(ab, aa * bb)


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / √below; NaN where nothing is below."""
    out = np.full(len(above), np.nan)
    np.divide(above, np.sqrt(below), out=out, where=below > 0)
    return out
