"""The report as one HTML page that needs nothing beside it and runs no script."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_text
from . import content
from .charts import draw
from .content import HeatMap
from .extra import load
from .html import render
from .record import Record

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
    maps = content.heat_maps(record)
    columns = CELLS if len(maps) <= content.MAPS // 2 else CELLS // 2
    return render(
        "page.html.j2",
        content=content,
        record=record,
        run=record.run,
        charts=[draw(chart) for chart in content.charts(record)],
        maps=[(one, picture(one, columns)) for one in maps[: content.MAPS]],
        shown=SHOWN,
        unseen=len(maps[content.MAPS :]),
        options={name: json.dumps(value) for name, value in record.run.options.items()},
    )


def picture(heat: HeatMap, columns: int) -> str:
    """A heat map as a PNG in a data address: one pixel a cell, empty where there is no score."""
    values = heat.binned(24, columns)
    colours: Any = load("matplotlib").colormaps["viridis"].resampled(32)
    pixels = colours(np.nan_to_num(values), bytes=True)
    pixels[~np.isfinite(values)] = 0
    out = io.BytesIO()
    load("matplotlib.image").imsave(out, pixels, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
