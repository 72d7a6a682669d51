"""Comparisons made up line by line: what a reader must cope with, without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.compare.comparison import Comparison
from secateurs.compare.record import (
    Experiment,
    Group,
    OracleLine,
    Price,
    PruneLine,
    ScoresLine,
    SensitivityLine,
    Setting,
)

LAYERS = {"conv1": 6, "conv2": 12, "fc": 20}
Metric = Callable[[str, str, float, int], float]


def setting(layers: dict[str, int] = LAYERS, **values: Any) -> Setting:
    given = {
        "network": "Net", "size": {"macs": 1000, "params": 100, "units": sum(layers.values())},
        "groups": [Group(name=n, kind="channels", size=s, macs_per_unit=10.0 / s) for n, s in
                   layers.items()],
        "loss": 0.5, "metric_name": "accuracy", "mode": "max", "metric": 0.9,
        "criteria": ["taylor", "weight", "random"], "measure": "macs", "budgets": [0.5, 0.25],
        "seeds": [0, 1, 2], "updates": 50, "examples": 64, "normalize": "l2",
        "flops_weight": 1e-3, "cost_power": 0.0, "machine": {"processor": "one"},
    }  # fmt: skip
    return Setting(**{**given, **values})


def price(seconds: float = 1.0, peak: int | None = 1000) -> Price:
    return Price(seconds=seconds, peak_bytes=peak)


def oracle(layers: dict[str, int] = LAYERS, seed: int = 0) -> OracleLine:
    random = np.random.default_rng(seed)
    loss = {name: random.normal(1, 1, size).tolist() for name, size in layers.items()}
    metric = {name: (-0.1 * np.array(v)).tolist() for name, v in loss.items()}
    return OracleLine(loss=loss, metric=metric, examples=64, price=price(60.0))


def noisy(line: OracleLine, criterion: str, noise: float, seed: int = 0) -> ScoresLine:
    """Scores that follow the oracle as closely as the noise allows."""
    random = np.random.default_rng([seed, *criterion.encode()])
    values = {
        name: (np.abs(own) + noise * random.normal(size=len(own))).tolist()
        for name, own in line.loss.items()
    }
    return ScoresLine(criterion=criterion, seed=seed, values=values, price=price())


def refused(criterion: str, why: str) -> ScoresLine:
    return ScoresLine(criterion=criterion, seed=0, refused=why, price=price())


def pruned(
    metric: Metric,
    criteria: Sequence[str] = ("taylor", "weight", "random"),
    forms: Sequence[Any] = ("one-shot", "fine-tuned"),
    budgets: Sequence[float] = (0.5, 0.25),
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Experiment]:
    return [
        PruneLine(
            criterion=criterion, form=form, budget=budget, seed=seed, loss=1.0,
            size={"macs": int(1000 * budget), "params": 50, "units": 20},
            metric=metric(criterion, form, budget, seed), price=price(2.0),
        )
        for form in forms for criterion in criteria for budget in budgets for seed in seeds
    ]  # fmt: skip


def sensitivity(
    layers: Sequence[str] = tuple(LAYERS), removed: Sequence[float] = (0.25, 0.5, 0.75)
) -> list[Experiment]:
    """The first layer suffers most."""
    return [
        SensitivityLine(
            criterion="taylor", group=name, removed=share, loss=0.5 + share,
            metric=0.9 - 0.8 * share / (i + 1), price=price(),
        )
        for i, name in enumerate(layers) for share in removed
    ]  # fmt: skip


def typical() -> Comparison:
    """Everything there is: taylor is ahead, one criterion is refused."""
    truth = oracle()
    ahead = {"taylor": 0.04, "weight": 0.02, "random": 0.0}
    lines: list[Experiment] = [truth]
    lines += [noisy(truth, "taylor", 0.3), noisy(truth, "weight", 1.0)]
    lines += [noisy(truth, "random", 1e6, seed) for seed in range(3)]
    lines += [refused("batchnorm", "the network has no BatchNorm")]
    lines += pruned(
        lambda criterion, form, budget, seed: (
            0.5
            + 0.5 * budget
            + ahead[criterion]
            + 0.0005 * ((seed + 1) * ord(criterion[0]) % 11)
            - 0.2 * (form == "one-shot")
        ),
        forms=("one-shot", "fine-tuned", "iterative"),
    )
    lines += sensitivity()
    return Comparison(setting(criteria=["taylor", "weight", "random", "batchnorm"]), lines)


def write(comparison: Comparison, path: Path) -> Path:
    """As JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [comparison.setting, *comparison.lines]
    path.write_text("".join(f"{line.model_dump_json()}\n" for line in lines), encoding="utf-8")
    return path
