"""The report of a comparison as one HTML page, as pictures and as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .. import tables
from ..atomic import write_text
from ..compare.comparison import Comparison
from ..compare.statistics import DRAWS
from . import compared as content
from .charts import draw
from .compared import Table
from .compared_charts import curve_charts, sensitivity_charts
from .figures import figure, plot, write_all
from .html import render
from .words import printable

SURE = {
    "clear": "Clear: ahead by more than the seeds explain, allowing for the best having been "
    "picked from all.",
    "likely": "Likely: ahead by more than the seeds explain, but the best was picked from several; "
    "more seeds would settle it.",
    "tied": "Not sure: what the seeds alone change is as large as the difference.",
    "unknown": "Not known: there is nothing to judge a difference by.",
}
NARROW = 7  # columns that a table in a terminal has room for


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    path = Path(path)
    write_text(path, render_comparison(comparison))
    return path


def render_comparison(comparison: Comparison) -> str:
    """The page as text.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    return render(
        "comparison.html.j2",
        content=content,
        comparison=comparison,
        curve_charts=[draw(chart) for chart in curve_charts(comparison)],
        sensitivity_charts=[draw(chart) for chart in sensitivity_charts(comparison)],
        sure=SURE,
        draws=DRAWS,
    )


def write_comparison_figures(comparison: Comparison, directory: str | Path) -> list[Path]:
    """Write each picture as SVG and PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return write_all(_figures(comparison), directory)


def _figures(comparison: Comparison) -> Iterator[tuple[str, Any]]:
    for chart in (*sensitivity_charts(comparison), *curve_charts(comparison)):
        yield chart.key, plot(chart)
    heat = content.layer_map(comparison)
    if heat.hot:
        yield "correlation", _heat(heat)


def _heat(table: Table) -> Any:
    rows, columns = [row[0].text for row in table.rows], table.columns[1:]
    values = [[float("nan") if c.heat is None else c.heat for c in r[1:]] for r in table.rows]
    made = figure(1.6 + 0.42 * len(columns), 1.2 + 0.24 * len(rows))
    axes = made.add_subplot()
    image = axes.imshow(values, aspect="auto", cmap="BrBG", vmin=-1, vmax=1)
    axes.set_xticks(range(len(columns)), map(printable, columns), rotation=90)
    axes.set_yticks(range(len(rows)), map(printable, rows))
    axes.set_title(table.title, fontsize=9, loc="left")
    made.colorbar(image, ax=axes)
    return made


# ---------------------------------------------------------------------- as text
def summary(comparison: Comparison) -> str:
    """The correlations and the recommendation."""
    parts = [_text(content.correlations(comparison)), str(comparison.recommendation)]
    return printable("\n\n".join(filter(None, parts)))


def render_text(comparison: Comparison) -> str:
    """The same tables as on the page."""
    maps = [*content.sensitivity_maps(comparison), content.layer_map(comparison)]
    blocks: Iterable[str] = (
        f"Which criterion for {comparison.setting.network}?",
        str(comparison.recommendation),
        *map(_text, maps[:-1]),
        *map(_text, content.results(comparison)),
        _text(content.correlations(comparison)),
        _text(maps[-1]),
        _text(content.correlations(comparison, "kendall")),
        _pairs("layers without a coefficient", [
            (why, ", ".join(who)) for why, who in content.skipped(comparison).items()
        ]),
        _text(content.prices(comparison)),
        _pairs("not judged", comparison.recommendation.left_out.items()),
        _pairs("what was compared, on what", content.facts(comparison)),
    )  # fmt: skip
    return printable("\n\n".join(filter(None, blocks)))


def _pairs(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    rows = list(pairs)
    return tables.render(title, ("", " "), rows) if rows else ""


def _text(table: Table) -> str:
    """A table as text; a wide one in several."""
    columns = range(1, len(table.columns))
    parts = []
    for start in columns[::NARROW]:
        own = columns[start - 1 : start - 1 + NARROW]
        rows = [
            [row[0].text, *(_both(row[i].text, row[i].small) for i in own)] for row in table.rows
        ]
        head = [table.columns[0], *(table.columns[i] for i in own)]
        title = table.title if start == 1 else f"{table.title}, continued"
        parts.append(tables.render(title, head, rows))
    return "\n\n".join(parts) if table.rows else ""


def _both(text: str, small: tuple[str, ...]) -> str:
    return f"{text} ({small[0]})" if small else text
