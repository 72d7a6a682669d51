"""MODEL: 'package.module:callable', 'torchvision:NAME', 'timm:NAME', a saved folder, a .pt2
or a .keras file, and what to feed it."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, FileError, nearest
from .keras_files import is_keras_file, load_keras
from .objects import called, find, made
from .saved import PT2, original_of, recorded

if TYPE_CHECKING:
    from torch import nn

IMAGE = (1, 3, 224, 224)


def build(
    path: str, weights: Path | None = None, seed: int = 0, original: str | None = None
) -> nn.Module:
    """The model that MODEL names.

    Args:
        path: MODEL.
        weights: a safetensors file of its whole state; else what it comes with (of torchvision
            and timm: random weights).
        seed: of random weights.
        original: MODEL of what a saved folder was cut from; see `original_of`.

    Raises:
        ConfigError: there is no such model, or it cannot be made.
        FileError: a file is missing, damaged, or of another model.
    """
    import torch
    from torch import nn

    from .. import load

    if original is not None and not is_saved(path):
        raise ConfigError(f"--class is for a saved folder; there is no folder {path!r}")
    model: Any
    if is_saved(path):
        model = load(path, build(original_of(path, original), seed=seed))
    elif path.endswith(PT2):
        model = load(path)
    elif is_keras_file(path):
        if weights is not None:
            raise ConfigError("a Keras file holds its own weights; leave --weights out")
        return load_keras(path)
    else:
        make = _maker(path)
        # only now: what importing the module draws must not matter, it is imported only once
        torch.manual_seed(seed)
        model = make if isinstance(make, nn.Module) else called(make, path, "model")
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError(f"model {path!r} must be or return a torch.nn.Module, not {kind}")
    if weights is not None:
        _fill(model, path, weights)
    return model


def is_saved(path: str) -> bool:
    """Whether MODEL is a folder."""
    return os.path.isdir(path)


def _maker(path: str) -> Any:
    """What makes the model that MODEL names, or the model itself."""
    zoo, _, name = path.partition(":")
    if zoo == "torchvision" and name:
        return _from_torchvision(name)
    if zoo == "timm" and name:
        return _from_timm(name)
    if not name and (os.sep in path or os.path.exists(path)):
        raise ConfigError(f"model {path!r} is no folder, {PT2}, .keras or .h5 file")
    return find(path, "model")


def _zoo(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise ConfigError(f"{missing} is not installed; pip install {missing}") from error
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        # a torchvision built for another torch fails while it registers its C++ operators
        raise ConfigError(
            f"{name} cannot be imported: {type(error).__name__}: {error}; torchvision seems to be "
            "built for another torch; install the two together, from one index"
        ) from error


def _from_torchvision(name: str) -> Callable[[], Any]:
    zoo = _zoo("torchvision").models
    known = zoo.list_models()
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}{nearest(name, known)}")
    return functools.partial(zoo.get_model, name, weights=None)


def _from_timm(name: str) -> Callable[[], Any]:
    zoo = _zoo("timm")
    if not zoo.is_model(name):
        raise ConfigError(f"timm has no model {name!r}{nearest(name, zoo.list_models())}")
    return functools.partial(zoo.create_model, name, pretrained=False)


def _fill(model: nn.Module, path: str, weights: Path) -> None:
    from safetensors.torch import load_model

    from .. import Plan
    from ..files.coded.tensors import NAME, decode, read
    from ..files.store import check_state, fill_state, load_tensors

    held, _ = load_tensors(weights, foreign=True)
    if NAME in held:
        found = read(held, str(weights))
        check_state(model, Plan({}, {}, {}), found, weights)
        fill_state(model, decode(found))
        return
    try:
        load_model(model, weights)
    except RuntimeError as error:
        raise FileError(f"{weights} does not fit {path}: {error}") from error


# ---------------------------------------------------------------------- inputs
def parse_shape(text: str) -> tuple[int, ...]:
    """The shape that '1,3,224,224' spells.

    Raises:
        ConfigError: it is not whole numbers above 0, separated by commas.
    """
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ConfigError(
            f"the input shape {text!r} must be whole numbers above 0 with commas between them, "
            "batch first, such as 1,3,224,224"
        )
    return shape


def example_inputs(
    path: str, model: nn.Module, shapes: Sequence[tuple[int, ...]], inputs: str | None
) -> Any:
    """What to run a model on: of the user's own making, or random numbers of given shapes.

    Raises:
        ConfigError: nothing says what the model takes.
    """
    import torch

    if inputs is not None:
        if shapes:
            raise ConfigError("give the input shape or inputs, not both")
        return made(inputs, "inputs")
    if is_keras_file(path) and not shapes:
        return None  # the model knows
    draw = torch.Generator().manual_seed(0)
    wanted = list(shapes) or _own_shapes(path, model)
    try:
        found = tuple(torch.randn(shape, generator=draw) for shape in wanted)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ConfigError(f"no input of shape {wanted} can be made: {error}") from error
    return found[0] if len(found) == 1 else found


def _own_shapes(path: str, model: nn.Module) -> Sequence[tuple[int, ...]]:
    zoo = path.partition(":")[0]
    if zoo == "timm":
        own = getattr(model, "pretrained_cfg", {}).get("input_size", IMAGE[1:])
        return [(1, *own)]
    if zoo == "torchvision":
        return [IMAGE]
    if is_saved(path) and (record := recorded(path)) is not None:
        # of a model of its own making, only the shape is taken: inputs would be code to run
        if record.input_shape:
            return record.input_shape
        if record.inputs is None:
            return _own_shapes(record.original or record.path, model)
    raise ConfigError(
        f"nothing says what {path} takes; give --input-shape 1,3,224,224 (batch first), or "
        "--inputs package.module:callable that returns example inputs"
    )
