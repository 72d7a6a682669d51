"""What a user passes with a Keras model, as the process asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..errors import ConfigError, nearest
from ..process.run import Callback, Evaluate
from .layers import Layer

Mode: TypeAlias = Literal["max", "min"]


@dataclass(frozen=True)
class Judge:
    """How good a model is: what gives the metric, its name, and which way is better.

    Attributes:
        evaluate: of a working model; None if there is no metric.
    """

    evaluate: Evaluate | None
    metric: str
    mode: Mode


def judge(
    evaluate: Callable[[Layer], float] | None,
    validation_data: Any,
    metric: str,
    mode: Mode | None,
    batch_size: int,
) -> Judge:
    """The judge that a user asks for; less is better by default for 'loss' alone.

    Args:
        evaluate: evaluate(model) -> the metric.
        validation_data: in its place, what the model's own `evaluate` takes.
        metric: its name, of those that the model is compiled with; by default 'loss' there.
        batch_size: of arrays.

    Raises:
        ConfigError: both are given.
    """
    if validation_data is not None and evaluate is not None:
        raise ConfigError("pass validation_data or evaluate, one of the two")
    if validation_data is not None:
        metric = metric or "loss"
        evaluate = _evaluated(validation_data, metric, batch_size)
    given = evaluate
    return Judge(
        None if given is None else lambda working: given(working.model),
        metric or "metric",
        mode or ("min" if metric == "loss" else "max"),
    )


def _evaluated(data: Any, metric: str, batch_size: int) -> Callable[[Layer], float]:
    """evaluate(model) -> one of the metrics that the model is compiled with."""
    arrays = isinstance(data, (tuple, list))
    x, y, *weight = data if arrays else (data, None)

    def evaluate(model: Layer) -> float:
        found = model.evaluate(
            x,
            y,
            batch_size=batch_size if arrays else None,
            sample_weight=weight[0] if weight else None,
            verbose=0,
            return_dict=True,
        )
        if metric not in found:
            raise ConfigError(
                f"the model is not compiled to measure {metric!r}{nearest(metric, found)}; it "
                f"gives {', '.join(found)}"
            )
        return float(found[metric])

    return evaluate


def told_to(callbacks: Iterable[Callable[[dict[str, Any], Layer], None]]) -> tuple[Callback, ...]:
    """The same callbacks, called with a working model."""
    return tuple(_told(callback) for callback in callbacks)


def _told(callback: Callable[[dict[str, Any], Layer], None]) -> Callback:
    return lambda record, working: callback(record, working.model)
