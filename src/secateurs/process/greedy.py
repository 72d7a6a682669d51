"""The greedy loop: fine-tune, remove the least important units, fine-tune, repeat."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .. import budget as budgets
from ..batches import Loss, Objective, check_loss
from ..cost import Cost
from ..criteria import Criterion, find_criterion
from ..errors import ConfigError, FileError
from ..files.store import check_state, fill_state
from ..gates import trace, verify
from ..groups import Graph, Group
from ..latency import Latency, latency
from ..plan import Plan
from ..ranking import choose, importance, moves, smallest
from ..score import score
from ..scores import Scores
from ..slices import complement
from ..surgery.apply import cut
from ..surgery.config import mend_config
from .checkpoint import Checkpoint
from .describe import describe, origin, script
from .options import Options, make_options
from .result import PruneResult
from .run import Callback, Evaluate, Finetune, Hooks, Run
from .stream import seed_everything
from .training import OptimizerFactory, SchedulerFactory, Trainer

log = logging.getLogger("secateurs")


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    train: Iterable[Any],
    budget: Mapping[str, float],
    loss: Loss | None = None,
    objective: Objective | None = None,
    criterion: str | Criterion = "taylor",
    evaluate: Evaluate | None = None,
    metric: str = "metric",
    mode: Literal["max", "min"] = "max",
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    finetune: Finetune | None = None,
    callbacks: Sequence[Callback] = (),
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> PruneResult:
    """Prune a trained network to a budget: fine-tune, remove the least important, repeat.

    Args:
        model: the trained model; it is left untouched.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        train: batches, read again and again: a DataLoader or a list. Pairs (input, target) for
            `loss`, anything for `objective`.
        budget: 'macs', 'params' or 'units' -> the fraction to keep if at most 1, else an absolute
            number.
        loss: loss(output, target) -> one value per example, or the mean over the examples.
        objective: objective(model, batch) -> the same, in place of `loss`.
        criterion: what decides which units go; see `secateurs.criteria`.
        evaluate: evaluate(model) -> the metric, after every step; called in eval mode, without
            gradients.
        metric, mode: its name, and whether more ('max') or less ('min') is better.
        optimizer: parameters -> torch optimizer. SGD with momentum by default.
        scheduler: (optimizer, updates of the phase) -> scheduler, stepped after every update.
        finetune: finetune(model, updates), in place of the built-in training.
        callbacks: called with (record, model) after every step.
        out: a directory that gets an atomic checkpoint after every step.
        resume: go on from the checkpoint in `out`, if there is one, to the same result.
        progress: show live progress.
        **options: see `secateurs.process.options.Options`.

    Returns:
        The pruned model with its plan, history, last scores and proof. Ctrl-C stops at the next
        safe point and returns what is done.

    Raises:
        BudgetError: the budget is malformed or out of reach.
        ConfigError: an option is wrong.
        DataError: the data or the loss cannot be used.
        NotFiniteError: the loss was not finite before anything was removed.
        TraceError: the model does not run on the example inputs.
        UnscoredError: the criterion applies to no group of the network.
        FileError: the checkpoint in `out` is broken, or of another run.

    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference
    (2016), section 2: the loop, and the criterion that is the default.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> x, y = torch.randn(32, 4), torch.randint(2, (32,))
    >>> result = sc.prune(
    ...     net, x, train=[(x, y)], loss=torch.nn.CrossEntropyLoss(reduction="none"),
    ...     budget={"units": 0.5}, updates=1, final=1, progress=False)
    >>> result.model[0].out_features, result.stopped, result.proof.holds
    (8, 'budget', True)
    """
    run = GreedyRun(
        model,
        example_inputs,
        budget,
        find_criterion(criterion),
        make_options(**options),
        Hooks(loss, objective, evaluate, metric, mode, tuple(callbacks), finetune),
        out,
        resume=resume,
    )
    if finetune is None or run.criterion.needs:
        check_loss(loss, objective)
    run.start(Trainer(run.model, train, loss, objective, optimizer, scheduler, run.options))
    return run.go(progress=progress, way="to the budget")


class GreedyRun(Run[Options, Checkpoint, PruneResult]):
    """One run: the working model, and everything that the next step depends on."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        budget: Mapping[str, float],
        criterion: Criterion,
        options: Options,
        hooks: Hooks,
        out: str | Path | None,
        *,
        resume: bool,
    ):
        super().__init__(model, example_inputs, options, hooks, out, resume=resume)
        self.criterion = criterion
        cost = Cost(self.graph)
        options.limits.check(self.graph)
        self.targets = budgets.targets(budget, cost)
        budgets.check_reachable(self.targets, cost, smallest(self.graph, options.limits))
        self.originals = {group.name: group.size for group in self.graph.groups}
        self.axes = _axes(self.graph.groups)
        self.before = cost.all()
        self.plan = self.graph.plan({})
        self.step = 0
        self.scores: Scores | None = None
        self.importance = {
            name: np.zeros((0, size), np.float32) for name, size in self.originals.items()
        }
        self.good: tuple[dict[str, torch.Tensor], Plan, int] | None = None
        self.settings = {
            "targets": self.targets,
            "criterion": criterion.name,
            "metric": hooks.metric,
            "mode": hooks.mode,
            **options.model_dump(mode="json"),
        }

    # ------------------------------------------------------------------ the loop
    def proceed(self) -> None:
        """See `Run.proceed`."""
        if not self.history:
            started = time.perf_counter()
            loss = self._phase("fine-tuning", self.options.warmup)
            if not self.stopped:
                self._record({}, loss, started)
                self.checkpoint()
        while not self.stopped:
            self._advance()
        if not self.finished and self.stopped in ("budget", "floor", "exhausted"):
            self._finish()

    def _advance(self) -> None:
        """One step: score, remove, update, evaluate, write down."""
        started = time.perf_counter()
        seed_everything(self.options.seed, 2, self.step)
        mend_config(self.model, self.plan)
        inputs = self.trainer.to_device(self.example_inputs)
        graph = trace(self.model, inputs)
        self.cost = cost = self._cost(graph)
        self.show()
        if budgets.met(self.targets, cost):
            self.stopped = "budget"
            return
        self._remember()
        units = self._choose(graph, cost)
        if not units:
            self.stopped = "exhausted"
            return
        if self.asked():
            return
        self._remove(graph, graph.plan(units))
        loss = self._phase("updating weights", self.options.updates)
        if self.stopped:  # interrupted: the step is taken again when the run is resumed
            self.revert()
            return
        self.step += 1
        self._record(units, loss, started)
        if self.below_floor():
            self.revert()
            self.stopped = "floor"
        self.checkpoint()

    def _choose(self, graph: Graph, cost: Cost) -> dict[str, list[int]]:
        options = self.options
        self.scores = score(
            self.model,
            graph,
            self.trainer.stream.take(options.score_batches),
            loss=self.hooks.loss,
            objective=self.hooks.objective,
            criterion=self.criterion,
            seed=options.seed + self.step,
            share=self.trainer.share,
        )
        if not self.step:
            for name, reason in self.scores.unscored.items():
                log.warning("group %r is left alone: %s", name, reason)
        ranked = importance(
            self.scores,
            cost,
            normalize=options.normalize,
            flops_weight=options.flops_weight,
            cost_power=options.cost_power,
            measure=next(iter(self.targets)),
        )
        # a cut may expose more, of which no plan for the original could tell
        known = {g.name for g in graph.groups if _axes([g]) <= self.axes}
        ranked = {name: values for name, values in ranked.items() if name in known}
        candidates = moves(graph, ranked, options.limits, self.originals)
        if not candidates:
            return {}
        return choose(graph, cost, candidates, self.targets, self._step_size())

    def _step_size(self) -> int:
        """At most how many units go in this step."""
        options, whole = self.options, sum(self.originals.values())
        units = options.step * whole if options.step < 1 else options.step
        if options.schedule == "geometric":
            units *= 1 - len(self.plan) / whole
        return max(1, round(units))

    def _remove(self, graph: Graph, plan: Plan) -> None:
        whole = self.plan.then(plan, self.graph)
        shapes = {name: p.shape for name, p in self.model.named_parameters(remove_duplicate=False)}
        cut(self.model, plan, inplace=True)
        self.trainer.cut_optimizer(plan, shapes)
        for name, rows in self.importance.items():
            self.importance[name] = np.vstack([rows, self._scores_of(name)])
        self.plan = whole

    def _scores_of(self, group: str) -> npt.NDArray[np.float32]:
        """The last scores of a group's original units, (units,); NaN for those that have none."""
        size = self.originals[group]
        row = np.full(size, np.nan, np.float32)
        kept = complement(self.plan.groups.get(group, []), size)
        if self.scores is not None and len(self.scores.values.get(group, ())) == len(kept):
            row[kept] = self.scores[group]
        return row

    def _phase(self, name: str, updates: int) -> float:
        """Update the weights, until done or interrupted."""
        self.meter.phase(name, updates)
        if self.asked() or not updates:
            return float("nan")
        if self.hooks.finetune is not None:
            other = self.hooks.finetune(self.model, updates)
            if isinstance(other, nn.Module) and other is not self.model:
                raise ConfigError("finetune must train the model that it is given, in place")
            return float("nan")

        def each() -> bool:
            self.meter.advance()
            return not self.asked()

        return self.trainer.train(updates, each)

    def _finish(self) -> None:
        """The last fine-tuning."""
        started = time.perf_counter()
        reason = self.stopped
        self._remember()
        seed_everything(self.options.seed, 3)
        loss = self._phase("last fine-tuning", self.options.final)
        if self.stopped == reason:
            self.finished = True
            if self.options.final:
                self._record({}, loss, started)
            self.checkpoint()

    # ------------------------------------------------------------------ keeping track
    def _record(self, units: dict[str, list[int]], loss: float, started: float) -> None:
        self.cost = self._cost(trace(self.model, self.trainer.to_device(self.example_inputs)))
        removed = {name: len(indices) for name, indices in units.items()}
        self.record({"step": self.step, "removed": removed, **self.cost.all()}, loss, started)

    def _cost(self, graph: Graph) -> Cost:
        left = sum(self.originals.values()) - len(self.plan)
        return Cost(graph, beside=left - graph.size)

    def show(self) -> None:
        """See `Run.show`."""
        ways = [
            (self.before[m] - self.cost.of(m)) / max(self.before[m] - target, 1)
            for m, target in self.targets.items()
        ]
        left = ", ".join(
            f"{m} {self.cost.of(m) / self.before[m]:.1%} of {target / self.before[m]:.1%}"
            for m, target in self.targets.items()
        )
        last = self.history[-1] if self.history else {}
        removed = sum(last.get("removed", {}).values())
        note = f"step {self.step}: −{removed} units; {left}{self.told_metric()}"
        self.meter.way(min(ways, default=1.0), note)

    def _remember(self) -> None:
        """Keep the state before a step, to go back to if it fails."""
        state = {name: t.detach().clone() for name, t in self.state().items()}
        self.good = (state, self.plan, self.step)

    def revert(self) -> bool:
        """Go back to the state before the last step."""
        if self.good is None:
            return False
        state, self.plan, self.step = self.good
        model = cut(copy.deepcopy(self.original), self.plan, inplace=True)
        fill_state(model, state)
        self.model = model.to(self.trainer.device)
        self.trainer.replace_model(self.model)
        del self.history[self.step + 1 :]
        self.importance = {name: rows[: self.step] for name, rows in self.importance.items()}
        return True

    # ------------------------------------------------------------------ checkpoints
    def load(self, directory: Path) -> Checkpoint:
        """See `Run.load`."""
        return Checkpoint.load(directory)

    def write(self, out: Path) -> None:
        """See `Run.write`."""
        tensors, numbers = self.trainer.optimizer_state()
        Checkpoint(
            self.step,
            self.plan,
            self.state(),
            tensors,
            numbers,
            self.trainer.stream.place,
            self.history,
            self.settings,
            {name: torch.from_numpy(rows) for name, rows in self.importance.items()},
            self.stopped if self.finished else "",
            {
                "stopped": self.stopped,
                "scores": None if self.scores is None else self.scores.to_dict(),
            },
        ).save(out)

    def restore(self, saved: Checkpoint) -> None:
        """See `Run.restore`.

        Raises:
            FileError: it belongs to another model.
        """
        check_state(self.original, saved.plan, saved.model, self.out, loose=True)
        cut(self.model, saved.plan, inplace=True)
        fill_state(self.model, saved.model)
        self.trainer.restore_optimizer(saved.optimizer, saved.numbers)
        self.trainer.stream.seek(*saved.place)
        self.plan, self.step, self.history = saved.plan, saved.step, saved.history
        for name, rows in saved.importance.items():
            if tuple(rows.shape) != (saved.step, self.originals.get(name)):
                raise FileError(f"the checkpoint in {self.out} has scores that do not fit {name!r}")
            self.importance[name] = rows.numpy()
        self.stopped, self.finished = saved.extra["stopped"], bool(saved.finished)
        scores = saved.extra["scores"]
        self.scores = None if scores is None else Scores.from_dict(scores)

    def result(self) -> PruneResult:
        """See `Run.result`."""
        small = cut(self.original, self.plan)
        proof = verify(self.original, small, self.plan, self.example_inputs, graph=self.graph)
        if not proof.holds:
            log.warning("%s", proof)
        inputs = self.trainer.to_device(self.example_inputs)
        graph = trace(self.model, inputs)
        timed = self._latency() if self.options.latency else {}
        for mine, theirs in zip(self.model.modules(), self.original.modules(), strict=True):
            mine.training = theirs.training
        return PruneResult(
            self.model,
            self.plan,
            self.history,
            self.scores,
            proof,
            self.before,
            self._cost(graph).all(),
            self.stopped,
            self.settings,
            describe(self.original, self.example_inputs, self.graph, self.options.limits),
            origin(self.trainer.device, script()),
            self.importance,
            inputs,
            timed,
        )

    def _latency(self) -> dict[str, tuple[Latency, Latency]]:
        inputs = self.trainer.to_device(self.example_inputs)
        uncut = copy.deepcopy(self.original).to(self.trainer.device)
        before, after = latency([uncut, self.model], inputs)
        return {"the example inputs": (before, after)}


def _axes(groups: Iterable[Group]) -> set[tuple[str, int]]:
    """The axes of tensors, (path, dim), that these groups touch."""
    return {(axis.tensor, axis.dim) for group in groups for axis in group.axes}
