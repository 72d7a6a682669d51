"""The charts of a comparison: metric against budget, and against what one layer loses."""

from __future__ import annotations

import math

from ..compare.comparison import Comparison, Curve, Sensitivity
from ..compare.record import FORMS
from .charts import Chart, Mark, Series
from .words import NAMES

NAMED = 6  # lines of a chart that have a colour; more could not be told apart
TITLES = {
    "one-shot": "Right after pruning (one-shot)",
    "fine-tuned": "One-shot, then fine-tuned",
    "iterative": "Iterative: prune, fine-tune, repeat",
}


def named(comparison: Comparison) -> list[str]:
    """The criteria with a colour: the recommended, those closest to it, the baseline."""
    advice = comparison.recommendation
    order = [advice.criterion] if advice.criterion else []
    order += [duel.other for duel in advice.duels]
    order += [name for name in comparison.criteria if name not in order]
    if "random" in order[NAMED:]:
        order.insert(NAMED - 1, "random")
    return order[:NAMED]


def curve_charts(comparison: Comparison) -> list[Chart]:
    """The metric against the budget, one chart for each form."""
    colours = {name: i for i, name in enumerate(named(comparison))}
    return [
        _curve_chart(comparison, form, own, colours)
        for form in FORMS
        if (own := [curve for curve in comparison.curves() if curve.form == form])
    ]


def _curve_chart(
    comparison: Comparison, form: str, curves: list[Curve], colours: dict[str, int]
) -> Chart:
    setting = comparison.setting
    series = []
    for curve in curves:
        points = [p for p in curve.points if drawable(p.mean) and drawable(p.budget)]
        if not points:
            continue
        spreads = [s if (s := p.spread) and drawable(s) else 0.0 for p in points]
        band = [(p.mean - s, p.mean + s) for p, s in zip(points, spreads, strict=True)]
        colour = colours.get(curve.criterion)
        series.append(
            Series(
                curve.criterion,
                [(100 * point.budget, point.mean) for point in points],
                band if colour is not None and any(spreads) else [],
                colour,
            )
        )
    series.sort(key=lambda s: NAMED if s.colour is None else s.colour)
    return Chart(
        form,
        TITLES[form],
        f"{NAMES[setting.measure]} kept (%)",
        setting.metric_name,
        series,
        _uncut(comparison),
        falling=True,
    )


def _uncut(comparison: Comparison) -> list[Mark]:
    metric = comparison.setting.metric
    return [] if metric is None or not drawable(metric) else [Mark("y", metric, "uncut", "")]


def drawable(value: float) -> bool:
    """Whether a chart can show it."""
    return math.isfinite(value) and abs(value) < 1e100


def sensitivity_charts(comparison: Comparison) -> list[Chart]:
    """The metric against the fraction removed of one layer; the most sensitive have a colour."""
    out: list[Chart] = []
    for criterion, lines in by_criterion(comparison).items():
        worst = sorted(lines, key=lambda line: -_loss(comparison, line))[:NAMED]
        colours = {line.group: i for i, line in enumerate(worst)}
        series = [
            Series(line.group, points, colour=colours.get(line.group))
            for line in [*worst, *(line for line in lines if line not in worst)]
            if (points := [(100 * x, y) for x, y in line.points if drawable(y)])
        ]
        if series:
            title = f"One layer at a time, the least important by {criterion} first"
            metric = comparison.setting.metric_name
            key = "sensitivity" if not out else f"sensitivity-{len(out) + 1}"
            x_label = "removed of the layer's units (%)"
            out.append(Chart(key, title, x_label, metric, series, _uncut(comparison)))
    return out


def by_criterion(comparison: Comparison) -> dict[str, list[Sensitivity]]:
    """Its sensitivities."""
    out: dict[str, list[Sensitivity]] = {}
    for line in comparison.sensitivities():
        out.setdefault(line.criterion, []).append(line)
    return out


def _loss(comparison: Comparison, line: Sensitivity) -> float:
    """The mean of the metric over the points, turned so that more is worse."""
    sign = -1 if comparison.setting.mode == "max" else 1
    values = [y for _, y in line.points if drawable(y)]
    return sign * sum(values) / len(values) if values else math.inf
