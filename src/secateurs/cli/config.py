"""The configuration of `secateurs prune`: a TOML file, flags, or both."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..atomic import read_text
from ..errors import ConfigError, nearest
from ..process.options import Options
from .models import parse_shape

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Values = dict[str, Any]


class Section(BaseModel):
    """A part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """What to prune.

    Attributes:
        path: 'package.module:callable', 'torchvision:NAME' or 'timm:NAME'.
        weights: a safetensors file with the trained weights.
        input_shape: of one input, batch first, or a list of shapes for several inputs.
        inputs: 'package.module:callable' that returns example inputs, in place of a shape.
    """

    path: str
    weights: Path | None = None
    input_shape: tuple[tuple[int, ...], ...] = ()
    inputs: str | None = None

    @field_validator("input_shape", mode="before")
    @classmethod
    def _shapes(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (parse_shape(value),)
        if isinstance(value, list) and value and all(isinstance(n, int) for n in value):
            return (tuple(value),)
        if isinstance(value, list):
            return tuple(parse_shape(s) if isinstance(s, str) else s for s in value)
        return value


class DataSection(Section):
    """What to train, score and judge with.

    Attributes:
        train: 'package.module:callable' that returns batches (input, target).
        loss: a loss of torch.nn.functional, or 'package.module:callable'.
        evaluate: 'package.module:callable', called with the model after every step.
        metric, mode: the name of what `evaluate` returns, and whether more or less is better.
    """

    train: str
    loss: str
    evaluate: str | None = None
    metric: str = "metric"
    mode: Literal["max", "min"] = "max"


class BudgetSection(Section):
    """What to keep: up to 1 a fraction, above 1 an absolute number. At least one is given."""

    macs: float | None = None
    params: float | None = None
    units: float | None = None

    @property
    def given(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True)


class PruneSection(Options):
    """How: the options of `secateurs.prune`, and the criterion."""

    criterion: str = "taylor"

    @field_validator("only", "ignore", "trackers", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def options(self) -> Values:
        return self.model_dump(exclude={"criterion"})


class Config(Section):
    """All that a run of `secateurs prune` needs to know."""

    model: ModelSection
    data: DataSection
    budget: BudgetSection
    prune: PruneSection = Field(default_factory=PruneSection)
    out: Path


SECTIONS: Mapping[str, type[BaseModel]] = {
    "model": ModelSection,
    "data": DataSection,
    "budget": BudgetSection,
    "prune": PruneSection,
}


def read_toml(path: Path) -> Values:
    """The values of a TOML file; relative paths in it are taken from its own folder.

    Raises:
        FileError: it cannot be read.
        ConfigError: it is not TOML.
    """
    try:
        values = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    folder = path.resolve().parent
    for section, key in ((values, "out"), (values.get("model"), "weights")):
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = str(folder / section[key])
    return values


def make_config(file: Path | None, flags: Mapping[str, Any]) -> Config:
    """The configuration that a file and the flags make together; a flag wins.

    Args:
        file: TOML, or None.
        flags: section -> key -> value, and 'out'; what is None was not given.

    Raises:
        ConfigError: names the key, what it was given, and what is allowed.
        FileError: the file cannot be read.
    """
    values = read_toml(file) if file is not None else {}
    for name in SECTIONS:
        if not isinstance(values.get(name, {}), dict):
            raise ConfigError(f"{file}: {name!r} must be a section: write [{name}] above its keys")
    origin: dict[tuple[str, ...], str] = {}
    for name, given in flags.items():
        if not isinstance(given, Mapping):
            if given is not None:
                values[name] = given
            continue
        own = {key: value for key, value in given.items() if value is not None}
        # half a budget from a file and half from a flag would be a third one, that nobody chose
        if own:
            values[name] = own if name == "budget" else {**values.get(name, {}), **own}
            origin |= {(name, key): _flag(name, key) for key in own}
    _complete(file, values)
    try:
        return Config(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e, file, origin) for e in error.errors())) from None


def _complete(file: Path | None, values: Values) -> None:
    """Refuse unknown keys and missing ones, by name.

    Raises:
        ConfigError: see above.
    """
    where = "" if file is None else f"{file}: "
    for name, given in values.items():
        if name not in Config.model_fields:
            section = next((s for s, model in SECTIONS.items() if name in model.model_fields), None)
            hint = nearest(name, Config.model_fields)
            hint = f"; it belongs in [{section}]" if section else hint
            raise ConfigError(f"{where}there is no key {name!r}{hint}")
        for key in given if name in SECTIONS else ():
            if key not in SECTIONS[name].model_fields:
                hint = nearest(key, SECTIONS[name].model_fields)
                raise ConfigError(f"{where}[{name}] has no key {key!r}{hint}")
    for name, key in (("model", "path"), ("data", "train"), ("data", "loss")):
        if key not in values.get(name, {}):
            raise ConfigError(f"{where}nothing says the {name}'s {key}: {_mend(name, key)}")
    if not values.get("budget"):
        raise ConfigError(f"{where}nothing says the budget: give --budget macs=0.2, or [budget]")
    if "out" not in values:
        raise ConfigError(f"{where}nothing says where to write: give --out, or out = ... on top")


def _flag(section: str, key: str) -> str:
    if section == "budget":
        return f"--budget {key}"
    return "--model" if (section, key) == ("model", "path") else f"--{key.replace('_', '-')}"


def _mend(section: str, key: str) -> str:
    return f"give {_flag(section, key)}, or {key} in [{section}]"


def _explain(error: Any, file: Path | None, origin: Mapping[tuple[str, ...], str]) -> str:
    """One error of Pydantic in the words of whoever wrote the value."""
    at = tuple(str(part) for part in error["loc"])
    if at[:2] in origin:
        where = origin[at[:2]]
    else:
        name = f"[{at[0]}] {'.'.join(at[1:])}" if at[0] in SECTIONS and at[1:] else ".".join(at)
        where = name if file is None else f"{file}: {name}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
    return f"{where}: {message}, not {error['input']!r}"
