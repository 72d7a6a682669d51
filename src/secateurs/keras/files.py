"""Keep a pruned Keras model: a `.keras` file that loads without us, and what was cut beside it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..errors import ConfigError
from ..files.store import HISTORY, PLAN
from ..plan import Plan
from .layers import Layer

MODEL = "model.keras"


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
            for name in (MODEL, PLAN, *([HISTORY] if history is not None else []))
        }
        model.save(place[MODEL])
        place[PLAN].write_text((plan or Plan({}, {}, {})).to_json(), encoding="utf-8")
        if history is not None:
            place[HISTORY].write_text(json.dumps(history, indent=1), encoding="utf-8")
    return directory
