"""C(g_i = 0) − C(1) for every unit of a batch, exactly, from values computed once and held."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches import Loss, Objective, check_loss, loss_of, to_device
from ..blocks import Block
from ..errors import DataError
from ..groups import Graph, Group
from ..trace.labels import leaves
from ..trace.model import as_call, input_tensors
from ..trace.modes import evaluating
from .cone import Cone, cone_of, cuts_of, cuts_of_block
from .judge import Judge
from .probe import recording_for
from .recording import Recording, pick_examples, tensors_in
from .rows import chunks_of, replay
from .table import Change, Table, Whole
from .walk import Walk, first_pass, held_per_example
from .whole import Forwards, fixed_recording, gated_outputs

Units = Mapping[str, Sequence[int]]

_CACHE = 32 << 20  # bytes of a chunk: large enough for matrix products, small enough for a cache
_PART = 256  # examples that are held at once, where they are independent: more gain nothing
_FEW = 8  # examples that tell whether a loss judges each by itself


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
        groups: of which groups; all of the graph's if None.
    """

    model: nn.Module
    graph: Graph
    loss: Loss | None = None
    objective: Objective | None = None
    metric: Callable[[Any, Any], Any] | None = None
    memory: int = 1 << 30
    skip: bool = True
    report: Callable[[float], None] = lambda done: None
    groups: Sequence[Group] | None = None
    _known: dict[Any, _Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_loss(self.loss, self.objective)
        self._groups = list(self.graph.groups if self.groups is None else self.groups)

    @torch.no_grad()  # as a decorator, it is off again whenever the caller has its turn
    def changes(
        self, batch: Any, units: Units | None = None
    ) -> Generator[tuple[str, Change], None, None]:
        """Group -> its change on this batch, one group after the other.

        Args:
            batch: a pair (input, target), or anything for an objective.
            units: only these, by group; all if None. The changes of others are NaN.
        """
        wanted = {g.name: list(range(g.size)) for g in self._groups}
        if units is not None:
            wanted = {name: list(chosen) for name, chosen in units.items()}
        batch = self._here(batch)
        with evaluating(self.model):
            if self.objective is not None:
                why = "an objective calls the model itself"
                yield from self._by_forwards(batch, wanted, why)
                return
            known = self._recording(_pair(batch)[0])
            recording = known.recording
            if not recording.holds:
                yield from self._by_forwards(batch, wanted, recording.why)
                return
            cones = [cone for cone in known.cones if cone.group.name in wanted]
            if recording.layouts is not None:
                rows = [cone for cone in cones if not cone.alone]
                yield from self._by_rows(recording, rows, batch, wanted)
                cones = [cone for cone in cones if cone.alone]
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
            fit = max(1, int(self.memory / 2 / max(known.held, 1)))
            most = min(fit, _PART, self._held_at_once(known))
            if n <= most:
                return [batch]
            if known.recording.layouts is None or not self._splits(call, target, n, most):
                if n <= fit:
                    return [batch]
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

    @torch.no_grad()
    def uncut(self, batch: Any) -> dict[str, Tensor]:
        """'loss' and 'metric' -> those of the uncut network, as in `Change.base`."""
        with evaluating(self.model):
            return {judge.what: judge.base for judge in self._callers(self._here(batch))}

    # ------------------------------------------------------------------ what is known
    def _here(self, batch: Any) -> Any:
        own = next(iter(self.model.parameters()), torch.zeros(0))
        return to_device(batch, own.device)

    def _recording(self, call: Any) -> _Known:
        key = _signature(call)
        if key not in self._known:
            sizes = {group.name: group.size for group in self.graph.groups}
            recording = recording_for(self.model, call, sizes)
            cones = _cones(recording, self._groups)
            held = held_per_example(recording, cones)
            self._known[key] = _Known(recording, cones, held)
        return self._known[key]

    def _held_at_once(self, known: _Known) -> int:
        """Of how many examples all that blocks need is held, so that they are walked once.

        Blocks are few, so that a second walk counts, and a first that leaves the cache; beside many
        units, neither does.
        """
        if not all(isinstance(group, Block) for group in self._groups):
            return _PART
        needs = set().union(*(cone.needs for cone in known.cones))
        each = sum(map(known.recording.bytes_per_example, needs))
        return min(max(1, int(self.memory / 4 / max(each, 1))), *map(self._limit, known.cones))

    def _splits(self, call: Any, target: Any, n: int, most: int) -> bool:
        some = min(most, _FEW)
        part = pick_examples((call, target), slice(0, some), n)
        args, kwargs = as_call(part[0])
        judges = self._judges(self.model(*args, **kwargs), part[1], some)
        return all(judge.rowwise for judge in judges)

    def _judges(self, output: Any, target: Any, n: int) -> list[Judge]:
        judges = [(self.loss, "loss"), (self.metric, "metric")]
        return [Judge(judge, what, output, target, n) for judge, what in judges if judge]

    # ------------------------------------------------------------------ three ways
    def _by_rows(
        self, recording: Recording, cones: list[Cone], batch: Any, wanted: Units
    ) -> Iterator[tuple[str, Change]]:
        """Rows of (unit, example) in one batch, from each group's readers on."""
        if not cones:
            return
        call, target = batch
        n = count_examples(batch)
        inputs = recording.inputs(call)
        needs = set().union(*(cone.needs for cone in cones))
        if n * sum(map(recording.bytes_per_example, needs)) > self.memory / 4:
            needs = set()  # the walk computes them again, and holds them as long as it must
        outputs, loud, held = first_pass(recording, inputs, n, cones, needs)
        judges = self._judges(recording.outputs(outputs), target, n)
        walk = Walk(recording, inputs | held, n, cones)
        due = [cone.work * n * len(wanted[cone.group.name]) for cone in cones]
        done, total = 0.0, max(sum(due), 1.0)
        for index, cone in enumerate(cones):
            values = walk.reach(index)
            heard = loud[index] if self.skip else torch.ones_like(loud[index])
            table = Table(cone.group.name, judges, cone.group.size, wanted[cone.group.name])
            static: dict[int, dict[int, Tensor]] = {}
            whole = None if table.rowwise else Whole(recording, table, outputs, heard)
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
        whys = {cone.group.name: recording.why or cone.alone for cone in cones}
        recording = fixed_recording(self.model, recording, call)
        cones = [cone for cone in _cones(recording, self._groups) if cone.group.name in names]
        inputs = recording.inputs(call)
        outputs, _, _ = first_pass(recording, inputs, n, [])
        judges = self._judges(recording.outputs(outputs), target, n)
        walk = Walk(recording, inputs, n, cones)
        for index, cone in enumerate(cones):
            values, name = walk.reach(index), cone.group.name
            table = Table(name, judges, cone.group.size, wanted[name])
            for unit in wanted[name]:
                table.whole(gated_outputs(recording, cone, values, n, unit), unit)
            yield name, table.change("units", whys[name])

    def _by_forwards(self, batch: Any, wanted: Units, why: str) -> Iterator[tuple[str, Change]]:
        """A whole forward for each unit."""
        forwards, judges = Forwards(self.model, self.graph), self._callers(batch)
        for group in self._groups:
            if group.name in wanted:
                table = Table(group.name, judges, group.size, wanted[group.name])
                for unit in wanted[group.name]:
                    table.whole(forwards.without(group, unit), unit)
                yield group.name, table.change("forwards", why)

    def _callers(self, batch: Any) -> list[Judge]:
        """The loss and the metric as judges whose 'output' is the model."""
        asked = [(functools.partial(loss_of, loss=self.loss, objective=self.objective), "loss")]
        if self.metric is not None and self.objective is None:
            asked.append((functools.partial(loss_of, loss=self.metric, objective=None), "metric"))
        n = count_examples(batch)
        return [Judge(judge, what, self.model, batch, n) for judge, what in asked]


def _cones(recording: Recording, groups: Iterable[Group]) -> list[Cone]:
    """The cone of each group, in the order in which they begin."""
    graph, wanted = recording.graph, list(groups)
    blocks = [group for group in wanted if isinstance(group, Block)]
    cones = [cone_of(recording, block, cuts_of_block(graph, block)) for block in blocks]
    names = {group.name for group in wanted if not isinstance(group, Block)}
    if names:
        cones += _unit_cones(recording, names)
    return sorted(cones, key=lambda cone: cone.start)


def _unit_cones(recording: Recording, names: set[str]) -> list[Cone]:
    """The cones of these groups, whose units lie along axes."""
    graph = recording.graph
    cuts = cuts_of(graph)
    also: list[set[int]] = [set() for _ in graph.groups]
    for position in graph.analysis.statistics:
        for value in graph.program.nodes[position].inputs:
            for axis in graph.analysis.axes[value]:
                for number in {n for leaf in leaves(axis) for n in graph.groups_of(leaf)}:
                    also[number].add(position)
    found = zip(graph.groups, cuts, also, strict=True)
    return [cone_of(recording, group, own, by) for group, own, by in found if group.name in names]


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
