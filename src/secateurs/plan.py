"""A plan: which units go, and every slice and integer that goes with them, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from .atomic import parse_json, read_text, write_text
from .errors import PlanError
from .slices import Slices
from .surgery.edits import Edit
from .surgery.fold import Scale
from .surgery.restate import Restated
from .trace.model import modules_of, tensor_of

if TYPE_CHECKING:
    from .groups import Graph

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
        attributes: 'module.attribute' or 'module.attribute[item]' -> (before, after).
        exact: whether the law of the cut holds without a statistic being retaken.
        scales: rows of weights that are multiplied by a factor, to make up for a number that the
            code computes from a size, such as the 1/√d of attention.
        edits: numbers in a module's code, rewritten for that module; in JSON [module, method, text
            of the call, which of those that read so, item of what it is given, the number, helper].
        restated: sizes given to single calls in a module's code, which computes others; in JSON
            [module, function, which call of it, which of its sizes, the size, which of the sizes
            that the module states].
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
                by replay, or slices go that belong to no unit of the original model.

        >>> import torch, secateurs as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> first = sc.trace(net, torch.zeros(1, 4)).plan({"0": [0, 1]})
        >>> second = sc.trace(sc.apply(net, first), torch.zeros(1, 4)).plan({"0": [0]})
        >>> first.then(second).groups
        {'0': [0, 1, 2]}
        """
        from .composing import compose

        return compose(self, other, graph)

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
        from .plan_schema import read

        return read(data)

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


def _cut_already(tensor: Shaped, slices: Slices) -> bool:
    return math.prod(tensor.shape) < math.prod(slices.shape)
