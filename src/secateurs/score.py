"""Score every unit of every group by a criterion, from batches of data.

Gradients come from replaying the recorded program under autograd. The gate of a unit sits on the
operand that each reader reads; its derivative is the sum of ∂C/∂z · z over the unit's positions
there, which costs one product and one sum and no second graph.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .criteria import Criterion, GroupBatch, GroupInfo, find_criterion
from .criteria.base import NOTHING
from .errors import DataError, TraceError
from .gates import trace
from .groups import Graph, Group
from .trace.analyse import Read
from .trace.labels import leaves
from .trace.program import Intercept
from .trace.record import evaluating, input_tensors, model_tensors

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Objective: TypeAlias = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Scores:
    """One importance per unit per group, higher = keep.

    Attributes:
        values: group -> (units,) float64.
        criterion: its name.
        examples: how many examples were seen.
        assumed: how the loss was read: one value per example, or the mean over examples.
    """

    values: dict[str, npt.NDArray[np.float64]]
    criterion: str
    examples: int = 0
    assumed: str = ""

    def __getitem__(self, group: str) -> npt.NDArray[np.float64]:
        return self.values[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain data."""
        values = {name: array.tolist() for name, array in self.values.items()}
        return {
            "criterion": self.criterion,
            "examples": self.examples,
            "assumed": self.assumed,
            "values": values,
        }


@dataclass(frozen=True)
class _Family:
    """The units of one group along one factor of a read's axis, as seen in the operand."""

    group: str
    size: int
    summed: tuple[int, ...]
    shape: tuple[int, ...]
    batch: int | None
    flip: bool
    positions: Tensor | None
    units: Tensor
    per_unit: float

    def collect(self, product: Tensor) -> Tensor:
        """(examples, units): the mean over positions of an operand-shaped tensor."""
        rows = product.reshape(self.shape)
        if self.summed:
            rows = rows.sum(self.summed)
        if self.batch is None:
            rows = rows[None]
        elif self.flip:
            rows = rows.T
        if self.positions is not None:
            units = self.units.to(rows.device)
            picked = rows[:, self.positions.to(rows.device)]
            rows = rows.new_zeros(len(rows), self.size).index_add_(1, units, picked)
        return rows / self.per_unit


def _families(graph: Graph, read: Read) -> list[_Family]:
    """How to see each group's units in the operand of a read."""
    axes = graph.analysis.axes[read.value]
    parts = [(d, leaf) for d, axis in enumerate(axes) for leaf in leaves(axis)]
    shape = tuple(leaf.size for _, leaf in parts)
    batch = next((i for i, (_, leaf) in enumerate(parts) if leaf.batch), None)
    examples = shape[batch] if batch is not None else 1
    out = []
    for i, (d, leaf) in enumerate(parts):
        if d != read.dim or i == batch:
            continue
        positions, units = graph.incidence(leaf)
        for number in np.unique(graph.group_of[units]).tolist():
            group = graph.groups[number]
            mine = graph.group_of[units] == number
            where, which = positions[mine], graph.index_of[units[mine]]
            straight = (
                len(where) == group.size == leaf.size
                and ((where == np.arange(leaf.size)) & (which == where)).all()
            )
            count = int(np.bincount(which).max())
            out.append(
                _Family(
                    group.name,
                    group.size,
                    tuple(j for j in range(len(parts)) if j not in (i, batch)),
                    shape,
                    batch,
                    batch is not None and batch > i,
                    None if straight else torch.from_numpy(where),
                    torch.from_numpy(which),
                    count * int(np.prod(shape)) / (examples * leaf.size),
                )
            )
    return out


class _Shape:
    """One recording for one input shape, ready to be observed."""

    def __init__(self, model: nn.Module, example_inputs: Any, names: dict[str, int]):
        self.graph = trace(model, example_inputs)
        sizes = {group.name: group.size for group in self.graph.groups}
        if sizes != names:
            raise TraceError(
                "the network has other groups for this input shape than for the traced one; "
                "score with inputs like the example inputs"
            )
        self.reads: list[tuple[Read, list[_Family], list[_Family]]] = []
        seen: set[str] = set()
        for read in self.graph.analysis.reads:
            families = _families(self.graph, read)
            first = [family for family in families if family.group not in seen]
            seen.update(family.group for family in families)
            if families:
                self.reads.append((read, families, first))


@dataclass
class _Seen:
    """What the replays of one batch have shown so far: group -> (examples, units)."""

    gradient: dict[str, Tensor] = field(default_factory=dict)
    activation: dict[str, Tensor] = field(default_factory=dict)
    examples: int = 0

    def add(self, into: dict[str, Tensor], group: str, rows: Tensor) -> None:
        if len(rows) != self.examples:  # no batch axis at this read: shared by all examples
            rows = rows.expand(self.examples, -1) / self.examples
        into[group] = into[group] + rows if group in into else rows


class _Watched:
    """A stand-in for the model that replays its recording and watches what is read."""

    def __init__(self, model: nn.Module, graph: Graph, needs: frozenset[str]):
        self._model, self._needs = model, needs
        self._tensors = {name: t.detach() for name, t in model_tensors(model).items()}
        self._names = {group.name: group.size for group in graph.groups}
        self._shapes: dict[Any, _Shape] = {}
        self.seen = _Seen()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call: Any = kwargs if kwargs and not args else args
        if kwargs and args:
            raise DataError("call the model with positional or with keyword arguments, not both")
        inputs = input_tensors(call)
        leaves, spec = pytree.tree_flatten(call)
        told = [(t.shape, t.dtype) if isinstance(t, Tensor) else repr(t) for t in leaves]
        key = (str(spec), *told)  # a recording bakes in all that is no tensor
        if key not in self._shapes:
            self._shapes[key] = _Shape(self._model, call, self._names)
        shape = self._shapes[key]
        self.seen.examples = len(inputs[0])
        return shape.graph.program.replay(self._tensors, inputs, self._intercepts(shape))

    def _intercepts(self, shape: _Shape) -> dict[int, Intercept]:
        out: dict[int, Intercept] = {}
        for read, families, first in shape.reads:
            out[read.position] = self._watch(read, families, first, out.get(read.position))
        return out

    def _watch(
        self,
        read: Read,
        families: list[_Family],
        first: list[_Family],
        before: Intercept | None,
    ) -> Intercept:
        def intercept(args: list[Any]) -> list[Any]:
            args = before(args) if before is not None else args
            x: Tensor = args[read.arg]
            if "activation" in self._needs:
                for family in first:
                    rows = family.collect(x.detach())
                    self.seen.add(self.seen.activation, family.group, rows)
            if "gradient" in self._needs:
                args[read.arg] = self._gate(x, families)
            return args

        return intercept

    def _gate(self, x: Tensor, families: list[_Family]) -> Tensor:
        """The operand under another name, whose gradient is that of this reader alone."""
        value = x.detach()

        def collect(gradient: Tensor) -> None:
            product = gradient * value
            for family in families:
                self.seen.add(self.seen.gradient, family.group, family.collect(product))

        if x.requires_grad:
            x = x.view_as(x)
        else:
            x = value.view_as(value).requires_grad_()
            x.register_post_accumulate_grad_hook(_forget_gradient)
        x.register_hook(collect)
        return x


def _forget_gradient(tensor: Tensor) -> None:
    tensor.grad = None


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
    share: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
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
        share: with data parallel workers, each with its part of the data: this worker's states
            -> the states of all workers, which are then merged.

    Raises:
        DataError: no data, a loss of another shape, or a loss that is not finite.
        ConfigError: an unknown criterion.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
    >>> cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    >>> scores = sc.score(net, sc.trace(net, x), [(x, y)], loss=cross_entropy)
    >>> scores["0"].shape
    (8,)
    """
    found = find_criterion(criterion)
    infos = group_infos(model, graph, seed)
    states = {name: found.init(info) for name, info in infos.items()}
    examples, assumed = 0, ""
    if found.needs:
        states, examples, assumed = _run(
            model, graph, data, loss, objective, found, states, batches
        )
    if share is not None:
        first, *others = share(states)
        states = {n: functools.reduce(found.merge, (o[n] for o in others), first[n]) for n in first}
    values = {}
    for name, state in states.items():
        array = found.score(state).detach().double().cpu().numpy()
        if array.shape != (infos[name].size,):
            raise DataError(
                f"criterion {found.name!r} gave {array.shape} scores for the "
                f"{infos[name].size} units of group {name!r}"
            )
        values[name] = array
    return Scores(values, found.name, examples, assumed)


def _run(
    model: nn.Module,
    graph: Graph,
    data: Iterable[Any] | None,
    loss: Loss | None,
    objective: Objective | None,
    criterion: Criterion,
    states: dict[str, Any],
    batches: int | None,
) -> tuple[dict[str, Any], int, str]:
    if data is None:
        raise DataError(f"criterion {criterion.name!r} needs data; pass batches of it")
    gradients = "gradient" in criterion.needs
    if gradients and (loss is None) == (objective is None):
        raise DataError("pass loss(output, target) or objective(model, batch), one of the two")
    watched = _Watched(model, graph, criterion.needs)
    examples, assumed = 0, ""
    with evaluating(model), torch.set_grad_enabled(gradients):
        for batch in itertools.islice(data, batches):
            watched.seen = _Seen()
            value = _value(watched, to_device(batch, model), loss, objective)
            seen = watched.seen
            if gradients:
                total, assumed = _total(value, seen.examples)
                if total.requires_grad:
                    total.backward()
            examples += seen.examples
            for group in graph.groups:
                shown = GroupBatch(_rows(seen.gradient, group), _rows(seen.activation, group))
                states[group.name] = criterion.update(states[group.name], shown)
    if not examples:
        raise DataError("the data is empty: no batch was given to score with")
    return states, examples, assumed


def _rows(seen: dict[str, Tensor], group: Group) -> Tensor:
    return seen.get(group.name, NOTHING).detach()


def _value(watched: _Watched, batch: Any, loss: Loss | None, objective: Objective | None) -> Tensor:
    if objective is not None:
        return objective(watched, batch)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(
            "loss(output, target) needs batches that are pairs (input, target); "
            "pass objective(model, batch) for any other"
        )
    x, target = batch
    output = watched(**x) if isinstance(x, dict) else watched(*pytree.tree_leaves(x))
    return loss(output, target) if loss is not None else NOTHING


def _total(value: Any, examples: int) -> tuple[Tensor, str]:
    """The sum over examples of a loss, and how it was read."""
    if not isinstance(value, Tensor):
        raise DataError(f"the loss must be a tensor, not {type(value).__name__}")
    if not bool(torch.isfinite(value).all()):
        raise DataError("the loss is not finite (NaN or infinite); scores would mean nothing")
    if value.dim() == 0:
        return value * examples, "a scalar loss, read as the mean over examples"
    if value.numel() == examples:
        return value.sum(), "one loss per example"
    raise DataError(
        f"the loss has shape {tuple(value.shape)}: return one value per example, ({examples},), "
        "or the scalar mean over examples"
    )


def to_device(batch: Any, model: nn.Module) -> Any:
    """A batch with its tensors where the model's parameters are."""
    own = next(iter(model.parameters()), None)
    if own is None:
        return batch
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(own.device), batch)


def group_infos(model: nn.Module, graph: Graph, seed: int = 0) -> dict[str, GroupInfo]:
    """What a criterion may know of each group before any data."""
    tensors = model_tensors(model)
    out = {}
    for number, group in enumerate(graph.groups):
        weights = []
        for member in group.writes or group.axes:
            axis = _member_axis(graph, member.tensor, member.dim)
            indices, units = graph.axis_incidence(axis)
            mine = graph.group_of[units] == number
            lines = _lines(tensors[member.tensor].detach(), member.dim, len(indices_of(axis)))
            local = graph.index_of[units[mine]]
            order = np.argsort(local, kind="stable")
            if len(np.unique(local)) == group.size:
                rows = lines[torch.from_numpy(indices[mine][order]).to(lines.device)]
                weights.append(rows.reshape(group.size, -1))
        out[group.name] = GroupInfo(group.name, group.size, tuple(weights), seed)
    return out


def _member_axis(graph: Graph, tensor: str, dim: int) -> Any:
    return graph.analysis.tensor_axes(tensor, graph.program.tensors[tensor])[dim]


def indices_of(axis: Any) -> range:
    """The indices of an axis."""
    return range(int(np.prod([leaf.size for leaf in leaves(axis)])))


def _lines(tensor: Tensor, dim: int, size: int) -> Tensor:
    """(size, elements): what each index of an axis holds; per block for a grouped kernel."""
    if tensor.shape[dim] == size:
        return tensor.movedim(dim, 0).reshape(size, -1)
    blocks = size // tensor.shape[dim]
    runs = tensor.unflatten(0, (blocks, -1)).movedim(dim + 1, 1)
    return runs.reshape(size, -1)
