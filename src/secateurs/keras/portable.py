"""Make a `.keras` file that one backend wrote readable on the others."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..atomic import replacing

_CONFIG = "config.json"
_TORCH = "keras.src.backend.torch.optimizers."


def make_portable(path: str | Path) -> None:
    """Name the optimizer of a model by its public class, not by its form for PyTorch.

    On torch, `keras.optimizers.Adam()` gives an object of a class of that backend, and Keras writes
    the name of that class, with which no other backend can do anything.
    """
    with zipfile.ZipFile(path) as old:
        config = json.loads(old.read(_CONFIG))
        narrow = [own for own in _dicts(config) if str(own.get("module")).startswith(_TORCH)]
        if not narrow:
            return
        for own in narrow:
            own.update(module="keras.optimizers", registered_name=None)
        with replacing(Path(path)) as place, zipfile.ZipFile(place, "w") as new:
            for item in old.infolist():
                if item.filename == _CONFIG:
                    new.writestr(item, json.dumps(config))
                else:
                    with old.open(item) as source, new.open(item, "w") as target:
                        shutil.copyfileobj(source, target)


def _dicts(config: Any) -> Iterator[dict[str, Any]]:
    """Every dict in a configuration."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    for item in config if isinstance(config, list) else ():
        yield from _dicts(item)
