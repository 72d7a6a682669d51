"""A plan: which units go, and every slice and integer that goes with them, as plain data."""

from __future__ import annotations

import json
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from .atomic import parse_json, read_text, write_text
from .errors import FileError, MendError, PlanError
from .selection import lost
from .slices import Slices, complement
from .surgery.configure import configure
from .surgery.describe import Axes
from .surgery.edits import Edit
from .surgery.fold import Scale
from .surgery.mend import Mended, mend
from .surgery.restate import Restated
from .trace import static
from .trace.labels import Axis
from .trace.record import modules_of, tensor_of

if TYPE_CHECKING:
    from .groups import Graph, Group, Selection

T = TypeVar("T", bound="Shaped")


class Shaped(Protocol):
    """Whatever has a shape: a tensor, or a variable of Keras."""

    @property
    def shape(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Plan:
    """Plain data that turns one model into a smaller one; see `Graph.plan`.

    Attributes:
        groups: group -> indices of the units that go.
        sizes: group -> how many units it has before the cut.
        tensors: tensor path -> the slices that it loses.
        attributes: 'module.attribute' or 'module.attribute[i]' -> (before, after).
        exact: whether the law of the cut holds without a statistic being retaken.
        scales: rows of weights that are multiplied by a factor, to make up for a number that the
            code computes from a size, such as the 1/√d of attention.
        edits: numbers in a module's code, rewritten for that module.
        restated: sizes given to single calls in a module's code, which computes others.
        replay: the model cannot be mended for this cut; `apply` gives a static program.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> plan = sc.trace(net, torch.zeros(1, 4)).plan({"0": [1, 5]})
    >>> {name: slices.removed for name, slices in plan.tensors.items()}
    {'0.weight': {0: [[1, 5]]}, '0.bias': {0: [[1, 5]]}, '1.weight': {1: [[1, 5]]}}
    >>> plan.attributes
    {'0.out_features': (8, 6), '1.in_features': (8, 6)}
    """

    groups: dict[str, list[int]]
    sizes: dict[str, int]
    tensors: dict[str, Slices]
    attributes: dict[str, tuple[int, int]] = field(default_factory=dict)
    exact: bool = True
    scales: tuple[Scale, ...] = ()
    restated: tuple[Restated, ...] = ()
    edits: tuple[Edit, ...] = ()
    replay: bool = False

    def __len__(self) -> int:
        """How many units go."""
        return sum(map(len, self.groups.values()))

    def check(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Refuse a model that this plan was not made for.

        Returns:
            The tensors that the plan cuts, by path.

        Raises:
            PlanError: a tensor is missing or of another shape, or an attribute differs.
        """
        return self.tensors_in(modules_of(model))

    def tensors_in(self, modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
        """The same, with the modules of the model by path."""
        return self.find(lambda name: tensor_of(modules, name))

    def find(self, tensor_called: Callable[[str], T | None]) -> dict[str, T]:
        """The same, with a way to find a tensor, or a variable, by its name."""
        own: dict[str, T] = {}
        for name, slices in self.tensors.items():
            tensor = tensor_called(name)
            if tensor is None:
                raise PlanError(
                    f"the plan does not fit this model: it has no tensor {name!r}; "
                    "make the plan from a trace of this very model"
                )
            if tuple(tensor.shape) != slices.shape:
                raise PlanError(
                    f"the plan does not fit this model: {name!r} has shape "
                    f"{tuple(tensor.shape)} where the plan expects {slices.shape}"
                    + ("; it has been cut already" if _cut_already(tensor, slices) else "")
                )
            own[name] = tensor
        return own

    def changed_sizes(self) -> set[tuple[int, int]]:
        """(before, after) of every axis, attribute and group that the plan changes."""
        axes = {own.axis(dim) for own in self.tensors.values() for dim in own.removed}
        groups = {(n, n - len(self.groups[name])) for name, n in self.sizes.items()}
        return axes | groups | set(self.attributes.values())

    def then(self, other: Plan, graph: Graph | None = None) -> Plan:
        """This plan followed by one made for its result, as one plan for the original model.

        Args:
            other: made for what this one gives.
            graph: of the original model. What is left of a group may go by another name, for a
                group takes the name of its module if no other has it; with this graph the units
                are found by their slices, and without it such plans are refused.

        Raises:
            PlanError: the other plan was not made for what this one gives, or one of them is served
                by replay.

        >>> import torch, secateurs as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> first = sc.trace(net, torch.zeros(1, 4)).plan({"0": [0, 1]})
        >>> second = sc.trace(sc.apply(net, first), torch.zeros(1, 4)).plan({"0": [0]})
        >>> first.then(second).groups
        {'0': [0, 1, 2]}
        """
        if self.replay or other.replay:
            raise PlanError(
                "a plan that is served by replay stands alone: choose the units of both in one plan"
            )
        tensors = dict(self.tensors)
        for path, slices in other.tensors.items():
            before = tensors.get(path)
            if before is not None and before.new_shape != slices.shape:
                raise PlanError(f"the second plan does not fit the result of the first at {path!r}")
            tensors[path] = slices if before is None else before.then(slices)
        groups, sizes = self._named(other) if graph is None else _found(graph, tensors)
        attributes = dict(self.attributes)
        restated = {(r.module, i): r for i, r in _numbered(self.restated)}
        for attribute, (old, new) in other.attributes.items():
            path, _, item = attribute.rpartition(".")
            mine = (path, int(item[7:-1])) if item.startswith("stated[") else None
            if mine in restated:
                restated[mine] = replace(restated[mine], new=new)
                continue
            attributes[attribute] = (attributes.get(attribute, (old, new))[0], new)
        edits = {edit.key: edit for edit in (*self.edits, *other.edits)}
        scales = [*self.scales, *(self._before(scale) for scale in other.scales)]
        return Plan(
            groups,
            sizes,
            tensors,
            attributes,
            self.exact and other.exact,
            tuple(scales),
            (*restated.values(), *other.restated),
            tuple(edits.values()),
        )

    def _named(self, other: Plan) -> tuple[dict[str, list[int]], dict[str, int]]:
        """The groups of both plans, by their names, and their sizes."""
        groups = {name: list(indices) for name, indices in self.groups.items()}
        sizes = {**other.sizes, **self.sizes}
        for name, indices in other.groups.items():
            gone = groups.get(name, [])
            kept = complement(gone, sizes[name])
            if len(kept) != other.sizes[name]:
                raise PlanError(
                    f"group {name!r} has {len(kept)} units left, not {other.sizes[name]}; "
                    "give the graph of the original model, which tells units by their slices"
                )
            groups[name] = sorted([*gone, *kept[indices].tolist()])
        return groups, sizes

    def _before(self, scale: Scale) -> Scale:
        """A scale of what this plan gives, as one of the original tensor."""
        slices = self.tensors.get(scale.tensor)
        if slices is None:
            return scale
        kept = slices.keep(scale.dim)[0][scale.indices].tolist()
        return replace(scale, indices=kept)

    # ------------------------------------------------------------------ plain data
    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data: dicts, lists, strings and integers."""
        return {
            "format": "secateurs.plan/1",
            "groups": self.groups,
            "sizes": self.sizes,
            "exact": self.exact,
            "tensors": {
                name: {
                    "shape": list(s.shape),
                    "removed": {str(dim): blocks for dim, blocks in s.removed.items()},
                }
                for name, s in self.tensors.items()
            },
            "attributes": {name: list(pair) for name, pair in self.attributes.items()},
            **({"scales": [s.to_list() for s in self.scales]} if self.scales else {}),
            **({"restated": [r.to_list() for r in self.restated]} if self.restated else {}),
            **({"edits": [e.to_list() for e in self.edits]} if self.edits else {}),
            **({"replay": True} if self.replay else {}),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """The plan that `to_dict` described.

        Raises:
            FileError: the data is not a plan.
        """
        from .plan_schema import parse

        parsed = parse(data)
        plan = cls(
            parsed.groups,
            parsed.sizes,
            {
                name: Slices(tuple(entry.shape), {int(d): b for d, b in entry.removed.items()})
                for name, entry in parsed.tensors.items()
            },
            parsed.attributes,
            parsed.exact,
            tuple(Scale(*item) for item in parsed.scales),
            tuple(Restated(*item) for item in parsed.restated),
            tuple(Edit(*item) for item in parsed.edits),
            parsed.replay,
        )
        plan._check_indices()
        return plan

    def _check_indices(self) -> None:
        for name, slices in self.tensors.items():
            for dim, blocks in slices.removed.items():
                size = slices.shape[dim] if 0 <= dim < len(slices.shape) else -1
                good = bool(blocks) and all(
                    len(set(block)) == len(block) == len(blocks[0]) < size
                    and all(0 <= i < size for i in block)
                    for block in blocks
                )
                if not good or (len(blocks) > 1 and slices.shape[0] % len(blocks)):
                    raise FileError(f"the plan is malformed: bad indices for {name!r} dim {dim}")
        for scale in self.scales:
            own = self.tensors.get(scale.tensor)
            size = own.shape[scale.dim] if own and scale.dim < len(own.shape) else -1
            if not all(0 <= i < size for i in scale.indices):
                raise FileError(f"the plan is malformed: bad rows to scale of {scale.tensor!r}")
        most = sum(s.axis(d)[0] for s in self.tensors.values() for d in s.removed)  # units of all
        for name, indices in self.groups.items():
            size = self.sizes.get(name, -1)
            if size > most:
                raise FileError(f"the plan is malformed: no axes hold {size} units of {name!r}")
            if len(set(indices)) != len(indices) or not all(0 <= i < size for i in indices):
                raise FileError(f"the plan is malformed: bad units for group {name!r}")
        if bool(self.groups) != bool(self.tensors):
            raise FileError("the plan is malformed: its groups and its tensors do not agree")

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back.

        >>> import torch, secateurs as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> plan = sc.trace(net, torch.zeros(1, 4)).plan({"0": [1, 5]})
        >>> sc.Plan.from_json(plan.to_json()) == plan
        True
        """
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            FileError: the text is not a plan.
        """
        return cls.from_dict(parse_json(text, "the plan"))

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written; the old one stays.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan.

        Raises:
            FileError: the file is missing, truncated or not a plan.
        """
        return cls.from_json(read_text(path))


def _numbered(restated: Iterable[Restated]) -> Iterator[tuple[int, Restated]]:
    """Each with its number among those of the same module."""
    seen: Counter[str] = Counter()
    for one in restated:
        yield seen[one.module], one
        seen[one.module] += 1


def _cut_already(tensor: Shaped, slices: Slices) -> bool:
    return math.prod(tensor.shape) < math.prod(slices.shape)


# ---------------------------------------------------------------------- making plans
def make_plan(graph: Graph, units: Mapping[str, Iterable[int]]) -> Plan:
    """See `Graph.plan`."""
    if not isinstance(units, Mapping):
        raise PlanError(f"units must be a dict of group -> indices, not {type(units).__name__}")
    chosen: dict[str, list[int]] = {}
    for name, indices in units.items():
        if not isinstance(name, str):
            raise PlanError(f"a group is named by a string, not {name!r}")
        if not isinstance(indices, Iterable):
            raise PlanError(f"the units of group {name!r} must be a list, not {indices!r}")
        group = graph[name]
        chosen[group.name] = [*chosen.get(group.name, []), *_as_indices(group, indices)]
    chosen = {name: sorted(indices) for name, indices in chosen.items() if indices}
    for name, indices in chosen.items():
        _check_units(graph[name], indices)
    selection = graph.select(chosen)
    _check_whole(graph, chosen, selection)
    _check_axes(graph, selection)
    slices = slices_of(graph, selection)
    shapes = {(name, dim): own.axis(dim) for name, own in slices.items() for dim in own.removed}
    sizes = {name: graph[name].size for name in chosen}
    exact = all(graph[name].exact for name in chosen)
    try:
        mended = _mended(graph, selection, chosen, shapes)
    except MendError as error:
        if not graph.replay:
            raise MendError(static.unmended(graph.program, str(error))) from error
        _check_replay(graph, selection, slices)
        return Plan(chosen, sizes, slices, exact=exact, replay=True)
    for scale in mended.scales:
        whole = Slices(graph.program.parameters[scale.tensor], {})
        slices.setdefault(scale.tensor, whole)
    return Plan(
        chosen,
        sizes,
        slices,
        {str(attribute): pair for attribute, pair in mended.attributes.items()},
        exact,
        tuple(mended.scales),
        tuple(mended.restated),
        tuple(mended.edits),
    )


def _mended(graph: Graph, selection: Selection, names: Iterable[str], axes: Axes) -> Mended:
    """What else changes in the model; MendError where the trace found that nothing will do."""
    for name in names:
        if why := graph[name].replayed:
            raise MendError(why)
    return (configure if graph.rebuilt else mend)(graph.analysis, selection, axes)


def _check_replay(graph: Graph, selection: Selection, slices: Mapping[str, Slices]) -> None:
    """Refuse a cut that the recorded program cannot serve either."""
    program = graph.program
    shapes = {
        name: slices[name].new_shape if name in slices else program.values[ident].shape
        for name, ident in program.tensors.items()
    }
    static.check(graph.analysis, selection, static.shrunk(graph.analysis, selection), shapes)


def _as_indices(group: Group, indices: Iterable[int]) -> list[int]:
    if isinstance(indices, (torch.Tensor, np.ndarray)):
        indices = indices.tolist()
    try:
        out = list(indices)
        kinds = set(map(type, out))
        if bool in kinds:
            raise TypeError("a mask is given; its indices are mask.nonzero()")
        if kinds - {int}:
            out = [operator.index(index) for index in out]
    except TypeError as error:
        raise PlanError(f"a unit of group {group.name!r} is not an integer: {error}") from None
    for number in out and (min(out), max(out)):
        if not 0 <= number < group.size:
            raise PlanError(
                f"unit {number} of group {group.name!r} is out of range: "
                f"it has {group.size} units, 0 to {group.size - 1}"
            )
    return out


def _check_units(group: Group, indices: list[int]) -> None:
    twice = sorted({i for i in indices if indices.count(i) > 1}) if _repeats(indices) else []
    if twice:
        raise PlanError(f"units {twice} of group {group.name!r} are named twice")
    if (left := group.size - len(indices)) % group.multiple:
        raise PlanError(
            f"{left} units of group {group.name!r} would stay, and a kernel that reads them takes "
            f"multiples of {group.multiple} only"
        )
    if group.balance is not None:
        _, block = np.unique(group.balance, return_inverse=True)
        counts = np.bincount(block[indices], minlength=block.max() + 1)
        low, high = counts.min(), counts.max()
        if low < high:
            raise PlanError(
                f"group {group.name!r} is balanced: its {len(counts)} blocks must lose equally "
                f"many units, but lose between {low} and {high}; see graph[{group.name!r}].balance"
            )


def _repeats(indices: list[int]) -> bool:
    return len(set(indices)) < len(indices)


def _check_whole(graph: Graph, chosen: Mapping[str, list[int]], selection: Selection) -> None:
    """A group may go whole only where a branch goes with it, and its readers keep something.

    PyTorch layers are cut in place, and the code that calls them stays.
    """
    axes = {(name, dim): axis for name, dim, axis in graph.slots}
    for name, indices in chosen.items():
        group = graph[name]
        if len(indices) == group.size and (
            not graph.rebuilt
            or any(selection.removed(axes[m.tensor, m.dim]).all() for m in group.reads)
        ):
            raise PlanError(
                f"all {group.size} units of group {name!r} would go, and nothing would pass; "
                "leave at least one"
            )


def _check_axes(graph: Graph, selection: Selection) -> None:
    """No axis anywhere may be emptied, and balanced axes must lose equally from each block."""
    for vector in () if graph.rebuilt else graph.analysis.labels.vectors:
        if vector.size and vector.labels is not None and selection.removed((vector,)).all():
            raise PlanError("the plan would empty an axis somewhere in the network; leave a unit")
    for axis, least, reason in graph.analysis.labels.least:
        if (left := selection.size(axis)) < least:
            raise PlanError(f"the plan would leave {left} units where {reason} needs {least}")
    axes = graph.analysis.axes
    for pair in graph.program.apart:
        sizes = {selection.size(axes[value][-1]) for value in pair if value in axes}
        if len(sizes) == 1:
            raise PlanError(
                f"the plan would leave {sizes.pop()} units of a state and of what it is projected "
                "to, and PyTorch would take the projection for none; leave fewer of these"
            )
    for labels, reason in graph.analysis.labels.balanced:
        lost = selection.gone(labels).sum(axis=1)
        if (lost != lost[0]).any():
            raise PlanError(
                f"the plan is unbalanced: {reason} lose between {lost.min()} and {lost.max()}"
            )


def slices_of(graph: Graph, selection: Selection) -> dict[str, Slices]:
    """What every tensor loses with these units."""
    values, tensors = graph.program.values, graph.program.tensors
    lists: dict[tuple[int, Axis], list[list[int]]] = {}  # most axes are shared by several tensors
    removed: dict[str, dict[int, list[list[int]]]] = {}
    for name, dim, axis in graph.slots:
        size = values[tensors[name]].shape[dim]
        gone = lists.get((size, axis))
        if gone is None:
            lines = selection.removed(axis).reshape(-1, size)
            gone = [np.flatnonzero(line).tolist() for line in lines] if lines.any() else []
            lists[size, axis] = gone
        if gone:
            removed.setdefault(name, {})[dim] = gone
    return {name: Slices(values[tensors[name]].shape, dims) for name, dims in removed.items()}


def _found(
    graph: Graph, tensors: Mapping[str, Slices]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The units that go with these slices, by their groups, and the sizes of those.

    Raises:
        PlanError: the graph is of another model.
    """
    known = graph.program.parameters
    odd = [n for n, own in tensors.items() if known.get(n, own.shape) != own.shape]
    if odd:
        raise PlanError(f"the graph is not of the model that the first plan is for, at {odd[0]!r}")
    groups = lost(graph, tensors)
    return groups, {name: graph[name].size for name in groups}


def random_plan(graph: Graph, fraction: float, seed: int, *, exact_only: bool) -> Plan:
    """See `Graph.random_plan`."""
    if not 0 <= fraction < 1:
        raise PlanError(f"fraction must be at least 0 and below 1, not {fraction}")
    rng = np.random.default_rng(seed)
    for attempt in range(10):
        units: dict[str, list[int]] = {}
        for group in graph.groups:
            if exact_only and not group.exact:
                continue
            blocks = group.blocks()
            count = group.allowed(int(fraction * group.size / len(blocks)))
            chosen = [i for b in blocks for i in rng.choice(b, count, replace=False).tolist()]
            units[group.name] = sorted(chosen)
        try:
            return make_plan(graph, units)
        except (PlanError, MendError):
            if attempt == 9:
                raise
    raise PlanError("no valid random plan was found")
