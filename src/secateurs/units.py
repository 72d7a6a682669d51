"""The units of a traced network: what can go by itself, and which slices go with it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .trace.analyse import Analysis
from .trace.labels import Axis, Factor, Ints, axis_size, find, leaves
from .trace.resolve import Resolved, resolve

_NONE: Ints = np.zeros(0, dtype=np.int64)


class Units:
    """Every class of labels that can go by itself and holds a slice of the model, numbered.

    Attributes:
        slots: (tensor, dim, axis in its leaves) of every axis of a tensor.
        resolved: the classes.
        classes: (units,) the class of each unit.
        unit_of: class -> its unit, or -1.
    """

    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.slots = list(_slots(analysis))
        self.resolved: Resolved = resolve(analysis.labels)
        self.classes: Ints = _NONE
        self.unit_of: Ints = np.full(len(self.resolved.root), -1)
        self._incidence: dict[int, tuple[Ints, Ints]] = {}
        self._families: dict[Axis, list[tuple[Ints, int]]] = {}
        self._number()

    def _number(self) -> None:
        """Every class that can go by itself and holds a slice of the model is a unit."""
        resolved = self.resolved
        distinct = {id(part): part.labels for _, _, parts in self.slots for part in parts}
        labels = [own for own in distinct.values() if own is not None]
        held = np.zeros(len(resolved.root), dtype=bool)
        held[resolved.root[np.concatenate(labels or [_NONE])]] = True
        product, left, right = resolved.triples
        while (new := held[product] & ~(held[left] & held[right])).any():
            held[left[new]] = held[right[new]] = True
        held[product] = False
        self.classes = np.flatnonzero(held & ~resolved.frozen)
        self.unit_of[self.classes] = np.arange(len(self.classes))

    def freeze(self, units: Ints, reason: str) -> None:
        """These units cannot go after all."""
        classes = self.classes[units]
        self.resolved.frozen[classes] = True
        self.resolved.reason_of[classes] = len(self.resolved.reasons)
        self.resolved.reasons.append(reason)
        self.unit_of[classes] = -1
        self._incidence.clear()

    def incidence(self, factor: Factor) -> tuple[Ints, Ints]:
        """Which positions of a leaf factor go with which units: (positions, units)."""
        factor = find(factor)
        known = self._incidence.get(id(factor))
        if known is None:
            known = (_NONE, _NONE) if factor.labels is None else self.locate(factor.labels)
            self._incidence[id(factor)] = known
        return known

    def locate(self, labels: Ints) -> tuple[Ints, Ints]:
        """Which positions of a label vector go with which units."""
        classes = self.resolved.root[labels]
        units = self.unit_of[classes]
        at = np.flatnonzero(units >= 0)
        extra = [
            (position, unit)
            for position in np.flatnonzero(units < 0).tolist()
            for unit in self._units_under(int(classes[position]))
        ]
        if not extra:
            return at, units[at]
        more = np.array(extra).T
        return np.r_[at, more[0]], np.r_[units[at], more[1]]

    def _units_under(self, cls: int) -> set[int]:
        if self.unit_of[cls] >= 0:
            return {int(self.unit_of[cls])}
        operands = self.resolved.products.get(cls, ())
        return set().union(*(self._units_under(operand) for operand in operands))

    def axis_incidence(self, axis: Axis) -> tuple[Ints, Ints]:
        """Which indices of an axis go with which units: (indices, units)."""
        parts = leaves(axis)
        if len(parts) == 1:
            return self.incidence(parts[0])
        shape = [part.size for part in parts]
        everywhere = np.arange(math.prod(shape)).reshape(shape)
        where, which = [], []
        for d, part in enumerate(parts):
            positions, units = self.incidence(part)
            if not len(positions):
                continue
            lines = np.moveaxis(everywhere, d, 0)[positions].reshape(len(positions), -1)
            where.append(lines.ravel())
            which.append(np.repeat(units, lines.shape[1]))
        return np.concatenate(where or [_NONE]), np.concatenate(which or [_NONE])

    def families(self, parts: Axis) -> list[tuple[Ints, int]]:
        """(units in order of position, slices per unit) for each family on an axis."""
        if parts in self._families:
            return self._families[parts]
        out = self._families[parts] = []
        total = axis_size(parts)
        for part in parts:
            positions, units = self.incidence(part)
            if not len(units):
                continue
            if len(units) == part.size and (units[1:] > units[:-1]).all():
                out.append((units, total // part.size))  # the common case: one unit an index
            else:
                distinct, first, counts = np.unique(units, return_index=True, return_counts=True)
                times = counts * (total // part.size)
                order = np.argsort(positions[first], kind="stable")
                distinct, times = distinct[order], times[order]
                out += [(distinct[times == n], int(n)) for n in np.unique(times)]
        return out


def _slots(analysis: Analysis) -> Iterator[tuple[str, int, Axis]]:
    for name, ident in analysis.program.tensors.items():
        if not analysis.program.values[ident].shape:
            continue
        for dim, axis in enumerate(analysis.tensor_axes(name, ident)):
            if axis:
                parts = tuple(leaves(axis))
                yield name, dim, parts
                for factor in parts:
                    if factor.frozen is None:
                        analysis.labels.of(factor)
