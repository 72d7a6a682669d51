"""MODEL as a `.keras` file, or a legacy `.h5`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .objects import find_function, made

if TYPE_CHECKING:
    from .config import DataSection

ENDINGS = (".keras", ".h5", ".hdf5")


def is_keras_file(path: str) -> bool:
    """Whether MODEL is a file that Keras reads."""
    return path.endswith(ENDINGS)


def load_keras(path: str) -> Any:
    """The Keras model in a file; on the torch backend, unless KERAS_BACKEND says otherwise.

    Raises:
        ConfigError: Keras is not installed.
        FileError: the file cannot be loaded in safe mode.
    """
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        from ..keras.files import load
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; pip install 'secateurs[keras]'"
        ) from error
    return load(path)


def keras_data(data: DataSection) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The data of a configuration as the verbs for Keras models take it: arguments, and by name.

    Raises:
        ConfigError: it is a data set of PyTorch, or a function is not there.
    """
    if ":" not in data.train or data.train.startswith("images:"):
        raise ConfigError(
            f"train {data.train!r}: for a Keras model name a package.module:callable that returns "
            "arrays (x, y) or a data set"
        )
    given = made(data.train, "train")
    loss = data.loss
    named: dict[str, Any] = {
        "loss": find_function(loss, "loss") if loss is not None and ":" in loss else loss,
        "metric": data.metric or "",
        "batch_size": data.batch_size,
    }
    if data.evaluate is not None:
        named["evaluate"] = find_function(data.evaluate, "evaluate")
        named["mode"] = data.mode
    return (given if isinstance(given, tuple) else (given,)), named


def own_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were set: a Keras model is fine-tuned as it is compiled."""
    return {name: value for name, value in options.items() if value != defaults.get(name)}
