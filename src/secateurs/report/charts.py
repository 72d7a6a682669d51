"""Charts: lines over common axes, described once, and their places on a picture."""

from __future__ import annotations

from dataclasses import dataclass, field

from .extra import load

# the size of a chart and the room around it; 400 across are legible on a telephone
SIZE = {"width": 400, "height": 250, "left": 46, "right": 12, "top": 12, "bottom": 40}

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line: its points in order.

    Attributes:
        band: for each point, between what the values lie; empty without.
        colour: which of the six; None draws it grey, among others that have no name of their own.
    """

    name: str
    points: list[Point]
    band: list[Point] = field(default_factory=list)
    colour: int | None = 0


@dataclass(frozen=True)
class Mark:
    """A value worth a rule across the chart: on the x or on the y axis."""

    axis: str
    value: float
    name: str
    unit: str = "%"

    @property
    def text(self) -> str:
        return f"{self.name} ({self.value:.4g}{self.unit})"


@dataclass(frozen=True)
class Chart:
    """Lines over common axes; `falling` lets x run from high to low."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    marks: list[Mark] = field(default_factory=list)
    falling: bool = False

    @property
    def named(self) -> list[Series]:
        """The series with a colour."""
        return [series for series in self.series if series.colour is not None]

    @property
    def grey(self) -> int:
        """How many others there are."""
        return len(self.series) - len(self.named)


@dataclass(frozen=True)
class Line:
    """A series on its picture; `band` is the outline of what the values lie in."""

    series: Series
    points: list[Point]
    band: list[Point]


@dataclass(frozen=True)
class Drawn:
    """A chart in the coordinates of its picture.

    Attributes:
        lines: the series; grey ones first, so that the others lie on them.
        x_ticks, y_ticks: place and text.
        rules: per mark, its text and the ends of its line.
    """

    chart: Chart
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    rules: list[tuple[str, tuple[float, float, float, float]]]

    @property
    def text(self) -> str:
        """What the chart shows, for those who do not see it."""
        ends = [
            f"{series.name} from {series.points[0][1]:.4g} to {series.points[-1][1]:.4g}"
            for series in self.chart.named
        ]
        others = [f"{self.chart.grey} more in grey"] if self.chart.grey else []
        marks = [f"{mark.name} at {mark.value:.4g}" for mark in self.chart.marks]
        return "; ".join([*ends, *others, *marks])


def draw(chart: Chart) -> Drawn:
    """Place a chart on its picture."""
    points = [point for series in chart.series for point in series.points]
    bands = [end for series in chart.series for ends in series.band for end in ends]
    marks = {axis: [m.value for m in chart.marks if m.axis == axis] for axis in "xy"}
    x_ticks = _ticks([x for x, _ in points] + marks["x"])
    y_ticks = _ticks([y for _, y in points] + bands + marks["y"])
    left, right = (x_ticks[-1], x_ticks[0]) if chart.falling else (x_ticks[0], x_ticks[-1])

    start, end = SIZE["left"], SIZE["width"] - SIZE["right"]
    floor, ceiling = SIZE["height"] - SIZE["bottom"], SIZE["top"]

    def across(x: float) -> float:
        return round(start + (x - left) / (right - left) * (end - start), 1)

    def down(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(floor + share * (ceiling - floor), 1)

    def line(series: Series) -> Line:
        pairs = zip(series.points, series.band, strict=True) if series.band else ()
        band = [(across(x), low, high) for (x, _), (low, high) in pairs]
        outline = [(x, down(low)) for x, low, _ in band]
        outline += [(x, down(high)) for x, _, high in reversed(band)]
        return Line(series, [(across(x), down(y)) for x, y in series.points], outline)

    return Drawn(
        chart,
        [line(series) for series in sorted(chart.series, key=lambda s: s.colour is not None)],
        [(across(x), f"{x:g}") for x in x_ticks],
        [(down(y), f"{y:g}") for y in y_ticks],
        [
            (m.text, (across(m.value), ceiling, across(m.value), floor))
            if m.axis == "x"
            else (m.text, (start, down(m.value), end, down(m.value)))
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
