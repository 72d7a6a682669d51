"""C(g_i = 0) − C(1) for every unit of a batch, exactly, from values computed once and held."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches import Loss, Objective, check_loss, loss_of, to_device
from ..errors import DataError, NotFiniteError
from ..groups import Graph
from ..trace.labels import leaves
from ..trace.record import as_call, evaluating, input_tensors
from .cone import Cone, cone_of, cuts_of
from .judge import Judge
from .recording import Layout, Recording, Rows, pick_examples, recording_for, tensors_in
from .rows import Chunk, chunks_of, replay
from .walk import Walk, first_pass, held_per_example
from .whole import Forwards, fixed_recording, gated_outputs

Units = Mapping[str, Sequence[int]]

_CACHE = 16 << 20  # bytes of a chunk: large enough for matrix products, small enough for a cache


@dataclass(frozen=True)
class Change:
    """What the units of one group change on one batch.

    Attributes:
        loss: C_n(g_i = 0) − C_n(1), (examples, units) float64; (1, units) where the loss is one
            number for the batch.
        metric: the same in the metric; None without one.
        how: how it was computed: 'rows', 'units' (whole batches, from the group's readers on),
            'forwards'.
        why: why not by rows; empty if it was.
        base: the mean loss of the uncut network, and its mean metric.
    """

    loss: Tensor
    metric: Tensor | None
    how: str
    why: str = ""
    base: tuple[float, ...] = ()


@dataclass
class _Known:
    """What is known of a model on inputs of one shape."""

    recording: Recording
    cones: list[Cone]
    held: float


@dataclass
class Engine:
    """Computes changes batch by batch; recordings are kept from one batch to the next.

    Args:
        model: the model that was traced.
        graph: its trace.
        loss, objective, metric: as `oracle` takes them.
        memory: bytes that it may take beyond the model and the data.
        skip: leave out the rows of silent units, which change nothing.
        report: called with the fraction of a batch that is done.
    """

    model: nn.Module
    graph: Graph
    loss: Loss | None = None
    objective: Objective | None = None
    metric: Callable[[Any, Any], Any] | None = None
    memory: int = 1 << 30
    skip: bool = True
    report: Callable[[float], None] = lambda done: None
    _known: dict[Any, _Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_loss(self.loss, self.objective)

    def changes(self, batch: Any, units: Units | None = None) -> Iterator[tuple[str, Change]]:
        """Group -> its change on this batch, one group after the other.

        Args:
            batch: a pair (input, target), or anything for an objective.
            units: only these, by group; all if None. The changes of others are NaN.
        """
        wanted = {g.name: list(range(g.size)) for g in self.graph.groups}
        if units is not None:
            wanted = {name: list(chosen) for name, chosen in units.items()}
        batch = self._here(batch)
        with torch.no_grad(), evaluating(self.model):
            if self.objective is not None:
                why = "an objective calls the model itself"
                yield from self._by_forwards(batch, self.objective, wanted, why)
                return
            known = self._recording(_pair(batch)[0])
            recording = known.recording
            if not recording.holds:
                objective = functools.partial(loss_of, loss=self.loss, objective=None)
                yield from self._by_forwards(batch, objective, wanted, recording.why)
                return
            cones = [cone for cone in known.cones if cone.group.name in wanted]
            if recording.layouts is not None:
                rows = [cone for cone in cones if cone.group.exact]
                yield from self._by_rows(recording, rows, batch, wanted)
                cones = [cone for cone in cones if not cone.group.exact]
            yield from self._by_units(recording, cones, batch, wanted)

    def fit(self, batch: Any) -> list[Any]:
        """The batch in parts that fit the memory; itself where its examples belong together.

        Raises:
            DataError: it is no pair, holds no example, or cannot be split and does not fit.
        """
        if self.objective is not None:
            return [batch]
        n = count_examples(batch)
        call, target = _pair(self._here(batch))
        with torch.no_grad(), evaluating(self.model):
            known = self._recording(call)
            if not known.recording.holds:
                return [batch]
            most = max(1, int(self.memory / 2 / max(known.held, 1)))
            if n <= most:
                return [batch]
            if known.recording.layouts is None or not self._splits(call, target, n, most):
                need = 2 * known.held * n / 1e6
                raise DataError(
                    f"a batch of {n} examples takes about {need:.0f} MB, more than memory="
                    f"{self.memory / 1e6:.0f} MB, and cannot be split: the loss or the model sees "
                    "its examples together; pass smaller batches, a loss of one value per example, "
                    "or more memory"
                )
        parts = -(-n // most)
        edges = [i * n // parts for i in range(parts + 1)]
        return [
            pick_examples(batch, slice(first, last), n) for first, last in itertools.pairwise(edges)
        ]

    # ------------------------------------------------------------------ what is known
    def _here(self, batch: Any) -> Any:
        own = next(iter(self.model.parameters()), torch.zeros(0))
        return to_device(batch, own.device)

    def _recording(self, call: Any) -> _Known:
        key = _signature(call)
        if key not in self._known:
            sizes = {group.name: group.size for group in self.graph.groups}
            recording = recording_for(self.model, call, sizes)
            cones = _cones(recording)
            held = held_per_example(recording, cones)
            self._known[key] = _Known(recording, cones, held)
        return self._known[key]

    def _splits(self, call: Any, target: Any, n: int, most: int) -> bool:
        some = slice(0, most)
        part = pick_examples((call, target), some, n)
        args, kwargs = as_call(part[0])
        judges = self._judges(self.model(*args, **kwargs), part[1], most)
        return all(judge.rowwise for judge in judges)

    def _judges(self, output: Any, target: Any, n: int) -> list[Judge]:
        judges = [(self.loss, "loss"), (self.metric, "metric")]
        return [Judge(judge, what, output, target, n) for judge, what in judges if judge]

    # ------------------------------------------------------------------ three ways
    def _by_rows(
        self, recording: Recording, cones: list[Cone], batch: Any, wanted: Units
    ) -> Iterator[tuple[str, Change]]:
        """Rows of (unit, example) in one batch, from each group's readers on."""
        call, target = batch
        n = count_examples(batch)
        inputs = recording.inputs(call)
        outputs, loud = first_pass(recording, inputs, n, cones)
        base = recording.outputs(outputs)
        judges = self._judges(base, target, n)
        walk = Walk(recording, inputs, n, cones)
        due = [cone.work * n * len(wanted[cone.group.name]) for cone in cones]
        done, total = 0.0, max(sum(due), 1.0)
        for index, cone in enumerate(cones):
            values = walk.reach(index)
            heard = loud[index] if self.skip else torch.ones_like(loud[index])
            table = _Table(cone.group.name, judges, cone.group.size, wanted[cone.group.name])
            static: dict[int, dict[int, Tensor]] = {}
            whole = None if table.rowwise else _Whole(recording, table, outputs, heard)
            for chunk in chunks_of(heard, wanted[cone.group.name], self._limit(cone)):
                if chunk.count not in static:
                    static = {chunk.count: recording.static(chunk.count)}
                tree = replay(recording, cone, values, static[chunk.count], chunk)
                if whole is None:
                    table.rows(tree, chunk)
                else:
                    whole.take(tree, chunk)
                self.report((done + chunk.count * cone.work) / total)
            done += due[index]
            yield cone.group.name, table.change("rows", "")

    def _limit(self, cone: Cone) -> int:
        """How many rows of a group share a batch."""
        fit = int(self.memory / 3 / max(cone.bytes_per_row, 1))
        quick = int(_CACHE / max(cone.bytes_per_row, 1))
        return max(1, min(fit, max(quick, 64)))

    def _by_units(
        self, recording: Recording, cones: list[Cone], batch: Any, wanted: Units
    ) -> Iterator[tuple[str, Change]]:
        """The whole batch for one unit after the other, from the group's readers on."""
        if not cones:
            return
        call, target = batch
        n = count_examples(batch)
        names = {cone.group.name for cone in cones}
        whys = {cone.group.name: recording.why or _inexact(cone) for cone in cones}
        recording = fixed_recording(self.model, recording, call)
        cones = [cone for cone in _cones(recording) if cone.group.name in names]
        inputs = recording.inputs(call)
        outputs, _ = first_pass(recording, inputs, n, [])
        judges = self._judges(recording.outputs(outputs), target, n)
        walk = Walk(recording, inputs, n, cones)
        for index, cone in enumerate(cones):
            values, name = walk.reach(index), cone.group.name
            table = _Table(name, judges, cone.group.size, wanted[name])
            for unit in wanted[name]:
                table.whole(gated_outputs(recording, cone, values, n, unit), unit)
            yield name, table.change("units", whys[name])

    def _by_forwards(
        self, batch: Any, objective: Objective, wanted: Units, why: str
    ) -> Iterator[tuple[str, Change]]:
        """A whole forward for each unit."""
        forwards = Forwards(self.model, self.graph)
        judges = [(objective, "loss")]
        if self.metric is not None and self.objective is None:
            judges.append((functools.partial(loss_of, loss=self.metric, objective=None), "metric"))
        n = count_examples(batch)
        found = [Judge(_calling(judge), what, self.model, batch, n) for judge, what in judges]
        for name, units in wanted.items():
            table = _Table(name, found, self.graph[name].size, units)
            for unit in units:
                table.whole(forwards.without(name, unit), unit)
            yield name, table.change("forwards", why)


def _calling(objective: Objective) -> Callable[[Any, Any], Any]:
    """An objective as a judge whose 'output' is the model."""
    return lambda model, batch: objective(model, batch)


def _inexact(cone: Cone) -> str:
    return f"a statistic is taken over its units: {cone.group.why_inexact}"


def _cones(recording: Recording) -> list[Cone]:
    """The cone of each group, in the order in which they begin."""
    graph = recording.graph
    cuts = cuts_of(graph)
    also: list[set[int]] = [set() for _ in graph.groups]
    for position in graph.analysis.statistics:
        for value in graph.program.nodes[position].inputs:
            for axis in graph.analysis.axes[value]:
                for number in {n for leaf in leaves(axis) for n in graph.groups_of(leaf)}:
                    also[number].add(position)
    cones = [cone_of(recording, i, own, also[i]) for i, own in enumerate(cuts)]
    return sorted(cones, key=lambda cone: cone.start)


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(
            "loss(output, target) needs batches that are pairs (input, target); "
            "pass objective(model, batch) for any other"
        )
    return batch[0], batch[1]


def count_examples(batch: Any) -> int:
    """How many examples a batch holds.

    Raises:
        DataError: it holds none.
    """
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    tensors = input_tensors(batch[0] if pair else batch) or tensors_in(batch)
    if not tensors or not tensors[0].dim() or not len(tensors[0]):
        raise DataError("a batch holds no example")
    return len(tensors[0])


def _signature(call: Any) -> Any:
    """What a recording depends on: all of the inputs but how many examples they hold."""
    found, spec = pytree.tree_flatten(call)
    told = [(t.dim(), t.shape[1:], t.dtype) if isinstance(t, Tensor) else repr(t) for t in found]
    return (str(spec), *told)


class _Table:
    """The changes of a group's units on one batch, as they come in."""

    def __init__(self, group: str, judges: list[Judge], size: int, wanted: Sequence[int]):
        self._group, self._judges, self._wanted = group, judges, list(wanted)
        self._made = []
        for judge in judges:
            made = torch.full((len(judge.base), size), torch.nan, dtype=torch.float64)
            made[:, self._wanted] = 0.0  # a silent unit changes nothing
            self._made.append(made)

    @property
    def rowwise(self) -> bool:
        return all(judge.rowwise for judge in self._judges)

    def rows(self, output: Any, chunk: Chunk) -> None:
        """What the rows of a chunk give."""
        examples = chunk.examples
        for judge, made in zip(self._judges, self._made, strict=True):
            change = judge.rows(output, examples)
            if len(chunk.segments) == 1 and isinstance(examples, slice):
                made[examples, chunk.segments[0].unit] = change
            elif isinstance(examples, Tensor):
                made[examples, chunk.units] = change

    def whole(self, output: Any, unit: int) -> None:
        """What the whole batch gives without a unit."""
        for judge, made in zip(self._judges, self._made, strict=True):
            made[:, unit] = judge.whole(output) - judge.base

    def change(self, how: str, why: str) -> Change:
        """All of it, checked."""
        for made in self._made:
            if not bool(torch.isfinite(made[:, self._wanted]).all()):
                bad = (~torch.isfinite(made[:, self._wanted])).any(0).nonzero()[0].item()
                raise NotFiniteError(
                    f"the loss or metric is not finite (NaN or infinite) without unit "
                    f"{self._wanted[int(bad)]} of group {self._group!r}"
                )
        loss, *metric = self._made
        base = tuple(float(judge.base.mean()) for judge in self._judges)
        return Change(loss, metric[0] if metric else None, how, why, base)


class _Whole:
    """Puts the rows of each unit together into the output of the whole batch."""

    def __init__(
        self, recording: Recording, table: _Table, outputs: dict[int, Tensor], loud: Tensor
    ):
        self._recording, self._table, self._base = recording, table, outputs
        self._due = loud.sum(0).tolist()
        self._open: dict[int, dict[int, Tensor]] = {}

    def take(self, tree: Any, chunk: Chunk) -> None:
        """Rows of some units; a unit that is complete is judged, and let go."""
        layouts = self._recording.layouts or {}
        refs = self._recording.graph.program.output_ids()
        rows = dict(zip(refs, tensors_in(tree), strict=True))
        for segment in chunk.segments:
            made = self._open.setdefault(
                segment.unit, {i: t.clone() for i, t in self._base.items()}
            )
            for ident, whole in made.items():
                layout = layouts.get(ident)
                if layout is not None:
                    part = layout.pick(rows[ident], slice(segment.start, segment.stop))
                    made[ident] = _put(layout, whole, segment.examples, part)
            self._due[segment.unit] -= segment.stop - segment.start
            if not self._due[segment.unit]:
                self._table.whole(
                    self._recording.outputs(self._open.pop(segment.unit)), segment.unit
                )


def _put(layout: Layout, whole: Tensor, examples: Rows, part: Tensor) -> Tensor:
    """The whole with the part at some of its examples."""
    split, piece = layout.split(whole), layout.split(part)
    rows = torch.arange(examples.start, examples.stop) if isinstance(examples, slice) else examples
    return split.index_copy(layout.dim + 1, rows.to(whole.device), piece).reshape(whole.shape)
