"""Keep a pruned Keras model: a `.keras` file that loads without us, and what was cut beside it."""

from __future__ import annotations

import json
import warnings
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keras

from ..atomic import check_file, replacing
from ..errors import ConfigError, FileError
from ..files.store import HISTORY, KERAS, PLAN
from ..plan import Plan
from .layers import Layer


def save(
    model: Layer,
    plan: Plan | None,
    directory: str | Path,
    *,
    history: list[dict[str, Any]] | None = None,
    sparse: bool = False,
    values: str = "exact",
) -> Path:
    """Write `model.keras`, which `keras.models.load_model` reads on every backend, and the plan.

    Args:
        model, plan, directory, history: see `secateurs.save`.
        sparse, values: not for Keras models, whose file format holds dense weights.

    Raises:
        ConfigError: a sparse file is asked for.
        FileError: the system refuses; what was there is untouched.
    """
    if sparse or values != "exact":
        raise ConfigError(
            "a .keras file holds its weights dense, so that Keras can read it; sparse=True and "
            "values=… are for PyTorch models"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        place = {
            name: files.enter_context(replacing(directory / name))
            for name in (KERAS, PLAN, *([HISTORY] if history is not None else []))
        }
        model.save(place[KERAS])
        _for_every_backend(place[KERAS])
        place[PLAN].write_text((plan or Plan({}, {}, {})).to_json(), encoding="utf-8")
        if history is not None:
            place[HISTORY].write_text(json.dumps(history, indent=1), encoding="utf-8")
    return directory


def _for_every_backend(path: Path) -> None:
    """Name optimizers by their public names: a class of the torch backend loads nowhere else."""
    with zipfile.ZipFile(path) as archive:
        parts = {info: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in parts.items():
            if info.filename == "config.json":
                config = json.loads(content)
                _rename(config)
                content = json.dumps(config).encode()
            archive.writestr(info, content)


def _rename(nest: Any) -> None:
    if isinstance(nest, dict):
        if str(nest.get("module")).startswith("keras.src.backend."):
            nest["module"] = "keras.optimizers"
        for value in nest.values():
            _rename(value)
    elif isinstance(nest, list):
        for value in nest:
            _rename(value)


def load(path: str | Path) -> Layer:
    """Read a `.keras` file, or a legacy `.h5`, without running code that the file holds.

    It comes compiled as it was saved, where that can be read.

    Raises:
        FileError: it is missing, damaged, holds code, or needs layers that are not registered.
    """
    path = check_file(path)
    first: Exception | None = None
    for compiled in (True, False):  # older files name losses that no longer are
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that an optimizer of another backend starts anew
                return keras.models.load_model(path, compile=compiled, safe_mode=True)
        except Exception as error:  # noqa: BLE001 - whatever a file makes Keras raise
            first = first or error
    reason = str(first).strip().splitlines() or [type(first).__name__]
    raise FileError(f"{path} cannot be loaded as a Keras model: {reason[0]}") from first
