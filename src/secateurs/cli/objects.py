"""What a command line can name: 'package.module:name' and losses."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest


def importable(folders: Iterable[Path]) -> None:
    """Let `import` find what lies in these folders, the first one first."""
    for folder in reversed([str(folder.resolve()) for folder in folders]):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def find(path: str, what: str) -> Any:
    """The object that 'package.module:name' names.

    Args:
        path: a module and a name in it, which may be dotted.
        what: how the user knows it, such as 'train'; for messages.

    Raises:
        ConfigError: it is not of this form, or does not exist, or its module does not import.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        hint = ", or name a saved folder or a .pt2 file that is there" if what == "model" else ""
        raise ConfigError(f"{what} {path!r} must look like package.module:name{hint}")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{what} {path!r} names a file; write its module, {dotted}:{name}")
    found = _import(module_name, path, what)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            public = [known for known in dir(found) if not known.startswith("_")]
            hint = nearest(part, public)
            raise ConfigError(f"{what} {path!r}: there is no {part!r} in it{hint}") from None
    return found


def _import(name: str, path: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{what} {path!r} cannot be imported: {told(error)}") from error
        raise ConfigError(
            f"{what} {path!r}: no module is called {error.name!r}; it is looked for in the "
            f"current directory ({Path.cwd()}), beside the configuration, and where Python looks"
        ) from error
    except Exception as error:
        raise ConfigError(f"{what} {path!r} cannot be imported: {told(error)}") from error


def find_function(path: str, what: str) -> Callable[..., Any]:
    """The function that 'package.module:name' names.

    Raises:
        ConfigError: see `find`; or it cannot be called.
    """
    function: Callable[..., Any] = find(path, what)
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(f"{what} {path!r} must be a function, not {function!r}")
    return function


def made(path: str, what: str) -> Any:
    """What 'package.module:name' names, called without arguments if it can be called.

    Raises:
        ConfigError: see `find`; or the call raised.
    """
    found = find(path, what)
    return called(found, path, what) if callable(found) else found


def called(function: Callable[[], Any], path: str, what: str) -> Any:
    """The result of a user's function.

    Raises:
        ConfigError: it raised; says what and where.
    """
    try:
        return function()
    except Exception as error:
        raise ConfigError(f"{what} {path!r} failed when called: {told(error)}") from error


def told(error: BaseException) -> str:
    """An error of code that is not ours, in a few words: type, message, file and line."""
    message = " ".join(str(error).split())
    short = message if len(message) <= 300 else f"{message[:300]} …"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {short}{where}"


def find_loss(name: str) -> Callable[[Any, Any], Any]:
    """The loss of this name: one of torch.nn.functional, or 'package.module:name'.

    Those of torch.nn.functional give one value per example: the mean over all else.

    Raises:
        ConfigError: there is none of this name.
    """
    if ":" in name:
        return find_function(name, "loss")
    losses = _functional_losses()
    if name not in losses:
        raise ConfigError(
            f"no loss in torch.nn.functional is called {name!r}{nearest(name, losses)}; "
            "or name your own, package.module:name"
        )
    function = losses[name]

    def per_example(output: Any, target: Any) -> Any:
        values = function(output, target, reduction="none")
        return values.flatten(1).mean(1) if values.dim() > 1 else values

    return per_example


def _functional_losses() -> dict[str, Callable[..., Any]]:
    """The functions of (input, target) that can leave the examples apart."""
    from torch.nn import functional

    out: dict[str, Callable[..., Any]] = {}
    for name, function in vars(functional).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            parameters = list(inspect.signature(function).parameters)
            if parameters[:2] == ["input", "target"] and "reduction" in parameters:
                out[name] = function
    return out
