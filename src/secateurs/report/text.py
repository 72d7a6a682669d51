"""The report as plain text, for a terminal."""

from __future__ import annotations

import numpy as np

from ..tables import render
from . import content
from .charts import Chart
from .content import HeatMap
from .record import Record
from .words import printable, when

SHADES = " ░▒▓█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
WIDTH = 48
LINES = 40  # that all heat maps together may take


def render_text(record: Record) -> str:
    """The same tables and pictures as on the page."""
    run = record.run
    parts = [f"{run.network.name}: {content.headline(record)}", _facts(record), _bars(record)]
    parts += [_chart(chart) for chart in content.charts(record)]
    parts += [_maps(content.heat_maps(record)), _frozen(record), _origin(record)]
    return printable("\n\n".join(filter(None, parts)))


def bar(share: float, width: int = 30) -> str:
    """A bar of a share of its width.

    >>> bar(0.5, 4), bar(0.28125, 4), bar(1, 4)
    ('██', '█▏', '████')
    """
    eighths = round(min(max(share, 0), 1) * width * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _facts(record: Record) -> str:
    rows = [(f.name, *_with(f.before, f.after, f.spread), f.change) for f in content.facts(record)]
    return render("before and after", ("", "before", "after", "change"), rows)


def _with(before: str, after: str, spread: tuple[str, str] | None) -> tuple[str, str]:
    if spread is None:
        return before, after
    return f"{before} ({spread[0]})", f"{after} ({spread[1]})"


def _bars(record: Record) -> str:
    rows = [
        (one.name, f"{one.before:,}", f"{one.after:,}", bar(one.share))
        for one in content.bars(record)
    ]
    return render("units per layer, and the share that stayed", ("", "before", "after", ""), rows)


def _chart(chart: Chart) -> str:
    """A row per point of the first line; the others are columns beside it."""
    xs = [x for x, _ in chart.series[0].points]
    columns = [[y for _, y in series.points] for series in chart.series]
    low, high = min(map(min, columns)), max(map(max, columns))
    rows = [
        (f"{x:.4g}", *(f"{y:.5g}" for y in ys), bar((ys[0] - low) / ((high - low) or 1)))
        for x, *ys in zip(xs, *columns, strict=True)
    ]
    marks = "".join(f"; {mark.text}" for mark in chart.marks)
    names = [series.name for series in chart.series]
    return render(chart.title + marks, (chart.x_label, *names, ""), rows)


def _maps(maps: list[HeatMap]) -> str:
    if not maps:
        return ""
    each = max(1, min(6, LINES // len(maps)))
    rows = []
    for heat in maps:
        lines = [_shaded(row) for row in heat.binned(each, WIDTH)]
        rows.append((heat.name, heat.before, heat.after, "\n".join(lines)))
    title = (
        "importance, the last step below; darker: more important, empty: gone, a column: some units"
    )
    return render(title, ("group", "before", "after", "first to go … last"), rows)


def _shaded(row: content.Floats) -> str:
    """One character a cell; what is there and least important still shows."""
    steps = len(SHADES) - 1
    levels = np.where(np.isfinite(row), 1 + np.minimum(np.nan_to_num(row) * steps, steps - 1), 0)
    return "".join(SHADES[int(level)] for level in levels) + "|"


def _frozen(record: Record) -> str:
    rows = [
        (held.reason, len(held.axes), ", ".join(content.places(held.axes)[:2]))
        for held in content.held(record)
    ]
    return render("frozen, and why", ("why", "axes", "such as"), rows)


def _origin(record: Record) -> str:
    run, proof = record.run, record.run.proof
    rows = [
        (
            "law of the cut",
            f"{'holds' if proof.holds else 'BROKEN'}: relative deviation "
            f"{proof.max_relative_error:.1e}, tolerance {proof.tolerance:.0e}",
        ),
        ("criterion", run.criterion),
        ("seed", str(run.options.get("seed", "–"))),
        *run.origin.versions.items(),
        ("machine", f"{run.origin.platform}, {run.origin.device}"),
        ("command", run.origin.command or "–"),
        ("finished", when(run.origin.finished)),
    ]
    return render("how it was made", ("", " "), rows)
