"""What the report of a comparison says and shows, described once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..compare.comparison import Comparison, Curve
from ..compare.record import FORMS
from ..compare.statistics import Coefficients, Correlation, Estimate
from ..compare.wording import against
from .compared_charts import TITLES, by_criterion, drawable
from .words import NAMES, count, number, rounded, size

SCOPES: dict[str, Callable[[Coefficients], Estimate | None]] = {
    "per layer": lambda c: c.per_layer,
    "all layers": lambda c: c.all_layers,
    "all layers, ℓ2": lambda c: c.all_l2,
}
NONE = "–"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        small: how sure it is.
        heat: from −1 to 1, how strongly it is coloured, and in which of two colours.
    """

    text: str
    small: tuple[str, ...] = ()
    heat: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; the first of each row is its name."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]

    @property
    def hot(self) -> bool:
        """Whether it is a heat map."""
        return any(cell.heat is not None for row in self.rows for cell in row)

    @property
    def steep(self) -> bool:
        """Whether the names of the columns are written upright, for want of room."""
        return len(self.columns) > 6 and max(map(len, self.columns[1:])) > 5

    def turned(self) -> Table:
        """The longer side down: few columns fit on a telephone."""
        if len(self.rows) >= len(self.columns) - 1:
            return self
        names = [row[0].text for row in self.rows]
        rows = [
            [Cell(column), *(row[i] for row in self.rows)]
            for i, column in enumerate(self.columns)
            if i
        ]
        return Table(self.title, [self.columns[0], *names], rows)


# ---------------------------------------------------------------------- the oracle
def correlations(comparison: Comparison, name: str = "spearman") -> Table:
    """Each criterion beside the oracle, the closest first."""
    found = _closest(comparison)
    layers = len(comparison.setting.groups)
    rows = []
    for one in found:
        coefficients: Coefficients = getattr(one, name)
        cells = [_estimate(of(coefficients)) for of in SCOPES.values()]
        rows.append([Cell(one.criterion), *cells, Cell(f"{len(coefficients.layers)} of {layers}")])
    symbol = {"spearman": "Spearman's ρ", "kendall": "Kendall's τ"}[name]
    title = f"{symbol} with the oracle, and 95% intervals"
    return Table(title, ["criterion", *SCOPES, "layers"], rows)


def _closest(comparison: Comparison) -> list[Correlation]:
    """By ρ over all layers, with scores as they are ranked when pruning."""
    scope = SCOPES["all layers, ℓ2" if comparison.setting.normalize == "l2" else "all layers"]
    return sorted(comparison.correlations(), key=lambda one: -_value(scope(one.spearman)))


def _value(found: Estimate | None) -> float:
    return -2.0 if found is None else found.value


def _estimate(found: Estimate | None) -> Cell:
    if found is None:
        return Cell(NONE)
    spread = (f"± {found.spread:.2f} over seeds",) if (found.spread or 0) >= 0.005 else ()
    return Cell(rounded(found.value), (f"{rounded(found.low)} to {rounded(found.high)}", *spread))


def layer_map(comparison: Comparison) -> Table:
    """Spearman's ρ of each criterion in each layer, as a heat map."""
    names = [group.name for group in comparison.setting.groups]
    rows = [
        [Cell(one.criterion), *(_heat(one.spearman.layers.get(name)) for name in names)]
        for one in _closest(comparison)
    ]
    return Table("Spearman's ρ within each layer", ["", *names], rows).turned()


def _heat(found: Estimate | None) -> Cell:
    if found is None:
        return Cell(NONE)
    return Cell(rounded(found.value), heat=found.value)


def skipped(comparison: Comparison) -> dict[str, list[str]]:
    """Why a layer has no coefficient -> which, and of which criteria."""
    out: dict[str, list[str]] = {}
    found = comparison.correlations()
    for group in comparison.setting.groups:
        reasons: dict[str, list[str]] = {}
        for one in found:
            if group.name in one.skipped:
                reasons.setdefault(one.skipped[group.name], []).append(one.criterion)
        for reason, criteria in reasons.items():
            who = "" if len(criteria) == len(found) else f" ({', '.join(criteria)})"
            out.setdefault(reason, []).append(f"{group.name}{who}")
    return out


# ---------------------------------------------------------------------- the pruned networks
def results(comparison: Comparison) -> list[Table]:
    """The metric of every criterion at every budget, for each form; the best first."""
    out = []
    for form in FORMS:
        curves = [curve for curve in comparison.curves() if curve.form == form]
        budgets = sorted({point.budget for curve in curves for point in curve.points}, reverse=True)
        curves.sort(key=lambda curve: _order(comparison, curve))
        rows = [[Cell(curve.criterion), *_points(curve, budgets)] for curve in curves]
        if rows:
            columns = ["criterion", *(f"{100 * budget:g}%" for budget in budgets)]
            out.append(Table(TITLES[form], columns, rows))
    return out


def _order(comparison: Comparison, curve: Curve) -> float:
    sign = -1 if comparison.setting.mode == "max" else 1
    means = [point.mean for point in curve.points if drawable(point.mean)]
    return sign * sum(means) / len(means) if means else math.inf


def _points(curve: Curve, budgets: Sequence[float]) -> Iterator[Cell]:
    found = {point.budget: point for point in curve.points}
    for budget in budgets:
        point = found.get(budget)
        if point is None:
            yield Cell(NONE)
        else:
            spread = () if point.spread is None else (f"± {point.spread:.2g}",)
            yield Cell(f"{point.mean:.4g}", (*spread, count(len(point.values), "seed")))


def duels(comparison: Comparison) -> list[str]:
    """The recommended criterion against each other, in words."""
    metric = comparison.setting.metric_name
    return [
        f"{against(duel, metric)} Verdict: {duel.verdict}."
        for duel in comparison.recommendation.duels
        if duel.runs
    ]


# ---------------------------------------------------------------------- sensitivity
def sensitivity_maps(comparison: Comparison) -> list[Table]:
    """The same in numbers, coloured by how much of the metric is lost."""
    out = []
    for criterion, lines in by_criterion(comparison).items():
        shares = sorted({x for line in lines for x, _ in line.points})
        start = comparison.setting.metric
        values = [y for line in lines for _, y in line.points if drawable(y)]
        most = max((abs(y - start) for y in values), default=0.0) if start is not None else 0.0
        rows = []
        for line in lines:
            found = dict(line.points)
            rows.append(
                [Cell(line.group), *(_lost(comparison, found.get(x), most) for x in shares)]
            )
        title = f"{comparison.setting.metric_name} by fraction removed; {criterion}"
        out.append(Table(title, ["", *(f"{100 * x:g}%" for x in shares)], rows))
    return out


def _lost(comparison: Comparison, value: float | None, most: float) -> Cell:
    if value is None:
        return Cell(NONE)
    start = comparison.setting.metric
    if start is None or not most or not drawable(value):
        return Cell(f"{value:.3g}")
    better = (value - start) * (1 if comparison.setting.mode == "max" else -1)
    return Cell(f"{value:.3g}", heat=min(better, 0.0) / most)


# ---------------------------------------------------------------------- price, refusals, setting
def prices(comparison: Comparison) -> Table:
    """What the scores of each criterion took, the cheapest first, and the oracle."""
    peaks = {}
    for name in comparison.criteria:
        own = [line.price.peak_bytes for line in comparison.scores(name) if not line.refused]
        peaks[name] = max((peak for peak in own if peak is not None), default=None)
    seconds = {n: s for n, s in comparison.seconds().items() if n not in comparison.refused()}
    cells = [
        (name, seconds[name], peaks[name]) for name in sorted(seconds, key=seconds.__getitem__)
    ]
    if comparison.oracle is not None:
        price = comparison.oracle.price
        cells.append(("the exact oracle", price.seconds, price.peak_bytes))
    rows = [
        [Cell(name), Cell(f"{s:.3g} s"), Cell(NONE if peak is None else size(peak))]
        for name, s, peak in cells
    ]
    return Table("What the scores took", ["criterion", "time", "peak memory"], rows)


def facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What was compared, on what."""
    setting = comparison.setting
    yield "network", setting.network
    for measure, name in NAMES.items():
        yield name, f"{setting.size.get(measure, 0):,}"
    yield "examples", f"{setting.examples:,}"
    yield "mean loss, uncut", number(setting.loss)
    yield f"{setting.metric_name}, uncut", number(setting.metric)
    yield "better is", "more" if setting.mode == "max" else "less"
    budgets = ", ".join(f"{100 * budget:g}%" for budget in setting.budgets)
    yield "budgets", f"{budgets} of the {NAMES[setting.measure]}" if budgets else NONE
    yield "seeds", ", ".join(map(str, setting.seeds))
    yield "fine-tuning", count(setting.updates, "update")
    yield (
        "scores made comparable by",
        f"normalize={setting.normalize}, "
        + ", ".join(
            f"{name}={getattr(setting, name):g}" for name in ("flops_weight", "cost_power")
        ),
    )
    yield from setting.machine.items()
