"""A folder that `secateurs prune` or sc.save wrote, as MODEL: what it was cut from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..atomic import parse_json, read_text
from ..errors import ConfigError, FileError
from .keras_files import ENDINGS

if TYPE_CHECKING:
    from .config import ModelSection

CONFIG = "config.json"
ZOOS = ("torchvision", "timm")
PT2 = ".pt2"  # data, whose reader runs no code


def original_of(folder: str, named: str | None, mend: str = "--class") -> str:
    """MODEL of the network that a saved one was cut from.

    Args:
        folder: the saved one.
        named: what the user says it is, if anything.
        mend: how the user can say it.

    Raises:
        ConfigError: nobody says it, or only the folder names code to run. What a file says never
            runs code that the user did not name: of a folder's own word, only names of torchvision
            and timm and files of .pt2, .keras and .h5 are taken.
        FileError: the folder's configuration is damaged.
    """
    if named is not None:
        return named
    model = recorded(folder)
    if model is None:
        raise ConfigError(
            f"{folder} does not say what it was cut from; give {mend} package.module:callable, or "
            f"{mend} torchvision:NAME"
        )
    origin = model.original or model.path
    if origin.partition(":")[0] not in ZOOS and not origin.endswith((PT2, *ENDINGS)):
        raise ConfigError(
            f"{folder} says that it was cut from {origin!r}; a file does not decide which code "
            f"runs: if you trust it, give {mend} {origin}"
        )
    return origin


def recorded(folder: str) -> ModelSection | None:
    """The [model] of the run that wrote a folder; None if the command line did not write it.

    Raises:
        FileError: it is damaged.
    """
    from .config import ModelSection

    path = Path(folder) / CONFIG
    if not os.path.lexists(path):
        return None
    data = parse_json(read_text(path), str(path))
    try:
        return ModelSection.model_validate(data["model"])
    except (ValidationError, KeyError, TypeError, ConfigError) as error:
        raise FileError(
            f"{path} is not the configuration of a run: {' '.join(str(error).split())[:200]}"
        ) from error
