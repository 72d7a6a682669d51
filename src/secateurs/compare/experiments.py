"""The experiments of a comparison: pure functions of what all share and of what each is told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..criteria import Criterion, Fixed, GroupInfo
from ..errors import ConfigError, DataError, DerivativeError, NotFiniteError, UnscoredError
from ..groups import Group
from ..oracle import oracle
from ..process.greedy import prune
from ..process.options import Ranking
from ..ranking import moves
from ..score import score
from ..surgery.apply import cut
from .bench import Bench
from .log import Trial
from .price import Meter, total
from .record import Form, OracleLine, Price, PruneLine, ScoresLine, SensitivityLine, Values


@dataclass(frozen=True)
class Task:
    """What a worker is asked for: a trial, or one shard of it.

    Attributes:
        values: the scores that a cut is chosen by.
        shard: the first and the last but one of the batches that it is over.
    """

    trial: Trial
    values: Values = field(default_factory=dict)
    shard: tuple[int, int | None] = (0, None)


@dataclass(frozen=True)
class Part:
    """What one shard gave: states that merge.

    Attributes:
        states: of each group; or the oracle over the batches of the shard.
        refused: why the criterion does not apply.
    """

    states: Any
    price: Price
    refused: str = ""


def perform(bench: Bench, task: Task) -> Part | PruneLine | SensitivityLine:
    """Do one experiment, or a shard of one.

    Raises:
        NotFiniteError: a loss or a weight is not finite.
    """
    return _DOERS[task.trial.kind](bench, task)


# ---------------------------------------------------------------------- oracle and scores
def _score(bench: Bench, task: Task) -> Part:
    """The states of a criterion after a shard of the pool."""
    trial, refused = task.trial, ""
    pool = bench.pools[trial.seed]
    kept: dict[str, Any] = {}

    def keep(states: dict[str, Any]) -> list[dict[str, Any]]:
        kept.clear()
        kept.update(states)
        return [states]

    with Meter(bench.device) as meter:
        try:
            score(
                bench.model,
                bench.graph,
                pool[slice(*task.shard)],
                loss=bench.loss,
                objective=bench.objective,
                criterion=bench.criteria[trial.criterion],
                seed=trial.seed,
                calibration=pool[0],
                share=keep,
            )
        except (UnscoredError, DerivativeError, ConfigError, DataError) as error:
            refused = str(error)
    return Part(kept, meter.price, refused)


def _oracle(bench: Bench, task: Task) -> Part:
    """The oracle over a shard of the first pool."""
    batches = bench.pools[bench.options.seeds[0]][slice(*task.shard)]
    with Meter(bench.device) as meter:
        found = oracle(
            bench.model,
            bench.graph,
            batches,
            loss=bench.loss,
            objective=bench.objective,
            progress=False,
        )
    return Part(found, meter.price)


def merged(bench: Bench, trial: Trial, parts: Sequence[Part]) -> OracleLine | ScoresLine:
    """The line of a trial whose shards are all done."""
    price = total([part.price for part in parts])
    if trial.kind == "oracle":
        examples = sum(part.states.examples for part in parts)
        loss = {
            name: sum(p.states.loss[name] * (p.states.examples / examples) for p in parts).tolist()
            for name in parts[0].states.loss
        }
        return OracleLine(loss=loss, examples=examples, price=price)
    refused = next((part.refused for part in parts if part.refused), "")
    values: Values = {}
    if not refused:
        found, first = bench.criteria[trial.criterion], parts[0].states
        for name in first:
            state = functools.reduce(found.merge, [part.states[name] for part in parts])
            values[name] = found.score(state).double().tolist()
    return ScoresLine(
        criterion=trial.criterion, seed=trial.seed, values=values, refused=refused, price=price
    )


# ---------------------------------------------------------------------- cuts
@dataclass(frozen=True)
class Known(Fixed):
    """The criterion whose scores are there already, so that a cut is chosen as any other."""

    values: Values
    name: str

    def init(self, group: GroupInfo) -> Tensor:
        if group.name not in self.values:
            raise UnscoredError("it has no score")
        return torch.tensor(self.values[group.name], dtype=torch.float64)


def _prune(bench: Bench, task: Task) -> PruneLine:
    trial, own = task.trial, bench.options
    iterative = trial.form == "iterative"
    tuning = bench.tuning(trial.seed)
    if trial.form == "one-shot":
        tuning.left = 0
    known: Criterion = Known(task.values, trial.criterion)
    with Meter(bench.device) as meter:
        result = prune(
            bench.model,
            bench.example_inputs,
            train=bench.data,
            budget={own.measure: trial.budget},
            loss=bench.loss,
            objective=bench.objective,
            criterion=bench.criteria[trial.criterion] if iterative else known,
            finetune=tuning,
            step=1 / own.rounds if iterative else bench.graph.size,
            updates=-(-own.updates // own.rounds) if iterative else 0,
            final=tuning.left,
            score_batches=own.score_batches,
            device=str(bench.device),
            seed=trial.seed,
            progress=False,
            **{name: getattr(own, name) for name in Ranking.model_fields},
        )
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    if result.stopped == "nan":
        raise NotFiniteError(f"{told(trial)}: the training loss is not finite; try a smaller lr")
    return PruneLine(
        criterion=trial.criterion,
        form=cast(Form, trial.form),
        budget=trial.budget,
        seed=trial.seed,
        size=result.after,
        loss=bench.mean_loss(result.model),
        metric=bench.judge(result.model),
        price=meter.price,
    )


def _sensitivity(bench: Bench, task: Task) -> SensitivityLine:
    trial = task.trial
    group = next(g for g in bench.graph.groups if g.name == trial.group)
    with Meter(bench.device) as meter:
        units = least_important(bench, group, task.values, trial.removed)
        small = cut(bench.model, bench.graph.plan({group.name: units}))
    return SensitivityLine(
        criterion=trial.criterion,
        group=trial.group,
        removed=trial.removed,
        loss=bench.mean_loss(small),
        metric=bench.judge(small),
        price=meter.price,
    )


def least_important(bench: Bench, group: Group, values: Values, fraction: float) -> list[int]:
    """About this fraction of a group's units, within the limits of what may go."""
    ranked = {name: np.array(own) for name, own in values.items()}
    out: list[int] = []
    for move in moves(bench.graph, ranked, bench.options.limits, {group.name: group.size}):
        if move.group != group.name:
            continue
        if len(out) + len(move.units) > round(fraction * group.size):
            break
        out += move.units
    return out


_DOERS: dict[str, Callable[[Bench, Task], Part | PruneLine | SensitivityLine]] = {
    "oracle": _oracle,
    "scores": _score,
    "prune": _prune,
    "sensitivity": _sensitivity,
}


def told(trial: Trial) -> str:
    """A trial in a few words.

    >>> told(Trial("prune", "taylor", 1, "iterative", 0.2))
    'taylor, iterative to 20%, seed 1'
    """
    if trial.kind == "prune":
        return f"{trial.criterion}, {trial.form} to {trial.budget:.0%}, seed {trial.seed}"
    if trial.kind == "sensitivity":
        return f"{trial.group} without {trial.removed:.0%} of its units"
    return (
        "the oracle" if trial.kind == "oracle" else f"{trial.criterion}, scores, seed {trial.seed}"
    )
