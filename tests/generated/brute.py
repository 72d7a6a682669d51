"""What can be cut from a small network, found by trying every subset of its slices.

A *slice* is one index of one axis of a parameter or buffer. A set of slices is *clean* if

1. the module runs on the same inputs when its tensors are replaced by those without the slices, and
   gives outputs of the same shapes; no axis is emptied, none of its code is changed;
2. it then gives the same as the whole module in which the slices are set to zero.

Nothing here knows of operations, labels or gates. Where a unit is read by weights alone, setting its
slices to zero sets those that read it to zero: that is the network gated at its reads. So a set is
clean exactly if its deletion keeps the law of the cut. Where a set is cut from networks with
statistics over an axis, the two differ: it is not clean, and such cuts are left to the other laws.

Whether (1) holds depends on how many indices each axis loses, and not on which: one try for each
vector of counts, and then every set with counts that ran. That leaves no subset out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from tests.support import relative_error
from torch import Tensor, nn
from torch.func import functional_call

import secateurs as sc
from secateurs.errors import MendError, PlanError
from secateurs.groups import Graph
from secateurs.plan import Plan

AxisOf: TypeAlias = tuple[str, int]
Cut: TypeAlias = frozenset[tuple[str, int, int]]  # (tensor, dim, index)

SLICES = 16  # at most, in a network that is searched
CLOSE = 1e-9


def axes(model: nn.Module) -> dict[AxisOf, int]:
    """The size of every axis of a tensor that could lose an index."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        (name, dim): size
        for name, tensor in tensors.items()
        for dim, size in enumerate(tensor.shape)
        if size > 1
    }


class Search:
    """Every clean set of slices of a model."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]):
        self.model, self.inputs = model, inputs
        self.axes = axes(model)
        self.tensors = {name: t.detach() for name, t in model.state_dict().items()}
        self.shapes = [out.shape for out in self._run(self.tensors) or ()]

    def clean(self) -> set[Cut]:
        """All of them, the empty one aside."""
        found = set()
        for counts in itertools.product(*map(range, self.axes.values())):
            if any(counts) and self._fits(counts):
                found.update(cut for cut in self._sets(counts) if self.keeps(cut))
        return found

    def keeps(self, cut: Cut) -> bool:
        """Whether deleting a set is the same as setting it to zero."""
        small, zeroed = dict(self.tensors), {n: t.clone() for n, t in self.tensors.items()}
        for (name, dim), gone in by_axis(cut).items():
            kept = torch.tensor([i for i in range(self.axes[name, dim]) if i not in gone])
            small[name] = small[name].index_select(dim, kept)
            zeroed[name].index_fill_(dim, torch.tensor(gone), 0)
        given, wanted = self._run(small), self._run(zeroed)
        return given is not None and wanted is not None and relative_error(wanted, given) <= CLOSE

    def _fits(self, counts: tuple[int, ...]) -> bool:
        """Whether the module runs when its axes lose so many indices each."""
        small = dict(self.tensors)
        for (name, dim), count in zip(self.axes, counts, strict=True):
            small[name] = small[name].narrow(dim, 0, small[name].shape[dim] - count)
        given = self._run(small)
        return given is not None and [out.shape for out in given] == self.shapes

    def _sets(self, counts: tuple[int, ...]) -> Iterator[Cut]:
        choices = [
            [[(*axis, i) for i in gone] for gone in itertools.combinations(range(size), count)]
            for (axis, size), count in zip(self.axes.items(), counts, strict=True)
        ]
        for parts in itertools.product(*choices):
            yield frozenset(itertools.chain(*parts))

    def _run(self, tensors: Mapping[str, Tensor]) -> list[Tensor] | None:
        """The outputs with these tensors in place of the module's own; None if it cannot run."""
        try:
            with torch.no_grad():
                out = functional_call(self.model, dict(tensors), self.inputs)
        except (RuntimeError, ValueError, IndexError):
            return None
        return [out] if isinstance(out, Tensor) else list(out)


def by_axis(cut: Cut) -> dict[AxisOf, list[int]]:
    out: dict[AxisOf, list[int]] = {}
    for name, dim, index in sorted(cut):
        out.setdefault((name, dim), []).append(index)
    return out


def offered(graph: Graph, *, exact_only: bool) -> dict[Cut, Plan]:
    """The slices of every plan that a graph accepts: each subset of its units is tried."""
    units = [(g.name, i) for g in graph if g.exact or not exact_only for i in range(g.size)]
    out = {}
    for size in range(1, len(units) + 1):
        for chosen in itertools.combinations(units, size):
            plan: dict[str, list[int]] = {}
            for name, unit in chosen:
                plan.setdefault(name, []).append(unit)
            try:
                made = graph.plan(plan)
            except (PlanError, MendError):
                continue
            out[slices(made)] = made
    return out


def slices(plan: Plan) -> Cut:
    """What a plan deletes; networks here have no kernel that is cut block by block."""
    return frozenset(
        (name, dim, index)
        for name, own in plan.tensors.items()
        for dim, (block,) in own.removed.items()
        for index in block
    )


def compare(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[set[Cut], set[Cut]]:
    """(clean sets that no plan makes, slices of exact plans that are not clean): both are empty.

    The first are non-empty where a group is coarser than need be, or an axis is frozen that could
    be cut; the second where a coupling is missed.
    """
    clean = Search(model, inputs).clean()
    graph = sc.trace(model, inputs)
    every, exact = (set(offered(graph, exact_only=only)) for only in (False, True))
    return clean - every, exact - clean
