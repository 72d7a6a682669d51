"""Plain text tables."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence


def render(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as text; columns whose every cell is a number are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(row[i][:1].isdigit() or row[i] == "" for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=110, color_system=None, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
