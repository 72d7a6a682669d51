"""One HTML page that needs nothing beside it and runs no script, from a template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import words
from .charts import SIZE
from .extra import load


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder; everything that is put in is escaped.

    Raises:
        MissingExtraError: jinja2 is not installed.
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
    environment.globals |= {
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "size": SIZE,
        "words": words,
    }
    page: str = environment.get_template(template).render(**values)
    return page
