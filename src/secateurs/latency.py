"""Measured latency: models compared in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import Timer

from .trace.model import as_call
from .trace.modes import evaluating


@dataclass(frozen=True)
class Latency:
    """Seconds per forward pass: the median, and the quartiles around it.

    Attributes:
        median, low, high: seconds; `low` and `high` are the quartiles.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{1e3 * self.median:.2f} ms ({1e3 * self.low:.2f} to {1e3 * self.high:.2f})"


def latency(
    models: Sequence[nn.Module], inputs: Any, *, rounds: int = 15, seconds: float = 0.05
) -> list[Latency]:
    """Measure the models' forward passes in eval mode, without gradients.

    Args:
        models: they take turns, `rounds` times.
        inputs: as for `trace`; where the models are.
        rounds: how many measurements of each.
        seconds: the least time of one measurement.

    Returns:
        One `Latency` per model, in seconds per forward pass of the whole batch.

    >>> import torch
    >>> small, large = torch.nn.Linear(2, 2), torch.nn.Linear(2000, 2000)
    >>> [a] = latency([small], torch.zeros(1, 2), rounds=3, seconds=0.001)
    >>> a.low <= a.median <= a.high
    True
    """
    args, kwargs = as_call(inputs)
    timers = [
        Timer(
            "model(*args, **kwargs)",
            globals={"model": model, "args": args, "kwargs": kwargs},
            num_threads=torch.get_num_threads(),
        )
        for model in models
    ]
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for model, timer, mine in zip(models, timers, times, strict=True):
            with torch.inference_mode(), evaluating(model):
                mine.append(timer.blocked_autorange(min_run_time=seconds).median)
    return [Latency(*np.quantile(mine, (0.5, 0.25, 0.75)).tolist()) for mine in times]
