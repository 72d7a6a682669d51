"""Score every unit of every group by a criterion, from batches of data."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batches import (
    Loss,
    Objective,
    check_loss,
    example_seeds,
    loss_of,
    to_device,
    total_loss,
)
from .blocks import chosen
from .criteria import Criterion, Estimate, GroupBatch, GroupInfo, find_criterion
from .curvature import check_bent, take_derivatives, take_gauss_newton
from .errors import DataError, NotFiniteError, UnscoredError
from .exact.changes import Engine, count_examples
from .groups import Graph, Group
from .infos import group_infos
from .scores import Array, Scores
from .sites import gated_reads, sites
from .trace.model import as_call
from .trace.modes import evaluating
from .watch import SECOND, Seen, Watched

Share = Callable[[dict[str, Any]], list[dict[str, Any]]]
LOSS = frozenset({"gradient", "mean_gradient", *SECOND})  # what needs a loss


def score(
    model: nn.Module,
    graph: Graph,
    data: Iterable[Any] | None = None,
    *,
    loss: Loss | None = None,
    objective: Objective | None = None,
    criterion: str | Criterion = "taylor",
    batches: int | None = None,
    seed: int = 0,
    calibration: Any = None,
    share: Share | None = None,
    groups: Iterable[Group] | None = None,
) -> Scores:
    """The importance of every unit of every group.

    Args:
        model: the model that was traced; it runs in eval mode and is left untouched.
        graph: its trace.
        data: batches; pairs (input, target) for `loss`, anything for `objective`. Not needed by
            criteria that look at weights only.
        loss: loss(output, target) -> one value per example, (examples,), which is preferred and
            exact with class weights and ignored labels; or the scalar mean over the examples.
        objective: objective(model, batch) -> the same, for anything that is not a pair.
        criterion: a name in `secateurs.criteria.CRITERIA`, or an object with the four functions.
        batches: use at most so many batches.
        seed: for criteria that draw numbers.
        calibration: a batch that histogram edges are fixed from, where a criterion has such, the
            same on all workers; by default the first of the data, of all workers together.
        share: with data parallel workers, each with its part of the data: this worker's states
            -> the states of all workers, in the same order on each, which are then merged. What
            histogram edges are fixed from goes the same way first.

        groups: which to score: some of the graph's, or `graph.blocks`; by default all of the
            graph's. Second derivatives that sum over gates sum over those of these groups.

    Returns:
        One float64 array per group, (units,), higher = keep. They are raw: compare units within a
        group; `secateurs.ranking.importance` makes groups comparable. Groups to which the
        criterion does not apply are in `unscored`, with the reason.

    Raises:
        DataError: no data, batches that are not pairs, or a loss of another shape.
        DerivativeError: the criterion needs a second derivative that cannot be had, or that is
            zero since the loss is linear in the network's output.
        NotFiniteError: the loss or a score is NaN or infinite.
        UnscoredError: the criterion applies to no group.
        ConfigError: an unknown criterion, or a group that is not the graph's.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
    >>> cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    >>> scores = sc.score(net, sc.trace(net, x), [(x, y)], loss=cross_entropy)
    >>> scores["0"].shape
    (8,)
    """
    found = find_criterion(criterion)
    if found.needs and data is None:
        raise DataError(f"criterion {found.name!r} needs data; pass batches of it")
    if needs_loss(found):
        check_loss(loss, objective)
    own = chosen(graph, groups)
    places = _places(graph, found, own)
    unscored = _unseen(graph, found, places, own)
    infos = {n: i for n, i in group_infos(model, graph, seed, own).items() if n not in unscored}
    watched = Watched(model, graph, found.needs, own)
    source: Iterator[Any] = itertools.islice(() if data is None else data, batches)
    if "sample" in found.needs:
        if calibration is None:
            calibration, source = _first(source)
            samples = _samples(watched, model, calibration, share)
        else:  # the same on all workers already
            samples = _samples(watched, model, calibration, None)
        infos = {n: dataclasses.replace(i, sample=samples[n]) for n, i in infos.items()}
    states = _start(found, infos, unscored)
    run = _Run(model, graph, own, watched, found, loss, objective, states, seed)
    if found.needs:
        run.over(source)
    if share is not None:
        first, *others = share(states)
        states = {n: functools.reduce(found.merge, (o[n] for o in others), first[n]) for n in first}
    values = {name: _checked(found, infos[name], found.score(s)) for name, s in states.items()}
    if "gauss_newton" in found.needs:
        check_bent(f"criterion {found.name!r}", any(own.any() for own in values.values()))
    error = _errors(found, infos, states)
    places = {name: place for name, place in places.items() if name in values}
    return Scores(values, found.name, run.examples, run.assumed, unscored, places, error)


def needs_loss(criterion: str | Criterion) -> bool:
    """Whether a criterion looks at the loss.

    >>> needs_loss("taylor"), needs_loss("l2")
    (True, False)
    """
    return bool((LOSS | {"change"}) & find_criterion(criterion).needs)


def _places(graph: Graph, criterion: Criterion, groups: list[Group]) -> dict[str, str]:
    """Where each group's activation is read, if it is."""
    found = sites(graph, groups) if "activation" in criterion.needs else {}
    return {name: site.name for name, site in found.items()}


def _unseen(
    graph: Graph, criterion: Criterion, places: dict[str, str], groups: list[Group]
) -> dict[str, str]:
    """The groups of which no batch shows what the criterion looks at, and why."""
    out: dict[str, str] = {}
    if LOSS & criterion.needs:
        gated = {family.group for _, own in gated_reads(graph, groups) for family in own}
        why = (
            "its units are read in products of weights alone, or by statistics alone, so that no "
            "example has a gate"
        )
        out |= {group.name: why for group in groups if group.name not in gated}
    if "activation" in criterion.needs:
        why = "its units are seen together at no one place, so that it has no activation"
        out |= {group.name: why for group in groups if group.name not in places}
    return out


def _start(
    criterion: Criterion, infos: dict[str, GroupInfo], unscored: dict[str, str]
) -> dict[str, Any]:
    """The states before any data; groups that cannot be scored join the others."""
    states = {}
    for name, info in infos.items():
        try:
            states[name] = criterion.init(info)
        except UnscoredError as why:
            unscored[name] = str(why)
    if unscored and not states:
        name, reason = next(iter(unscored.items()))
        raise UnscoredError(
            f"criterion {criterion.name!r} applies to no group of this network: {name}: {reason}"
        )
    return states


def _checked(criterion: Criterion, info: GroupInfo, values: Tensor) -> Array:
    array = values.detach().double().cpu().numpy()
    if array.shape != (info.size,):
        raise DataError(
            f"criterion {criterion.name!r} gave {array.shape} scores for the "
            f"{info.size} units of group {info.name!r}"
        )
    if not np.isfinite(array).all():
        raise NotFiniteError(f"criterion {criterion.name!r} gave scores that are not finite")
    return array


def _errors(
    criterion: Criterion, infos: dict[str, GroupInfo], states: dict[str, Any]
) -> dict[str, Array]:
    """The standard errors of an estimate, of the groups whose draws tell one."""
    if not (isinstance(criterion, Estimate) and criterion.probes):
        return {}
    found = {name: criterion.error(state) for name, state in states.items()}
    return {n: _checked(criterion, infos[n], e) for n, e in found.items() if e is not None}


def _first(source: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
    """The first batch, and all of them again."""
    for batch in source:
        return batch, itertools.chain([batch], source)
    raise _empty()


def _empty() -> DataError:
    return DataError("the data is empty: no batch was given to score with")


def _samples(
    watched: Watched, model: nn.Module, batch: Any, share: Share | None
) -> dict[str, Tensor]:
    """The spatial means of one batch, of all workers, (examples, units)."""
    seen = watched.seen = Seen()
    with evaluating(model), torch.no_grad():
        _call(watched, to_device(batch, _device(model)))
    own = {name: maps.mean(2).cpu() for name, maps in seen.activation.items()}
    workers = [own] if share is None else share(own)
    return {name: torch.cat([worker[name] for worker in workers]) for name in own}


def _device(model: nn.Module) -> torch.device:
    return next(iter(model.parameters()), torch.zeros(0)).device


@dataclass
class _Run:
    """One pass over the data, which brings the states forward."""

    model: nn.Module
    graph: Graph
    groups: list[Group]
    watched: Watched
    criterion: Criterion
    loss: Loss | None
    objective: Objective | None
    states: dict[str, Any]
    seed: int
    examples: int = 0
    assumed: str = ""

    def __post_init__(self) -> None:
        self._engine: Engine | None = None
        if "change" in self.criterion.needs:
            self._engine = Engine(
                self.model, self.graph, self.loss, self.objective, groups=self.groups
            )

    def _parts(self, data: Iterable[Any]) -> Iterator[Any]:
        """The batches, in parts that fit in memory where the oracle is asked for."""
        for batch in data:
            yield from [batch] if self._engine is None else self._engine.fit(batch)

    def over(self, data: Iterable[Any]) -> None:
        """See every batch."""
        device = _device(self.model)
        gradients = bool(LOSS & self.criterion.needs)
        with evaluating(self.model), torch.set_grad_enabled(gradients):
            for batch in self._parts(data):
                batch = to_device(batch, device)
                changes = dict(self._engine.changes(batch)) if self._engine is not None else {}
                seen = self._see(batch)
                self.examples += seen.examples
                for group in self.groups:
                    if group.name in self.states:
                        shown = self._shown(seen, group, batch)
                        if changes:  # one number for the batch is that of each of its examples
                            change = changes[group.name].loss.expand(seen.examples, -1)
                            shown = dataclasses.replace(shown, change=change)
                        state = self.states[group.name]
                        self.states[group.name] = self.criterion.update(state, shown)
        if not self.examples:
            raise _empty()

    def _see(self, batch: Any) -> Seen:
        """Replay one batch, and take the derivatives that are asked for."""
        needs = self.criterion.needs
        seen = self.watched.seen = Seen()
        if needs <= {"change", "target"}:
            seen.examples = count_examples(batch)
            return seen
        if not LOSS & needs:
            _call(self.watched, batch)
            return seen
        value = loss_of(self.watched, batch, self.loss, self.objective)
        _check_called(seen)
        total, self.assumed = total_loss(value, seen.examples)
        if "gauss_newton" in needs:
            self._gauss_newton(seen, batch)
        if SECOND & needs:
            if {"hessian", "gradient", "mean_gradient"} & needs:
                take_derivatives(total, seen, second="hessian" in needs)
        elif seen.leaves:
            total.backward(inputs=seen.leaves)
        return seen

    def _gauss_newton(self, seen: Seen, batch: Any) -> None:
        loss = self.loss
        if loss is None:
            raise DataError(
                f"criterion {self.criterion.name!r} needs loss(output, target): an objective does "
                "not tell the network from the loss"
            )
        probes = self.criterion.probes if isinstance(self.criterion, Estimate) else 0
        seeds = example_seeds(batch, seen.examples, self.seed) if probes else []
        take_gauss_newton(
            lambda output: total_loss(loss(output, batch[1]), seen.examples)[0], seen, probes, seeds
        )

    def _shown(self, seen: Seen, group: Group, batch: Any) -> GroupBatch:
        """What one batch shows of a group."""
        needs = self.criterion.needs
        shown: dict[str, Tensor] = {}
        for name in ("gradient", "mean_gradient", "hessian", "gauss_newton", "activation"):
            if name in needs:
                found: Tensor | None = getattr(seen, name).get(group.name)
                shown[name] = _zeros(seen, group, name) if found is None else found.detach()
        if "target" in needs:
            shown["target"] = _target(self.criterion, batch)
        return GroupBatch(**shown)


def _zeros(seen: Seen, group: Group, name: str) -> Tensor:
    """What is shown of a group on which the loss does not depend."""
    shape = (seen.examples, group.size)
    return torch.zeros(shape if name.endswith(("gradient", "hessian")) else (*shape, 1))


def _target(criterion: Criterion, batch: Any) -> Tensor:
    """The second of a pair."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[1]
    raise DataError(
        f"criterion {criterion.name!r} needs batches that are pairs (input, target), with a tensor "
        "as the target"
    )


def _call(model: Watched, batch: Any) -> None:
    """Run the model on a batch, or on the input of a pair."""
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    args, kwargs = as_call(batch[0] if pair else batch)
    model(*args, **kwargs)


def _check_called(seen: Seen) -> None:
    if not seen.calls:
        raise DataError(
            "the objective must call model(...) itself: a call of one of its submodules is not seen"
        )
