"""Which criterion to use, why, and how sure that is: a pure function of what was recorded.

What counts is the metric after fine-tuning, at the same budgets, in the same form and from the same
seeds. A difference is taken for each seed, over its budgets and forms, so that the seeds are the
sample: mean, standard error, and Student's t. The best is the one with the best mean; as it was
picked after the fact from k, it is *clear* where it beats each other at 5% / (k − 1) (Bonferroni),
*likely* where at 5%. A difference that is the same in every seed repeats one run and says nothing
of chance. Seeds do not draw the data of the metric: no error here holds its chance. Correlation
with the oracle supports, and decides only where nothing was pruned: the pruned loss predicts the
metric after fine-tuning weakly at best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from .record import PruneLine, Setting
from .statistics import Coefficients, Correlation, Estimate, spearman
from .wording import headline, reasons

Basis = Literal["fine-tuned", "one-shot", "correlation", "nothing"]
Sure = Literal["clear", "likely", "tied", "unknown"]
Cell = tuple[str, float, int]  # form, budget, seed
Metrics = Mapping[str, Mapping[Cell, float]]

RANDOM = "random"  # the baseline: compared, never recommended
ORACLE = "oracle"  # as a criterion; that it correlates with itself says nothing
LEVEL = 0.05
ROUNDING = 1e-12  # a difference below it is none
ABSURD = 1e100  # a metric beyond it is no result
FEWEST = 4  # criteria, for a rank correlation over them
DEFAULTS = {"normalize": "l2", "flops_weight": 1e-3, "cost_power": 0.0}  # as in process/options.py


@dataclass(frozen=True)
class Duel:
    """The recommended criterion against another, over the runs that both have.

    Attributes:
        difference: mean over seeds of how much better the recommended one was; in the metric
            (what is better is positive), or in the rank correlation.
        error: its standard error over seeds; None of one seed, or of seeds that repeat each other.
        ahead, runs: in how many of them it was strictly better.
        verdict: 'clear', 'likely' or 'tied'; 'unknown' where there is no error to judge by.
    """

    other: str
    difference: float
    error: float | None
    ahead: int
    runs: int
    verdict: Sure


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Attributes:
        criterion: its name; None where nothing was compared.
        sure: 'clear', 'likely', 'tied' (with those named there), or 'unknown' (no spread over
            seeds to judge by).
        basis: what it rests on.
        duels: against each other criterion, the closest first.
        left_out: criterion -> why it was not judged.
        predicted: rank correlation, over criteria, of the one-shot results with those after
            fine-tuning, in these records; None where either is missing or criteria are few.
        headline: the answer in a sentence.
        reasons: the grounds and the reservations, a sentence or two each.
        options: what to give `sc.prune`, as far as it is not the default.
    """

    criterion: str | None
    sure: Sure
    basis: Basis
    duels: tuple[Duel, ...]
    left_out: dict[str, str]
    predicted: Estimate | None
    headline: str
    reasons: tuple[str, ...]
    options: dict[str, Any]

    @property
    def tied(self) -> tuple[str, ...]:
        """The criteria that cannot be told apart from it."""
        return tuple(duel.other for duel in self.duels if duel.verdict == "tied")

    @property
    def python(self) -> str:
        """What to type next, in Python."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"sc.prune(model, example_inputs, train=train, loss=loss, {given})"

    @property
    def shell(self) -> str:
        """What to type next, on the command line."""
        flags = []
        for name, value in self.options.items():
            text = "=".join(map(str, *value.items())) if isinstance(value, dict) else str(value)
            flags.append(f"--{name.replace('_', '-')} {text}")
        return f"secateurs prune run.toml {' '.join(flags)}"

    def __str__(self) -> str:
        lines = [self.headline, *(f"- {reason}" for reason in self.reasons)]
        return "\n".join([*lines, f"next: {self.python}", f"  or: {self.shell}"])


def recommend(
    setting: Setting,
    runs: Sequence[PruneLine],
    correlations: Sequence[Correlation],
    refused: Mapping[str, str] = MappingProxyType({}),
    seconds: Mapping[str, float] = MappingProxyType({}),
) -> Recommendation:
    """Choose a criterion.

    Args:
        setting: of the comparison.
        runs: the pruned networks.
        correlations: with the oracle.
        refused: criterion -> why it does not apply.
        seconds: criterion -> what its scores took.
    """
    tuned = [run for run in runs if run.form != "one-shot"] if setting.updates else []
    basis: Basis = "fine-tuned" if tuned else "one-shot"
    metrics, left_out = _common(_cells(setting, tuned or runs))
    left_out |= refused
    support = {
        one.criterion: estimate
        for one in correlations
        if one.criterion != ORACLE and (estimate := _support(setting, one.spearman)) is not None
    }
    if any(name != RANDOM for name in metrics):
        best = max((n for n in metrics if n != RANDOM), key=lambda n: _mean(metrics[n]))
        duels = _duels(best, metrics)
    elif any(name != RANDOM for name in support):
        basis = "correlation"
        best = max((n for n in support if n != RANDOM), key=lambda n: support[n].value)
        duels = _by_correlation(best, support)
    else:
        return _nothing(left_out)
    sure = _grade(duels)
    predicted = _predicted(setting, runs)
    return Recommendation(
        best,
        sure,
        basis,
        duels,
        left_out,
        predicted,
        headline(best, sure, basis, duels),
        tuple(reasons(setting, basis, best, duels, support, metrics, predicted, seconds)),
        _options(setting, best),
    )


def _nothing(left_out: dict[str, str]) -> Recommendation:
    return Recommendation(
        None, "unknown", "nothing", (), left_out, None,
        "No recommendation: nothing was pruned, and nothing was compared with the oracle.",
        ("Run the comparison with `evaluate` and a budget, or let it compute the oracle.",), {},
    )  # fmt: skip


def _options(setting: Setting, criterion: str) -> dict[str, Any]:
    budget = max(setting.budgets, default=0.5)
    chosen = {name: getattr(setting, name) for name in DEFAULTS}
    return {"budget": {setting.measure: budget}, "criterion": criterion} | {
        name: value for name, value in chosen.items() if value != DEFAULTS[name]
    }


# ---------------------------------------------------------------------- the metric
def _cells(setting: Setting, runs: Sequence[PruneLine]) -> dict[str, dict[Cell, float]]:
    """The metric of every run, turned so that more is better; without what is not finite."""
    sign = 1 if setting.mode == "max" else -1
    out: dict[str, dict[Cell, float]] = {}
    for run in runs:
        own = out.setdefault(run.criterion, {})
        if abs(run.metric) < ABSURD:  # and not NaN
            own[run.form, run.budget, run.seed] = sign * run.metric
    return out


def _common(cells: Mapping[str, dict[Cell, float]]) -> tuple[Metrics, dict[str, str]]:
    """Only the runs that all have; a criterion that has few of them is left out and named."""
    every = {cell for own in cells.values() for cell in own}
    kept, left_out = dict(cells), dict[str, str]()
    while kept:
        fewest = min(kept, key=lambda name: len(kept[name]))
        common = set.intersection(*(set(own) for own in kept.values()))
        if len(common) * 2 >= len(every) or (common and len(set(map(len, kept.values()))) == 1):
            return {n: {c: own[c] for c in sorted(common)} for n, own in kept.items()}, left_out
        left_out[fewest] = f"only {len(kept.pop(fewest))} of {len(every)} runs have a finite result"
    return {}, left_out


def _mean(own: Mapping[Cell, float]) -> float:
    return float(np.mean(_by_seed(own)))


def _by_seed(own: Mapping[Cell, float]) -> list[float]:
    """The mean of each seed over its budgets and forms."""
    seeds: dict[int, list[float]] = {}
    for (_, _, seed), value in own.items():
        seeds.setdefault(seed, []).append(value)
    return [sum(values) / len(values) for values in seeds.values()]


def _duels(best: str, metrics: Metrics) -> tuple[Duel, ...]:
    others = [name for name in metrics if name != best]
    duels = [_duel(name, metrics[best], metrics[name], len(others)) for name in others]
    return tuple(sorted(duels, key=lambda duel: duel.difference))


def _duel(other: str, a: Mapping[Cell, float], b: Mapping[Cell, float], rivals: int) -> Duel:
    seeds = np.array(_by_seed({cell: value - b[cell] for cell, value in a.items()}))
    mean = float(seeds.mean())
    ahead = sum(value > b[cell] for cell, value in a.items())
    error = float(seeds.std(ddof=1) / math.sqrt(len(seeds))) if len(seeds) > 1 else 0.0
    if error <= ROUNDING:  # one seed, or seeds that repeat each other
        same = len(seeds) > 1 and mean <= ROUNDING
        return Duel(other, mean, None, ahead, len(a), "tied" if same else "unknown")
    return Duel(other, mean, error, ahead, len(a), _verdict(mean, error, len(seeds), rivals))


def _verdict(mean: float, error: float, seeds: int, rivals: int) -> Sure:
    """How sure a difference is."""
    from scipy.stats import t

    if mean <= ROUNDING:
        return "tied"
    chance = 2 * float(t.sf(mean / error, seeds - 1))
    if chance <= LEVEL / rivals:
        return "clear"
    return "likely" if chance <= LEVEL else "tied"


def _grade(duels: Sequence[Duel]) -> Sure:
    """That of the duel that speaks most against it; alone it is not judged."""
    order: tuple[Sure, ...] = ("tied", "unknown", "likely", "clear")
    return min((duel.verdict for duel in duels), key=order.index, default="unknown")


# ---------------------------------------------------------------------- the oracle
def _support(setting: Setting, rho: Coefficients) -> Estimate | None:
    """Over all layers, of scores as pruning scales them, before units are weighed by their cost.

    Recorded are those of raw scores and of ℓ2; of any other scaling, the mean within layers, which
    none that divides or ranks a layer's scores can change.
    """
    recorded = {"none": rho.all_layers, "l2": rho.all_l2}
    return recorded.get(setting.normalize, rho.per_layer)


def _by_correlation(best: str, support: Mapping[str, Estimate]) -> tuple[Duel, ...]:
    """Clear where the intervals do not meet."""
    top = support[best]
    return tuple(
        Duel(name, top.value - own.value, None, 0, 0, "clear" if own.high < top.low else "tied")
        for name, own in sorted(support.items(), key=lambda item: -item[1].value)
        if name != best
    )


def _predicted(setting: Setting, runs: Sequence[PruneLine]) -> Estimate | None:
    """How well what is left before fine-tuning tells what is left after it.

    Over criteria, within each budget, the mean of the rank correlations of the one-shot loss (or
    else metric) with the metric after fine-tuning, each a mean over seeds. Criteria are drawn for
    the interval, as if they were independent.
    """
    pruned = [run for run in runs if run.form == "one-shot"]
    tuned = [run for run in runs if run.form == "fine-tuned"] if setting.updates else []
    by_loss = all(run.loss is not None for run in pruned)
    sign = 1 if setting.mode == "max" else -1
    before = _means({(r.criterion, r.budget, r.seed):
                     -(r.loss or 0.0) if by_loss else sign * r.metric for r in pruned})  # fmt: skip
    after = _means({(r.criterion, r.budget, r.seed): sign * r.metric for r in tuned})
    budgets = sorted({budget for _, budget in before} & {budget for _, budget in after})
    names = sorted({name for name, _ in before})
    names = [n for n in names if all((n, b) in before and (n, b) in after for b in budgets)]
    if not budgets or len(names) < FEWEST:
        return None
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=1000)
    counts = np.concatenate([np.ones((1, len(names))), drawn])
    found = []
    for budget in budgets:
        x, y = (np.array([side[name, budget] for name in names]) for side in (before, after))
        found.append(spearman(x, y, counts))
    found = [one for one in found if math.isfinite(one[0])]
    if not found:
        return None
    value, *draws = np.mean(np.nan_to_num(found), axis=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def _means(values: Mapping[tuple[str, float, int], float]) -> dict[tuple[str, float], float]:
    """Over seeds; only where all are results."""
    found: dict[tuple[str, float], list[float]] = {}
    for (criterion, budget, _), value in values.items():
        found.setdefault((criterion, budget), []).append(value)
    return {key: sum(v) / len(v) for key, v in found.items() if all(abs(one) < ABSURD for one in v)}
