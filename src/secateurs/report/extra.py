"""The libraries that only reports need, loaded when one is made."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ..errors import MissingExtraError

NEEDED = ("jinja2", "matplotlib")


def installed() -> bool:
    """Whether a page can be made here."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDED)


def check_installed() -> None:
    """Refuse where no page can be made.

    Raises:
        MissingExtraError: a library is not installed.
    """
    for name in NEEDED:
        load(name)


def load(module: str) -> Any:
    """A module of the extra `report`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"a report needs {' and '.join(NEEDED)}, and {error.name} is not installed: "
            "pip install 'secateurs[report]' (text needs neither: secateurs report DIR --text)"
        ) from error
