"""The options of the pruning loop, with the same names in Python and in a configuration file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, nearest
from ..ranking import Limits


class Options(BaseModel):
    """How `prune` works; every field has a default.

    Attributes:
        step: units removed per step: a fraction of the original units if below 1, else a number.
        updates: weight updates after each removal.
        warmup: weight updates before the first removal.
        final: weight updates after the last removal.
        score_batches: batches that each ranking is made from.
        lr: learning rate of the default optimizer (SGD with momentum 0.9).
        normalize, flops_weight, cost_power: see `secateurs.ranking.importance`.
        only, ignore, min_keep, max_remove, round_to, exact_only: see `secateurs.ranking.Limits`.
        floor: stop when the metric falls below this (above it, for mode 'min'), and return the
            smallest network that held it.
        accumulate: batches per weight update.
        device: 'cpu', 'cuda', …; by default whatever Accelerate finds.
        precision: mixed precision of training: 'no', 'fp16' or 'bf16'.
        trackers: names of Accelerate trackers, such as 'tensorboard' or 'wandb'.
        seed: of everything that is drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Annotated[float, Field(gt=0)] = 0.05
    updates: Annotated[int, Field(ge=0)] = 50
    warmup: Annotated[int, Field(ge=0)] = 0
    final: Annotated[int, Field(ge=0)] = 500
    score_batches: Annotated[int, Field(ge=1)] = 10
    lr: Annotated[float, Field(gt=0)] = 1e-3
    normalize: Literal["none", "l1", "l2", "max", "mean"] = "l2"
    flops_weight: Annotated[float, Field(ge=0)] = 1e-3
    cost_power: Annotated[float, Field(ge=0)] = 0.0
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    min_keep: Annotated[int, Field(ge=1)] = 1
    max_remove: Annotated[float, Field(gt=0, le=1)] = 0.95
    round_to: Annotated[int, Field(ge=1)] = 1
    exact_only: bool = True
    floor: float | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    device: str | None = None
    precision: Literal["no", "fp16", "bf16"] = "no"
    trackers: tuple[str, ...] = ()
    seed: int = 0

    @property
    def limits(self) -> Limits:
        return Limits(
            self.only, self.ignore, self.min_keep, self.max_remove, self.round_to, self.exact_only
        )


def make_options(**values: Any) -> Options:
    """Options from keyword arguments.

    Raises:
        ConfigError: names the option, what it was given, and what is allowed.
    """
    for name in values:
        if name not in Options.model_fields:
            raise ConfigError(f"no option is called {name!r}{nearest(name, Options.model_fields)}")
    for name in ("only", "ignore", "trackers"):
        if isinstance(values.get(name), str):
            values[name] = (values[name],)
    try:
        return Options(**values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(lines)) from None
