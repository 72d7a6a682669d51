"""The report as one HTML page that needs nothing beside it and runs no script."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_text
from . import content
from .content import Chart, HeatMap
from .extra import load
from .record import Record

# the size of a chart and the room around it; 400 across are legible on a telephone
SIZE = {"width": 400, "height": 250, "left": 46, "right": 12, "top": 12, "bottom": 40}
SHOWN = 12  # before the others are folded away
CELLS = 192


def write_page(record: Record, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    path = Path(path)
    write_text(path, render_page(record))
    return path


def render_page(record: Record) -> str:
    """The page as text.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    jinja2 = load("jinja2")
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    maps = content.heat_maps(record)
    columns = CELLS if len(maps) <= content.MAPS // 2 else CELLS // 2
    page: str = environment.get_template("page.html.j2").render(
        style=(folder / "page.css").read_text(encoding="utf-8"),
        content=content,
        size=SIZE,
        record=record,
        run=record.run,
        charts=[draw(chart) for chart in content.charts(record)],
        maps=[(one, picture(one, columns)) for one in maps[: content.MAPS]],
        shown=SHOWN,
        unseen=len(maps[content.MAPS :]),
        options={name: json.dumps(value) for name, value in record.run.options.items()},
    )
    return page


@dataclass(frozen=True)
class Drawn:
    """A chart in the coordinates of its picture.

    Attributes:
        lines: per series, its name and points.
        x_ticks, y_ticks: place and text.
        rules: per mark, its name and the ends of its line.
    """

    chart: Chart
    lines: list[tuple[str, list[tuple[float, float]]]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    rules: list[tuple[str, tuple[float, float, float, float]]]

    @property
    def text(self) -> str:
        """What the chart shows, for those who do not see it."""
        ends = [
            f"{series.name} from {series.points[0][1]:.4g} to {series.points[-1][1]:.4g}"
            for series in self.chart.series
        ]
        marks = [f"{mark.name} at {mark.value:.4g}" for mark in self.chart.marks]
        return "; ".join([*ends, *marks])


def draw(chart: Chart) -> Drawn:
    """Place a chart on its picture."""
    points = [point for series in chart.series for point in series.points]
    marks = {axis: [m.value for m in chart.marks if m.axis == axis] for axis in "xy"}
    x_ticks = _ticks([x for x, _ in points] + marks["x"])
    y_ticks = _ticks([y for _, y in points] + marks["y"])
    left, right = (x_ticks[-1], x_ticks[0]) if chart.falling else (x_ticks[0], x_ticks[-1])

    start, end = SIZE["left"], SIZE["width"] - SIZE["right"]
    floor, ceiling = SIZE["height"] - SIZE["bottom"], SIZE["top"]

    def across(x: float) -> float:
        return round(start + (x - left) / (right - left) * (end - start), 1)

    def down(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(floor + share * (ceiling - floor), 1)

    return Drawn(
        chart,
        [(s.name, [(across(x), down(y)) for x, y in s.points]) for s in chart.series],
        [(across(x), f"{x:g}") for x in x_ticks],
        [(down(y), f"{y:g}") for y in y_ticks],
        [
            (m.name, (across(m.value), ceiling, across(m.value), floor))
            if m.axis == "x"
            else (m.name, (start, down(m.value), end, down(m.value)))
            for m in chart.marks
        ],
    )


def _ticks(values: list[float]) -> list[float]:
    """Round numbers that span these values."""
    whole = all(value == int(value) for value in values)
    locator = load("matplotlib.ticker").MaxNLocator(
        5, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole
    )
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return [float(f"{tick:.10g}") for tick in locator.tick_values(low, high)]


def picture(heat: HeatMap, columns: int) -> str:
    """A heat map as a PNG in a data address: one pixel a cell, empty where there is no score."""
    values = heat.binned(24, columns)
    colours: Any = load("matplotlib").colormaps["viridis"].resampled(32)
    pixels = colours(np.nan_to_num(values), bytes=True)
    pixels[~np.isfinite(values)] = 0
    out = io.BytesIO()
    load("matplotlib.image").imsave(out, pixels, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
