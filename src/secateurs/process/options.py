"""The options of `prune` and `sparsify`, with the same names in Python and in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError, nearest
from ..ranking import Limits

R = TypeVar("R", bound="Where")


class Where(BaseModel):
    """Which modules may lose something."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    only: Annotated[tuple[str, ...], Field(examples=[["layer1.*"]])] = ()
    """Prune only modules of these paths, such as 'layer1.*'."""
    ignore: Annotated[tuple[str, ...], Field(examples=[["fc"]])] = ()
    """Leave modules of these paths alone."""


class Training(Where):
    """How weights are updated, and when a run stops."""

    warmup: Annotated[int, Field(ge=0)] = 0
    """Weight updates before the first removal."""
    score_batches: Annotated[int, Field(ge=1)] = 10
    """Batches that each ranking is made from, where it needs data."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the default optimizer, SGD with momentum 0.9."""
    floor: Annotated[float | None, Field(examples=[0.9])] = None
    """Stop before the metric crosses this value, and keep the smallest network that held it."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches per weight update."""
    device: Annotated[str | None, Field(examples=["cpu"])] = None
    """'cpu', 'cuda', 'cuda:1', 'mps' …; by default what Accelerate finds."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision of the training."""
    trackers: Annotated[tuple[str, ...], Field(examples=[["tensorboard"]])] = ()
    """Accelerate trackers, such as 'tensorboard' or 'wandb'."""
    seed: Annotated[int, Field(ge=0, lt=1 << 62)] = 0
    """Of everything that is drawn."""


class Ranking(Where):
    """How scores become a choice: what makes groups comparable, and what may go."""

    normalize: Literal["none", "l1", "l2", "max", "mean", "rank"] = "l2"
    """How the scores of a group are scaled before groups are compared."""
    flops_weight: Annotated[float, Field(ge=0)] = 1e-3
    """How much a unit's share of the MACs speaks for its removal."""
    cost_power: Annotated[float, Field(ge=0)] = 0.0
    """Scores are divided by what a unit costs, to this power; 0.5 suits budgets of MACs."""
    min_keep: Annotated[int, Field(ge=1)] = 1
    """Units that stay in every group."""
    max_remove: Annotated[float, Field(gt=0, le=1)] = 0.95
    """The largest fraction of a group's units that may go."""
    round_to: Annotated[int, Field(ge=1)] = 1
    """The size of every pruned group stays a multiple of this many units."""
    exact_only: bool = True
    """Leave groups alone whose cut changes a statistic (such as a LayerNorm's)."""

    @property
    def limits(self) -> Limits:
        return Limits(
            self.only, self.ignore, self.min_keep, self.max_remove, self.round_to, self.exact_only
        )


class Options(Training, Ranking):
    """How `prune` works; every field has a default.

    `secateurs init` writes them all out, and `secateurs prune --help` lists them.

    >>> Options(step=0.1).final
    500
    """

    step: Annotated[float, Field(gt=0)] = 0.05
    """Units removed per step: below 1 a fraction of the original units, else a number."""
    schedule: Literal["constant", "geometric"] = "constant"
    """Whether every step removes as many units, or in proportion to those left, ever fewer."""
    updates: Annotated[int, Field(ge=0)] = 50
    """Weight updates after each removal."""
    final: Annotated[int, Field(ge=0)] = 500
    """Weight updates after the last removal."""
    latency: bool = False
    """Measure the latency of the network before and after, on the example inputs."""


class SparsifyOptions(Training):
    """How `sparsify` works; every field has a default.

    Updates are counted from the end of the warm-up. `secateurs init` writes all options out, and
    `secateurs sparsify --help` lists them.

    >>> SparsifyOptions(updates=500).ramp
    0.5
    """

    updates: Annotated[int, Field(ge=0)] = 2000
    """Weight updates after the warm-up."""
    schedule: Literal["cubic", "linear", "one-shot"] = "cubic"
    """How the target is approached: fast at first and then ever slower, evenly, or at once."""
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The fraction of the updates over which the target is approached."""
    stop: Annotated[float, Field(ge=0, le=1)] = 0.8
    """The fraction of the updates after which the masks stand still."""
    every: Annotated[int, Field(ge=1)] = 10
    """Weight updates from one look at the masks to the next."""
    gamma: Annotated[float, Field(ge=0)] = 1e-4
    """Masks change with probability (1 + gamma·updates)^−power at each look."""
    power: Annotated[float, Field(ge=0)] = 1.0
    """See gamma."""
    splice: bool = True
    """Bring back what proves to matter; without it, what is pruned stays pruned."""
    band: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.9, 1.1)
    """A weight goes at this part of the threshold, and comes back above that part of it."""
    scope: Literal["global", "layer"] = "global"
    """Whether weights are compared over all layers, or every layer keeps the same fraction."""
    normalize: Literal["auto", "standard", "none"] = "auto"
    """How layers are made comparable: in standard deviations from the mean of the layer, or as
    they are; auto is standard where the weights alone tell their saliency or thresholds are
    given, else none."""
    statistics: Literal["start", "now"] = "start"
    """Whether mean and deviation of a layer are those before the first removal, or taken anew;
    anew in any case where a layer starts with weights that are all alike."""
    biases: bool = True
    """Mask biases too."""
    min_keep: Annotated[int, Field(ge=1)] = 1
    """Weights that stay in every layer."""
    turns: Annotated[tuple[str, ...], Field(examples=[["conv*", "fc*"]])] = ()
    """Patterns of module paths whose layers are masked one after the other; all together by
    default."""
    evaluate_every: Annotated[int, Field(ge=1)] = 500
    """Weight updates from one evaluation, with its checkpoint, to the next."""

    @model_validator(mode="after")
    def _ordered(self) -> SparsifyOptions:
        if self.ramp > self.stop:
            raise ValueError(f"ramp {self.ramp} must not be after stop {self.stop}")
        if self.band[0] > self.band[1]:
            raise ValueError(f"band {self.band} must be (low, high)")
        return self


def make_options(**values: Any) -> Options:
    """The options of `prune` from keyword arguments.

    Raises:
        ConfigError: names the option, what it was given, and what is allowed.
    """
    return validated(Options, values)


def validated(kind: type[R], values: Mapping[str, Any]) -> R:
    """Options of this kind; one text where several may stand is a list of one.

    Raises:
        ConfigError: names the option, what it was given, and what is allowed.
    """
    for name in values:
        if name not in kind.model_fields:
            raise ConfigError(f"no option is called {name!r}{nearest(name, kind.model_fields)}")
    given = {
        name: (value,) if isinstance(value, str) and _several(kind, name) else value
        for name, value in values.items()
    }
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or 'the options'}: {e['msg']}" for e in error.errors()
        ]
        raise ConfigError("; ".join(lines)) from None


def _several(kind: type[BaseModel], name: str) -> bool:
    return get_origin(kind.model_fields[name].annotation) is tuple
