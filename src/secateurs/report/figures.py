"""The report's pictures as SVG and PNG, drawn by Matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..atomic import write_with
from . import content
from .charts import Chart, draw
from .content import Bar, HeatMap
from .extra import load
from .record import Record
from .words import printable

LEAF, GONE = "#2c7a52", "#dfe4e0"
COLOURS = (LEAF, "#b4552d", "#3a62ad", "#8a3f9e", "#77670f", "#0f7482")  # as in page.css
OTHERS = "#b3bab5"
KINDS: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 160}}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "secateurs",  # the same picture, the same file
    "text.parse_math": False,  # a module may be called $x$
}


def write_figures(record: Record, directory: str | Path) -> list[Path]:
    """Write each picture as SVG and PNG.

    Returns:
        The files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return write_all(_figures(record), directory)


def write_all(figures: Iterable[tuple[str, Any]], directory: str | Path) -> list[Path]:
    """Write each figure, drawn in the style of the report, as SVG and PNG."""
    out = []
    with load("matplotlib").rc_context(STYLE):
        for name, one in figures:
            for kind, settings in KINDS.items():
                path = Path(directory) / f"{name}.{kind}"
                write_with(path, partial(one.savefig, format=kind, **settings))
                out.append(path)
    return out


def _figures(record: Record) -> Iterator[tuple[str, Any]]:
    yield "units", _bars(content.bars(record))
    for chart in content.charts(record):
        yield chart.key, plot(chart)
    maps = content.heat_maps(record)
    if maps:
        yield "importance", _maps(maps[: content.MAPS])


def figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches."""
    return load("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _bars(bars: list[Bar]) -> Any:
    made = figure(7, 0.8 + 0.2 * len(bars))
    axes = made.add_subplot()
    rows = range(len(bars))
    axes.barh(rows, [100.0] * len(bars), color=GONE, label="went")
    axes.barh(rows, [100 * bar.share for bar in bars], color=LEAF, label="stayed")
    axes.set_yticks(rows, [printable(bar.name) for bar in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("units that stayed (%)")
    for row, bar in zip(rows, bars, strict=True):
        axes.text(101, row, f"{bar.before:,} → {bar.after:,}", va="center", fontsize=8)
    return made


def plot(chart: Chart) -> Any:
    """A chart as a figure."""
    made = figure(5, 3.2)
    axes = made.add_subplot()
    for line in draw(chart).lines:
        series = line.series
        xs, ys = zip(*series.points, strict=True)
        if series.colour is None:
            axes.plot(xs, ys, color=OTHERS, linewidth=0.8)
            continue
        colour, dashed = COLOURS[series.colour], series.colour > 2
        axes.plot(
            xs, ys, color=colour, marker="o", markersize=3, label=printable(series.name),
            linestyle="--" if dashed else "-",
        )  # fmt: skip
        if series.band:
            low, high = zip(*series.band, strict=True)
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0.8)
    for mark in chart.marks:
        rule = axes.axvline if mark.axis == "x" else axes.axhline
        rule(mark.value, color="#5b645f", linestyle="--", label=printable(mark.text))
    title, x_label, y_label = map(printable, (chart.title, chart.x_label, chart.y_label))
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", alpha=0.3)
    if chart.falling:
        axes.invert_xaxis()
    axes.legend(frameon=False, fontsize=8)
    return made


def _maps(maps: list[HeatMap]) -> Any:
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    made = figure(3 * columns, 0.4 + 1.1 * rows)
    for place, heat in enumerate(maps, 1):
        axes = made.add_subplot(rows, columns, place, facecolor=GONE)
        axes.imshow(heat.binned(64, 256), aspect="auto", cmap="viridis", interpolation="nearest")
        axes.set_title(
            f"{printable(heat.name)}  {heat.before:,} → {heat.after:,}", fontsize=8, loc="left"
        )
        axes.set_xticks([])
        axes.set_yticks([])
    made.supxlabel("units, those that went first on the left; a row is a step", fontsize=8)
    return made
