"""A set of units that go, seen along any axis of a program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from .trace.labels import Axis, Bools, Factor, Ints, axis_size, leaves

if TYPE_CHECKING:
    from .groups import Graph
    from .slices import Slices


class Selection:
    """A set of units to delete, as masks over any axis of the program."""

    def __init__(self, graph: Graph, units: Iterable[int]):
        self.graph = graph
        resolved = graph.resolved
        chosen = np.asarray(units if isinstance(units, np.ndarray) else list(units), dtype=np.int64)
        self.count = len(chosen)
        gone = np.zeros(len(resolved.root), dtype=bool)
        gone[graph.classes[chosen]] = True
        product, left, right = resolved.triples
        while (new := (gone[left] | gone[right]) & ~gone[product]).any():
            gone[product[new]] = True
        self._gone: Bools = gone  # by class
        self._masks: dict[int, Bools] = {}

    def _removed(self, factor: Factor) -> Bools:
        mask = self._masks.get(id(factor))
        if mask is None:
            mask = self._fewer(factor) if factor.labels is None else self.gone(factor.labels)
            self._masks[id(factor)] = mask
        return mask

    def _fewer(self, factor: Factor) -> Bools:
        """Which indices go of a factor without labels: of a repetition, as many as copies do."""
        mask = np.zeros(factor.size, dtype=bool)
        if factor.repeats and factor.frozen is None:
            own = self.removed((factor.repeats[0].own,)).reshape(-1, factor.size)
            mask[factor.size - int(own[0].sum()) :] = True
        return mask

    def gone(self, labels: Ints) -> Bools:
        """Which of these labels go, in the same shape."""
        mask: Bools = self._gone[self.graph.resolved.root[labels]]
        return mask

    def removed(self, axis: Axis) -> Bools:
        """Which indices of an axis go, (size,)."""
        parts = leaves(axis)
        if not parts:
            return np.zeros(1, dtype=bool)
        mask = self._removed(parts[0])
        for part in parts[1:]:
            mask = (mask[:, None] | self._removed(part)[None, :]).ravel()
        return mask

    def size(self, axis: Axis) -> int:
        """How many indices of an axis stay."""
        out = 1
        for part in leaves(axis):
            out *= part.size - int(np.count_nonzero(self._removed(part)))
        return out


def lost(graph: Graph, tensors: Mapping[str, Slices]) -> dict[str, list[int]]:
    """Group -> the units of it that are gone where tensors have lost these slices."""
    gone = np.ones(len(graph.classes), dtype=bool)
    for name, dim, axis in graph.slots:
        positions, units = graph.axis_incidence(axis)
        gone[units[~_taken(tensors, name, dim, axis)[positions]]] = False
    out = {group.name: np.flatnonzero(gone[group.units]).tolist() for group in graph.groups}
    return {name: indices for name, indices in out.items() if indices}


def uncovered(graph: Graph, tensors: Mapping[str, Slices], selection: Selection) -> list[str]:
    """The axes, as 'tensor[dim]', along which more is gone than goes with these units."""
    left = {(name, dim) for name, slices in tensors.items() for dim in slices.removed}
    more = []
    for name, dim, axis in graph.slots:
        if (name, dim) in left:
            left.remove((name, dim))
            if (_taken(tensors, name, dim, axis) & ~selection.removed(axis)).any():
                more.append(f"{name}[{dim}]")
    return more + [f"{name}[{dim}]" for name, dim in sorted(left)]


def _taken(tensors: Mapping[str, Slices], name: str, dim: int, axis: Axis) -> Bools:
    """Which indices of an axis of a tensor, (size,), are among the slices that it loses."""
    slices = tensors.get(name)
    removed = slices.removed.get(dim) if slices else None
    if slices is None or not removed:
        return np.zeros(axis_size(axis), dtype=bool)
    mask = np.zeros((len(removed), slices.shape[dim]), dtype=bool)
    for line, indices in zip(mask, removed, strict=True):
        line[indices] = True
    return np.resize(mask, axis_size(axis))
