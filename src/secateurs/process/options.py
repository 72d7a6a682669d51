"""The options of the pruning loop, with the same names in Python and in a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, nearest
from ..ranking import Limits

R = TypeVar("R", bound="Ranking")


class Ranking(BaseModel):
    """How scores become a choice: what makes groups comparable, and what may go."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    normalize: Literal["none", "l1", "l2", "max", "mean", "rank"] = "l2"
    """How the scores of a group are scaled before groups are compared."""
    flops_weight: Annotated[float, Field(ge=0)] = 1e-3
    """How much a unit's share of the MACs speaks for its removal."""
    cost_power: Annotated[float, Field(ge=0)] = 0.0
    """Scores are divided by what a unit costs, to this power; 0.5 suits budgets of MACs."""
    only: Annotated[tuple[str, ...], Field(examples=[["layer1.*"]])] = ()
    """Prune only modules of these paths, such as 'layer1.*'."""
    ignore: Annotated[tuple[str, ...], Field(examples=[["fc"]])] = ()
    """Leave modules of these paths alone."""
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


class Options(Ranking):
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
    warmup: Annotated[int, Field(ge=0)] = 0
    """Weight updates before the first removal."""
    final: Annotated[int, Field(ge=0)] = 500
    """Weight updates after the last removal."""
    score_batches: Annotated[int, Field(ge=1)] = 10
    """Batches that each ranking is made from."""
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
    latency: bool = False
    """Measure the latency of the network before and after, on the example inputs."""
    trackers: Annotated[tuple[str, ...], Field(examples=[["tensorboard"]])] = ()
    """Accelerate trackers, such as 'tensorboard' or 'wandb'."""
    seed: Annotated[int, Field(ge=0, lt=1 << 62)] = 0
    """Of everything that is drawn."""


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
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(lines)) from None


def _several(kind: type[BaseModel], name: str) -> bool:
    return get_origin(kind.model_fields[name].annotation) is tuple
