"""Compare criteria on one network: against the oracle, and by what is left after pruning."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .. import budget as budgets
from ..batches import Loss, Objective, check_loss
from ..cost import Cost
from ..criteria import CRITERIA, Criterion, find_criterion
from ..errors import BudgetError, ConfigError
from ..gates import trace
from ..process.progress import Meter
from ..process.run import Evaluate, Finetune
from ..process.stream import own_randomness
from ..process.training import OptimizerFactory, SchedulerFactory
from ..ranking import smallest
from .bench import Bench, pool
from .comparison import Comparison
from .engine import Engine, Run, open_engine
from .experiments import Part, Task, merged, perform, told
from .log import NAME, Log, Trial
from .options import compare_options
from .record import Experiment, OracleLine, PruneLine, ScoresLine, SensitivityLine, Values
from .setting import check_same, describe

log = logging.getLogger("secateurs")

TRUTH = Trial("oracle")
SIGNED = {"oracle": False, "oracle-loss": True}  # the criteria that the oracle's line answers


def compare(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any],
    train: Iterable[Any] | None = None,
    loss: Loss | None = None,
    objective: Objective | None = None,
    criteria: Literal["all"] | Sequence[str | Criterion] = "all",
    evaluate: Evaluate | None = None,
    metric: str = "accuracy",
    mode: Literal["max", "min"] = "max",
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    finetune: Finetune | Mapping[str, Any] | None = None,
    preset: Literal["quick", "full"] = "quick",
    out: str | Path | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    jobs: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Compare criteria: how well each agrees with the oracle, and what it leaves after pruning.

    Every criterion meets the same network, data, cuts of the same size, and as many updates on the
    same batches. A seed changes the data that scores and updates are drawn from, and what `random`
    draws.

    Args:
        model: the trained model; it is left untouched.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        data: batches that the oracle and the scores are taken over: a DataLoader or a list. Pairs
            (input, target) for `loss`, anything for `objective`.
        train: batches to fine-tune with; by default `data`.
        loss: loss(output, target) -> one value per example, or the mean over the examples.
        objective: objective(model, batch) -> the same, in place of `loss`.
        criteria: their names, or objects with the four functions; 'all' that there are.
        evaluate: evaluate(model) -> the metric, of data that is in neither `data` nor `train`, and
            not that of the final verdict: the recommendation chooses by it. Called in eval mode,
            without gradients. Without it the metric is the mean loss on `data`.
        metric, mode: its name, and whether more ('max') or less ('min') is better.
        optimizer: parameters -> torch optimizer. SGD with momentum by default.
        scheduler: (optimizer, updates) -> scheduler, stepped after every update.
        finetune: finetune(model, updates), in place of the built-in training; or the options of
            that, such as dict(updates=500, lr=0.01).
        preset: 'quick' for a first look, 'full' for figures to rely on; options replace parts.
        out: a directory that gets `comparison.jsonl`, one line as each experiment ends.
        resume: go on from that file, if it is there, with the experiments that are missing.
        engine: None runs all in this process, 'processes' in several, 'ray' on a Ray cluster; the
            numbers are the same.
        jobs: how many experiments run at a time, one thread each; by default one a processor.
        progress: show live progress.
        **options: see `secateurs.compare.options.CompareOptions`.

    Returns:
        The comparison; `print` shows it, `report` writes a page. Ctrl-C raises KeyboardInterrupt;
        what was done is in `out`.

    Raises:
        BudgetError: a budget is out of reach.
        ConfigError: an option is wrong, or something cannot be sent to the workers.
        DataError: the data or the loss cannot be used.
        NotFiniteError: a loss or a weight is not finite.
        TraceError: the model does not run on the example inputs.
        FileError: the file in `out` is broken, or of another comparison.
        WorkerError: workers die again and again.

    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference
    (2016), section 3.1: criteria against the oracle, by rank correlation.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.randn(32, 4), torch.randint(2, (32,))
    >>> found = sc.compare(
    ...     net, x, data=[(x, y)], loss=torch.nn.CrossEntropyLoss(reduction="none"),
    ...     criteria=["taylor", "weight"], seeds=[0], updates=2, progress=False)
    >>> sorted({line.criterion for line in found.lines if line.kind == "prune"})
    ['taylor', 'weight']
    """
    if mode not in ("max", "min"):
        raise ConfigError(f"mode must be 'max' or 'min', not {mode!r}")
    if resume and out is None:
        raise ConfigError("resume=True needs out=, the directory of the comparison")
    check_loss(loss, objective)
    if isinstance(finetune, Mapping):
        options, finetune = {**options, **finetune}, None
    chosen = compare_options(preset, options)
    named = find_criteria(criteria)
    with own_randomness(chosen.seeds[0], 5):
        bench = Bench(
            model,
            example_inputs,
            {seed: pool(data, seed, chosen.examples) for seed in chosen.seeds},
            data,
            data if train is None else train,
            loss,
            objective,
            evaluate,
            named,
            optimizer,
            scheduler,
            finetune,
            chosen,
        )
        name, way = (metric, mode) if evaluate is not None else ("loss", "min")
        runner = _Runner(bench, name, way, None if out is None else Path(out) / NAME, resume)
        with (
            open_engine(engine, perform, bench, jobs) as run,
            Meter(progress, "the comparison") as runner.meter,
        ):
            return runner.go(run)


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any],
    criterion: str | Criterion = "taylor",
    fractions: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9),
    **settings: Any,
) -> Comparison:
    """What each layer can bear: the metric after a part of one group's units is cut.

    Args:
        model, example_inputs, data: as for `compare`.
        criterion: what says which units of a group are least important.
        fractions: of the units of one group to remove; the other groups stay whole.
        **settings: others of `compare`, such as `loss`, `evaluate`, `out` or `engine`.

    Returns:
        A comparison of the one criterion; see its `sensitivities`.

    Raises:
        SecateursError: as `compare` does.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.randn(32, 4), torch.randint(2, (32,))
    >>> found = sc.sensitivity(net, x, data=[(x, y)], loss=torch.nn.CrossEntropyLoss(),
    ...                        fractions=[0.25, 0.5], progress=False)
    >>> [group] = found.sensitivities()
    >>> group.group, [removed for removed, loss in group.points]
    ('0', [0.0, 0.25, 0.5])
    """
    fixed = {"forms": (), "oracle": False, "sensitivity": tuple(fractions)}
    given = {"seeds": (0,), **settings, **fixed}
    return compare(model, example_inputs, data=data, criteria=[criterion], **given)


def find_criteria(criteria: Literal["all"] | Sequence[str | Criterion]) -> dict[str, Criterion]:
    """The criteria by name.

    Raises:
        ConfigError: there is none of a name, or two have the same.
    """
    if criteria == "all":
        return dict(CRITERIA)
    given = [criteria] if isinstance(criteria, str) else list(criteria)
    out = {found.name: found for found in map(find_criterion, given)}
    if len(out) < len(given):
        raise ConfigError("two of the criteria have the same name; each needs its own")
    if not out:
        raise ConfigError("no criterion is given: name some, or 'all'")
    return out


class _Runner:
    """One comparison: what there is to do, and what is done."""

    meter: Meter

    def __init__(
        self,
        bench: Bench,
        metric: str,
        mode: Literal["max", "min"],
        path: Path | None,
        resume: bool,
    ):
        self.bench, self.options = bench, bench.options
        self.graph = trace(bench.model, bench.example_inputs)
        self.cost = Cost(self.graph)
        self.options.limits.check(self.graph)
        for budget in self.options.budgets if self.options.forms else ():
            self._check_reachable(budget, None)
        setting = describe(bench, self.graph, list(bench.criteria), metric, mode)
        self.log = Log(setting, path)
        if path is not None and os.path.lexists(path):
            if not resume:
                raise ConfigError(
                    f"{path} holds a comparison; go on with resume=True, or use another folder"
                )
            saved = Comparison.load(path)
            check_same(saved.setting, setting, path)
            self.log.lines = {Trial.of(line): line for line in saved.lines}
        self.log.start()

    def go(self, run: Run) -> Comparison:
        """Everything that is missing: first what the cuts are chosen by, then the cuts."""
        self._do(run, [task for t in self._missing(self._questions()) for task in self._shards(t)])
        self._do(run, [self._cut(t) for t in self._missing(self._cuts())])
        return Comparison(self.log.setting, list(self.log.lines.values()))

    def _missing(self, trials: Iterable[Trial]) -> list[Trial]:
        return [trial for trial in trials if trial not in self.log.lines]

    # ------------------------------------------------------------------ what there is to do
    def _questions(self) -> list[Trial]:
        """The oracle, and what each criterion says of every unit."""
        names, seeds = self.bench.criteria, self.options.seeds
        out = [TRUTH] if self.options.oracle or SIGNED.keys() & names.keys() else []
        return out + [Trial("scores", n, seed) for n in names if n not in SIGNED for seed in seeds]

    def _cuts(self) -> list[Trial]:
        """Every network to be cut, of the criteria that apply."""
        own = self.options
        forms = [form for form in own.forms if own.updates or form != "fine-tuned"]
        out = [
            Trial("prune", name, seed, form, budget)
            for form in forms
            for name in self.bench.criteria
            for budget in own.budgets
            for seed in own.seeds
            if self._applies(name, seed, budget)
        ]
        judge = "oracle" if TRUTH in self.log.lines else next(iter(self.bench.criteria))
        values = self._values(judge, own.seeds[0])
        return out + [
            Trial("sensitivity", judge, group=group.name, removed=removed)
            for group in self.graph.groups
            if group.name in values and own.limits.allows(group)
            for removed in own.sensitivity
        ]

    def _applies(self, name: str, seed: int, budget: float) -> bool:
        """Whether a criterion scores enough of the network to cut it to a budget."""
        values = self._values(name, seed)
        if not values:
            return False
        try:
            self._check_reachable(budget, values)
        except BudgetError as error:
            log.warning("%s scores only %s: %s", name, ", ".join(values), error)
            return False
        return True

    def _check_reachable(self, budget: float, values: Values | None) -> None:
        targets = budgets.targets({self.options.measure: budget}, self.cost)
        least = smallest(self.graph, self.options.limits, values)
        budgets.check_reachable(targets, self.cost, least)

    def _values(self, name: str, seed: int) -> Values:
        """What a criterion says of every unit; empty where it does not apply."""
        line = self.log.lines[TRUTH if name in SIGNED else Trial("scores", name, seed)]
        if isinstance(line, OracleLine):
            return {g: [v if SIGNED[name] else abs(v) for v in own] for g, own in line.loss.items()}
        return line.values if isinstance(line, ScoresLine) else {}

    def _shards(self, trial: Trial) -> list[Task]:
        """A trial in parts, one for so many batches; each is a job of its own."""
        size, batches = self.options.shard, len(self.bench.pools[self._seed(trial)])
        if trial.kind == "scores" and not self.bench.criteria[trial.criterion].needs:
            batches = 1
        return [Task(trial, shard=(i, i + size)) for i in range(0, batches, size)]

    def _cut(self, trial: Trial) -> Task:
        return Task(trial, self._values(trial.criterion, self._seed(trial)))

    def _seed(self, trial: Trial) -> int:
        """The oracle and the sensitivity are of the first seed's data."""
        return trial.seed if trial.kind in ("scores", "prune") else self.options.seeds[0]

    # ------------------------------------------------------------------ what is done
    def _do(self, run: Run, tasks: list[Task]) -> None:
        """Have tasks done, and write a line as each trial ends."""
        shards = Counter(task.trial for task in tasks)
        parts: dict[Trial, dict[int, Part]] = defaultdict(dict)
        started, done = time.perf_counter(), 0
        for index, outcome in run(tasks):
            trial = tasks[index].trial
            if isinstance(outcome, Part):
                parts[trial][index] = outcome
                if len(parts[trial]) < shards[trial]:
                    continue
                own = parts.pop(trial)  # in order, so that sums are those of any other engine
                outcome = merged(self.bench, trial, [own[i] for i in sorted(own)])
            self.log.add(outcome)
            done += 1
            left = (time.perf_counter() - started) / done * (len(shards) - done)
            note = f"{done}/{len(shards)} {self._told(outcome)}"
            self.meter.way(
                done / len(shards), f"{note}; about {timedelta(seconds=round(left))} left"
            )

    def _told(self, line: Experiment) -> str:
        """A line in a few words."""
        text = told(Trial.of(line))
        if isinstance(line, ScoresLine) and line.refused:
            return f"{text}: does not apply: {line.refused}"
        if isinstance(line, (PruneLine, SensitivityLine)):
            return f"{text}: {self.log.setting.metric_name} {line.metric:.4f}"
        return text
