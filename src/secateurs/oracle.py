"""The exact oracle: what the loss and a metric do when each unit goes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from .batches import Loss, Objective
from .blocks import chosen
from .errors import ConfigError, DataError
from .exact.changes import Engine, count_examples
from .exact.sample import Sample, draw
from .exact.table import Change
from .files.parts import Parts
from .groups import Graph, Group
from .oracle_result import Oracle

if TYPE_CHECKING:
    from .process.progress import Meter

Array = npt.NDArray[np.float64]
Metric = Callable[[Any, Any], Any]


def oracle(
    model: nn.Module,
    graph: Graph,
    data: Iterable[Any],
    *,
    loss: Loss | None = None,
    objective: Objective | None = None,
    metric: Metric | None = None,
    batches: int | None = None,
    examples: int | None = None,
    seed: int = 0,
    memory: int | str = "1 GB",
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    groups: Iterable[Group] | None = None,
) -> Oracle:
    """What the loss, and a metric, do when each unit goes: exact, for every unit of every group.

    Values up to a unit's first readers are computed once; a reader's result changes by one rank;
    only what lies downstream is computed anew, for many units and examples at once, and not for
    examples in which the unit is silent. Where the network takes a statistic over the units, or
    mixes the examples of a batch, one unit at a time runs; `Oracle.how` says so.

    Args:
        model: the model that was traced; it runs in eval mode and is left untouched.
        graph: its trace.
        data: batches; pairs (input, target) for `loss`, anything for `objective`.
        loss: loss(output, target) -> one value per example, (examples,), or one for the batch.
        objective: objective(model, batch) -> the same, where a batch is no pair; it is called once
            for each unit.
        metric: metric(output, target) -> the same as a loss; accuracy, for example.
        batches: use at most so many batches.
        examples: use a sample of so many, stratified by class, with its standard error; the loss
            and the metric then need one value per example.
        seed: of the draw.
        memory: what it may take beyond the model and the data: bytes, or such as '2 GB'.
        out: a folder in which finished groups are kept, so that nothing is lost.
        resume: go on with what is there.
        progress: show a bar with the time left.
        groups: which to measure: some of the graph's, or `graph.blocks`; by default all of the
            graph's.

    Raises:
        DataError: no data, no pairs, a loss of another shape, or a batch that cannot be split and
            does not fit the memory.
        NotFiniteError: a loss or metric is NaN or infinite.
        FileError: `out` holds the parts of another oracle: of other weights or groups, or of a loss
            or metric that has another name, or another value for the uncut network.
        ConfigError: `memory` is no number of bytes, or a group is not the graph's.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
    >>> cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    >>> found = sc.oracle(net, sc.trace(net, x), [(x, y)], loss=cross_entropy)
    >>> found.loss["0"].shape, found.examples
    ((8,), 16)
    """
    from .process.progress import Meter  # brings Rich along

    own = chosen(graph, groups)
    engine = Engine(model, graph, loss, objective, metric, memory=bytes_of(memory), groups=own)
    source: Iterator[Any] = itertools.islice(data, batches)
    sample = None
    total = None if examples is not None else _length(data, batches)
    if examples is not None:
        if objective is not None:
            raise DataError("examples= needs loss(output, target), not an objective")
        batch, sample = draw(source, examples, seed)
        source, total = iter([batch]), 1
    parts = Parts(out, model, own, _told(loss, objective, metric, sample), resume=resume)
    means = _Means(own, sample)
    with Meter(progress, "the oracle") as meter:
        for number, batch in enumerate(source):
            pieces = engine.fit(batch)
            for index, piece in enumerate(pieces):
                engine.report = _way(meter, number + index / len(pieces), len(pieces), total)
                for name, change in _changes(engine, parts, own, piece):
                    means.add(name, change, count_examples(piece))
    return means.result()


def _way(meter: Meter, start: float, pieces: int, batches: int | None) -> Callable[[float], None]:
    """Move the bar as a piece of a batch goes on; it stays where the batches are not counted."""

    def report(done: float) -> None:
        meter.way((start + done / pieces) / batches if batches else 0.0, "")

    return report


def _changes(
    engine: Engine, parts: Parts, groups: list[Group], batch: Any
) -> Iterator[tuple[str, Change]]:
    """The change of each group on a batch: read where it is done, else computed and kept."""
    known = parts.read(batch, engine.uncut)
    yield from known.items()
    rest = {g.name: range(g.size) for g in groups if g.name not in known}
    if rest:
        with contextlib.closing(engine.changes(batch, rest)) as found:  # the model is its own again
            for name, change in found:
                parts.write(batch, name, change)
                yield name, change


def _told(*what: Any) -> list[str]:
    """The names of the functions; what they give for the uncut network is compared as well."""
    return [getattr(one, "__qualname__", type(one).__name__) for one in what]


def _length(data: Iterable[Any], batches: int | None) -> int | None:
    try:
        length = len(data)  # type: ignore[arg-type]
    except TypeError:
        return batches
    return length if batches is None else min(length, batches)


class _Mean:
    """A mean over examples, batch by batch; the rows of a sample are held, and weighted."""

    def __init__(self, what: str, sample: Sample | None):
        self._what, self._sample = what, sample
        self._total: Any = 0.0
        self._parts: list[Array] = []
        self.seen = 0

    def add(self, values: Tensor, n: int) -> None:
        """What a batch of n examples gives: (n, …), or (1, …) for all of them.

        Raises:
            DataError: it is one number for all of them, where each has a weight.
        """
        self.seen += n
        if self._sample is None:
            self._total = self._total + n * values.numpy().mean(0)
        elif len(values) == n:
            self._parts.append(values.numpy())
        else:
            raise DataError(f"examples= needs a {self._what} of one value per example")

    @property
    def rows(self) -> Array:
        return np.concatenate(self._parts)

    @property
    def value(self) -> Any:
        return self._total / self.seen if self._sample is None else self._sample.mean(self.rows)


class _Means:
    """Means over examples, of each group's changes and of the uncut network."""

    def __init__(self, groups: list[Group], sample: Sample | None):
        self._sample = sample
        self._order = [group.name for group in groups]
        self._found: dict[str, dict[str, _Mean]] = {}
        self._how: dict[str, str] = {}

    def add(self, name: str, change: Change, n: int) -> None:
        """One more batch of n examples."""
        self._add("loss", name, change.loss, n)
        if change.metric is not None:
            self._add("metric", name, change.metric, n)
        for what, base in change.base.items():
            self._add(f"uncut {what}", name, base, n)
        if change.why:
            self._how[name] = f"{_HOW[change.how]}: {change.why}"

    def _add(self, what: str, name: str, values: Tensor, n: int) -> None:
        self._found.setdefault(what, {}).setdefault(name, _Mean(what, self._sample)).add(values, n)

    def result(self) -> Oracle:
        """The means.

        Raises:
            DataError: no batch was seen.
        """
        if not self._found:
            raise DataError("the data is empty: no batch was given")
        loss, metric = self._of("loss"), self._of("metric")
        uncut = {what: self._of(f"uncut {what}").values() for what in ("loss", "metric")}
        found = Oracle(
            {name: mean.value for name, mean in loss.items()},
            {name: mean.value for name, mean in metric.items()},
            {what: float(next(iter(means)).value) for what, means in uncut.items() if means},
            max(mean.seen for mean in loss.values()),
            how=self._how,
        )
        if self._sample is None:
            return found
        rows = {name: mean.rows for name, mean in loss.items()}
        error = {name: self._sample.error(own) for name, own in rows.items()}
        return dataclasses.replace(found, error=error, rows=rows, sample=self._sample)

    def _of(self, what: str) -> dict[str, _Mean]:
        """Group -> its mean, in the order of the graph; empty if there is none."""
        found = self._found.get(what, {})
        return {name: found[name] for name in self._order if name in found}


_HOW = {"units": "one unit at a time, from its readers on", "forwards": "a whole forward a unit"}


def bytes_of(memory: int | str) -> int:
    """A number of bytes, from a number or a text such as '500 MB' or '2 GB'.

    Raises:
        ConfigError: it is neither, or not positive.

    >>> bytes_of("1.5 GB")
    1500000000
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kMG]?)B?\s*", str(memory))
    try:
        value = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if value < 1:
        raise ConfigError(f"memory is a number of bytes, or such as '2 GB', not {memory!r}")
    return int(value)
