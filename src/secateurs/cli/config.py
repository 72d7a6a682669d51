"""The configuration of `secateurs prune` and `secateurs compare`: a TOML file, flags, or both."""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from ..atomic import read_text
from ..compare.options import CompareOptions
from ..data.images import IMAGENET_MEAN, IMAGENET_STD
from ..errors import ConfigError, nearest
from ..process.options import Options, SparsifyOptions
from .datasets import SCHEMES, is_built_in
from .keras_files import is_keras_file
from .models import parse_shape

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Values = dict[str, Any]


class Section(BaseModel):
    """A part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class ModelSection(Section):
    """What to prune."""

    path: str
    """package.module:callable (called without arguments), torchvision:NAME, timm:NAME, a folder
    that `secateurs prune` or sc.save wrote, or a .pt2, .keras or .h5 file."""
    original: Annotated[str | None, Field(alias="class", examples=["my_model:build"])] = None
    """What a saved folder was cut from, as for `path`; needed where the folder does not say."""
    weights: Annotated[Path | None, Field(strict=False, examples=["trained.safetensors"])] = None
    """A safetensors file with the trained weights."""
    input_shape: Annotated[
        tuple[tuple[Annotated[int, Field(ge=1)], ...], ...], Field(examples=[[1, 3, 224, 224]])
    ] = ()
    """The shape of an example input, batch first, or a list of shapes for several inputs; by
    default what the model was made for, where that is known."""
    inputs: Annotated[str | None, Field(examples=["my_data:inputs"])] = None
    """package.module:callable that returns example inputs, in place of a shape."""

    @field_validator("input_shape", mode="before")
    @classmethod
    def _shapes(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (parse_shape(value),)
        if not isinstance(value, (list, tuple)):
            return value
        if not any(isinstance(part, (list, tuple, str)) for part in value):
            return (tuple(value),) if value else ()
        return tuple(parse_shape(part) if isinstance(part, str) else _tuple(part) for part in value)


class DataSection(Section):
    """What to train, score and judge with."""

    train: str
    """mnist, mnist:DIR, images:DIR (one folder of images a class), or package.module:callable that
    returns batches (input, target)."""
    loss: Annotated[str | None, Field(examples=["cross_entropy"])] = None
    """A loss of torch.nn.functional, such as cross_entropy, or package.module:callable, a function
    (output, target) -> one value per example. Of a Keras model, what compile takes; by default
    what it is compiled with."""
    evaluate: Annotated[str | None, Field(examples=["my_data:accuracy"])] = None
    """What the metric is taken on after every step: mnist (its test images), mnist:DIR or
    images:DIR for the accuracy there, or package.module:callable, a function (model) -> metric."""
    metric: Annotated[str | None, Field(examples=["accuracy"])] = None
    """What the metric is called; by default accuracy for a data set, else metric."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of the metric is better."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images in a batch of mnist and images:DIR."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of images:DIR, taken from each channel of pixels in [0, 1]; one number a channel."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = IMAGENET_STD
    """Of images:DIR, by which each channel is divided then; one number a channel."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """How much of the sides of images:DIR is kept, around the middle, before it is resized."""
    augment: bool = False
    """Train on random crops of images:DIR, half of them mirrored."""

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return _tuple(value)
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError("must be numbers with commas between them") from None

    @property
    def metric_name(self) -> str:
        return self.metric or ("accuracy" if is_built_in(self.evaluate or "") else "metric")


class BudgetSection(Section):
    """What to keep: up to 1 a fraction, above 1 an absolute number. At least one is given."""

    macs: Annotated[float | None, Field(examples=[0.2])] = None
    """Of the multiply-accumulates of one run on the example inputs."""
    params: Annotated[float | None, Field(examples=[0.5])] = None
    """Of the parameters."""
    units: Annotated[float | None, Field(examples=[100])] = None
    """Of the units (channels, neurons)."""

    @property
    def given(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True)


class PruneSection(Options):
    """How to prune: the options of `secateurs.prune`, and the criterion."""

    model_config = ConfigDict(strict=True)

    criterion: str = "taylor"
    """What decides which units go: taylor, fisher, obd, activation, apoz, weight, l1, l2, fpgm,
    lamp, random, or another name in the guide to the criteria."""

    @field_validator("only", "ignore", "trackers", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else _tuple(value)

    @property
    def options(self) -> Values:
        return self.model_dump(exclude={"criterion"})


class SparsifySection(SparsifyOptions):
    """How to mask: the options of `secateurs.sparsify`, the target and the saliency. Exactly one
    of compression, sparsity and pattern is given."""

    model_config = ConfigDict(strict=True)

    compression: Annotated[float | None, Field(examples=[10.0])] = None
    """Parameters of the network / those that are left."""
    sparsity: Annotated[float | None, Field(examples=[0.9])] = None
    """The fraction of the parameters that goes."""
    pattern: Annotated[str | None, Field(examples=["2:4"])] = None
    """N:M, at most N of every M neighbours along what a weight reads."""
    saliency: str = "magnitude"
    """What decides which weights go: magnitude, taylor, obd, gauss-newton, random."""

    @field_validator("only", "ignore", "trackers", "turns", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else _tuple(value)

    @field_validator("band", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        try:
            return tuple(map(float, value.split(","))) if isinstance(value, str) else _tuple(value)
        except ValueError:
            raise ValueError("must be two numbers with a comma between them") from None


class CompareSection(CompareOptions):
    """How to compare: the options of `secateurs.compare`, the criteria and where they run."""

    model_config = ConfigDict(strict=True)

    criteria: Annotated[tuple[str, ...], Field(examples=[["taylor", "weight"]])] = ()
    """Which criteria are compared, by their names; all there are by default."""
    preset: Literal["quick", "full"] = "quick"
    """What the options below are where they are not set: quick for a first look, or full."""
    engine: Literal["none", "processes", "ray"] = "none"
    """Where experiments run: in this process, in several, or on a Ray cluster."""
    jobs: Annotated[int | None, Field(ge=1, examples=[2])] = None
    """How many experiments run at a time; by default one a processor."""

    @field_validator(
        "criteria", "budgets", "seeds", "forms", "sensitivity", "only", "ignore", mode="before"
    )
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return _tuple(value) if isinstance(value, (list, tuple)) else (value,)

    @property
    def options(self) -> Values:
        """What was set, to be put upon the preset."""
        return self.model_dump(include=self.model_fields_set & set(CompareOptions.model_fields))


class Config(Section):
    """All that a run of `secateurs prune` or `secateurs compare` needs to know."""

    out: Annotated[Path, Field(strict=False)]
    """Where the weights, the plan, the history and checkpoints go."""
    model: ModelSection
    data: DataSection
    budget: BudgetSection = Field(default_factory=BudgetSection)
    prune: PruneSection = Field(default_factory=PruneSection)
    sparsify: SparsifySection = Field(default_factory=SparsifySection)
    compare: CompareSection = Field(default_factory=CompareSection)


SECTIONS: Mapping[str, type[BaseModel]] = {
    "model": ModelSection,
    "data": DataSection,
    "budget": BudgetSection,
    "compare": CompareSection,
    "prune": PruneSection,
    "sparsify": SparsifySection,
}


def keys(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by the names that they have in a file."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_toml(path: Path) -> Values:
    """The values of a TOML file; relative paths in it are taken from its own folder.

    Raises:
        FileError: it cannot be read.
        ConfigError: it is not TOML.
    """
    try:
        values = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # an integer of too many digits is no TOML error
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    folder = path.resolve().parent
    for section, names in (
        (None, ["out"]),
        ("model", ["path", "weights"]),
        ("data", ["train", "evaluate"]),
    ):
        own: Any = values if section is None else values.get(section)
        for name in names:
            if isinstance(own, dict) and isinstance(own.get(name), str):
                own[name] = _anchored(folder, own[name], always=name in ("out", "weights"))
    return values


def _anchored(folder: Path, text: str, *, always: bool) -> str:
    """A path of the file as seen from its folder: 'runs/a', 'images:photos', 'net.pt2'."""
    scheme, colon, rest = text.partition(":")
    if colon and not always:
        return f"{scheme}:{folder / rest}" if scheme in SCHEMES and rest else text
    return str(folder / text) if always or os.path.exists(folder / text) else text


def make_config(file: Path | None, flags: Mapping[str, Any], *, budget: bool = True) -> Config:
    """The configuration that a file and the flags make together; a flag wins.

    Args:
        file: TOML, or None.
        flags: section -> key -> value, and 'out'; what is None was not given.
        budget: whether one must be given.

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
    _complete(file, values, budget)
    try:
        return Config(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e, file, origin) for e in error.errors())) from None


def _complete(file: Path | None, values: Values, budget: bool) -> None:
    """Refuse unknown keys and missing ones, by name.

    Raises:
        ConfigError: see above.
    """
    where = "" if file is None else f"{file}: "
    for name, given in values.items():
        if name not in keys(Config):
            section = next((s for s, model in SECTIONS.items() if name in keys(model)), None)
            hint = nearest(name, keys(Config))
            hint = f"; it belongs in [{section}]" if section else hint
            raise ConfigError(f"{where}there is no key {name!r}{hint}")
        for key in given if name in SECTIONS else ():
            if key not in keys(SECTIONS[name]):
                hint = nearest(key, keys(SECTIONS[name]))
                raise ConfigError(f"{where}[{name}] has no key {key!r}{hint}")
    for name, key in (("model", "path"), ("data", "train"), ("data", "loss")):
        compiled = key == "loss" and is_keras_file(str(values["model"].get("path")))
        if key not in values.get(name, {}) and not compiled:
            raise ConfigError(f"{where}nothing says the {name}'s {key}: {_mend(name, key)}")
    if budget and not values.get("budget"):
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
    return f"{where}: {message}, not {reprlib.repr(error['input'])}"
