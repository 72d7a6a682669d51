"""What can be cut from a small network, found by trying every subset of its slices.

A *slice* is one index of one axis of a parameter or buffer. A set of slices is *clean* if

1. the module runs on the same inputs when its tensors are replaced by those without the slices, and
   gives outputs of the same shapes; no axis is emptied, none of its code is changed;
2. it then gives the same as the whole module in which the slices are set to zero.

Nothing here knows of operations, labels or gates. Where a unit is read by weights alone, setting
its slices to zero sets those that read it to zero: that is the network gated at its reads. So a set
is clean exactly if its deletion keeps the law of the cut. Where a statistic is taken over the axis,
the two differ: the set is not clean, and such cuts are left to the other laws.

Whether (1) holds depends on how many indices each axis loses, and not on which: one try for each
vector of counts, and then every set with counts that ran. That leaves no subset out.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

import torch
from tests.support import relative_error
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.groups import Graph, Group
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
        self.axes = axes(model)
        self.tensors = {name: t.detach() for name, t in model.state_dict().items()}
        self._model, self._inputs = copy.deepcopy(model), inputs
        self._own = self._model.state_dict(keep_vars=True)
        self.shapes = [out.shape for out in self._run(self.tensors) or ()]

    def clean(self) -> set[Cut]:
        """All of them, the empty one aside."""
        found = set()
        for counts in self.counts():
            found.update(cut for cut in self._sets(counts) if self.keeps(cut))
        return found

    def counts(self) -> list[tuple[int, ...]]:
        """How many indices the axes may lose, so that the module runs."""
        every = itertools.product(*map(range, self.axes.values()))
        return [counts for counts in every if any(counts) and self._fits(counts)]

    def tries(self) -> int:
        """How many sets there are to try."""
        sizes = self.axes.values()
        return sum(math.prod(map(math.comb, sizes, counts)) for counts in self.counts())

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
        for name, own in self._own.items():
            own.data = tensors[name]
        try:
            with torch.no_grad():
                out = self._model(*self._inputs)
        except (RuntimeError, ValueError, IndexError):
            return None
        return pytree.tree_leaves(out)


def by_axis(cut: Cut) -> dict[AxisOf, list[int]]:
    out: dict[AxisOf, list[int]] = {}
    for name, dim, index in sorted(cut):
        out.setdefault((name, dim), []).append(index)
    return out


def minimal(cuts: Collection[Cut]) -> list[Cut]:
    """Those that are no union of others."""
    out: list[Cut] = []
    for cut in sorted(cuts, key=len):
        if frozenset().union(*(part for part in out if part < cut)) != cut:
            out.append(cut)
    return out


# ---------------------------------------------------------------------- what a graph offers
def slices(plan: Plan) -> Cut:
    """What a plan deletes; networks here have no kernel that is cut block by block."""
    return frozenset(
        (name, dim, index)
        for name, own in plan.tensors.items()
        for dim, (block,) in own.removed.items()
        for index in block
    )


def smallest(group: Group) -> Iterator[list[int]]:
    """The smallest plans of a group: one unit, or one of each block."""
    blocks = [block.tolist() for block in group.blocks()]
    return map(list, itertools.product(*blocks)) if group.size > len(blocks) else iter(())


def faults(graph: Graph, clean: Collection[Cut]) -> list[str]:
    """Where a graph and the search differ.

    A clean set that is no union of what the graph's smallest plans delete: a group is coarser than
    need be, or an axis is frozen that could be cut. A smallest plan of an exact group that is not
    clean: a coupling is missed. Plans that rewrite a number in the code are left out of the second.
    """
    plans = [graph.plan({group.name: units}) for group in graph for units in smallest(group)]
    made = [slices(plan) for plan in plans]
    out = []
    for cut in clean:
        whole = frozenset().union(*(part for part in made if part <= cut))
        if whole != cut:
            out.append(f"coarse: {by_axis(cut)} can go, and {by_axis(cut - whole)} is not offered")
    for plan, part in zip(plans, made, strict=True):
        if plan.exact and not plan.edits and part not in clean:
            out.append(f"missed: {by_axis(part)} cannot go alone")
    return out
