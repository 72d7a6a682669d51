"""Labels, factors and axes: the algebra that says which slices of which tensors go together.

A *label* names a slice that can be deleted; equal labels go together. Label 0 means 'never goes'.
A *product* label goes when either of its two operands goes: index (i, j) of a flattened (A, B)
axis goes when row i goes or column j goes. A *factor* is a vector of labels, made only when
needed; an *axis* is a row-major tuple of factors, so that a view which splits or merges dimensions
only regroups factors. Axes of size one are empty tuples and can never be cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]


class Factor:
    """A run of indices along (a part of) an axis, with one label each once they are asked for."""

    __slots__ = ("alias", "batch", "copies", "frozen", "labels", "parts", "repeats", "size")

    def __init__(
        self,
        size: int,
        *,
        labels: Ints | None = None,
        frozen: str | None = None,
        batch: bool = False,
    ):
        self.size = size
        self.alias: Factor | None = None
        self.parts: tuple[Factor, Factor] | None = None
        self.frozen = frozen
        self.labels = labels
        self.batch = batch
        self.copies: Copies | None = None
        self.repeats: list[Copies] | None = None  # what was made along it, if it only repeats

    @property
    def virgin(self) -> bool:
        """Nothing is known of it yet."""
        return self.labels is None and self.parts is None and self.frozen is None


Axis: TypeAlias = tuple[Factor, ...]


class Copies(NamedTuple):
    """What a factor that repeats every index of another several times is made of.

    Copies of one index are alike, so any of them may go, as long as equally many of each stay.
    Label (i, r) goes when index i of `source` goes or label (i, r) of `own` does. `repeat` is the
    axis of the repetition, which loses as many indices as there are copies of any one index less;
    once it is told which of them go, by its labels, all lose the same copies.
    """

    source: Factor
    own: Factor
    repeat: Factor


def find(factor: Factor) -> Factor:
    """The factor that this one has become."""
    while factor.alias is not None:
        factor = factor.alias
    return factor


def leaves(axis: Iterable[Factor]) -> list[Factor]:
    """The finest known factors of an axis, outermost first."""
    out: list[Factor] = []
    for factor in axis:
        while factor.alias is not None:
            factor = factor.alias
        if factor.parts is None:
            out.append(factor)
        else:
            out.extend(leaves(factor.parts))
    return out


def axis_size(axis: Iterable[Factor]) -> int:
    return math.prod(factor.size for factor in axis)


def fresh_axis(size: int) -> Axis:
    """An axis of which nothing is known yet."""
    return () if size == 1 else (Factor(size),)


def repeated_axis(size: int) -> Axis:
    """An axis along which one index is repeated."""
    axis = fresh_axis(size)
    for factor in axis:
        factor.repeats = []
    return axis


def frozen_axis(size: int, reason: str, *, batch: bool = False) -> Axis:
    """An axis that must keep its size."""
    return () if size == 1 and not batch else (Factor(size, frozen=reason, batch=batch),)


class Labels:
    """The label space of one trace: fresh labels, and the relations found between them."""

    def __init__(self) -> None:
        self.count = 1
        self.edges: list[tuple[Ints, Ints]] = []
        self.products: list[tuple[Ints, Ints, Ints]] = []
        self.frozen: list[tuple[Ints, str]] = []
        self.inexact: list[tuple[Axis, str]] = []
        self.balanced: list[tuple[Ints, str]] = []
        self.multiples: list[tuple[Axis, int]] = []
        self.least: list[tuple[Axis, int, str]] = []
        self._flat: dict[tuple[int, ...], tuple[Factor, list[Factor]]] = {}
        self.vectors: list[Factor] = []

    # ------------------------------------------------------------------ labels of factors
    def fresh(self, n: int) -> Ints:
        self.count += n
        return np.arange(self.count - n, self.count)

    def of(self, factor: Factor) -> Ints:
        """The labels of one leaf factor, made on first use."""
        if factor.labels is None:
            if factor.frozen is not None:
                return np.zeros(factor.size, dtype=np.int64)
            factor.labels = self.fresh(factor.size)
            self.vectors.append(factor)
            for copies in factor.repeats or ():
                rows = axis_size((copies.source,))
                self.edge(self.of(find(copies.own)), np.tile(factor.labels, rows))
        return factor.labels

    def vector(self, labels: Ints) -> Factor:
        """A factor with these labels."""
        factor = Factor(len(labels), labels=labels)
        self.vectors.append(factor)
        return factor

    def flat(self, axis: Axis) -> Ints:
        """One label per index of an axis: products where it has several factors."""
        parts = leaves(axis)
        if not parts:
            return np.zeros(1, dtype=np.int64)
        if len(parts) == 1:
            return self.of(parts[0])
        key = tuple(id(part) for part in parts)
        if key not in self._flat:
            labels = self.of(parts[0])
            for part in parts[1:]:
                labels = self._product(labels, self.of(part))
            self._flat[key] = (self.vector(labels), parts)
        labels_or_none = self._flat[key][0].labels
        return labels_or_none if labels_or_none is not None else np.zeros(0, dtype=np.int64)

    def _product(self, left: Ints, right: Ints) -> Ints:
        rows, cols = (a.ravel() for a in np.broadcast_arrays(left[:, None], right[None, :]))
        out = np.where(rows == 0, cols, rows)
        both = (rows != 0) & (cols != 0)
        if both.any():
            out = out.copy()
            out[both] = self.fresh(int(both.sum()))
            self.products.append((out[both], rows[both], cols[both]))
        return out

    # ------------------------------------------------------------------ relations
    def split(self, factor: Factor, inner: int) -> tuple[Factor, Factor]:
        """Split a leaf factor into (outer, inner); its old labels become products."""
        if factor.copies is not None and factor.copies.repeat.size == inner:
            return self._split_copies(factor, factor.copies)
        self._label_repeats(factor)
        outer = factor.size // inner
        a = Factor(outer, frozen=factor.frozen, batch=factor.batch)
        b = Factor(inner, frozen=factor.frozen)
        if factor.frozen is None and factor.labels is not None:
            rows, cols = (
                x.ravel() for x in np.broadcast_arrays(self.of(a)[:, None], self.of(b)[None, :])
            )
            zero = factor.labels == 0
            self.products.append((factor.labels[~zero], rows[~zero], cols[~zero]))
            if zero.any():
                reason = "part of an axis that holds fixed slices"
                self.frozen += [(rows[zero], reason), (cols[zero], reason)]
        factor.parts = (a, b)
        return a, b

    def _split_copies(self, factor: Factor, copies: Copies) -> tuple[Factor, Factor]:
        """Split copies into their source and the repetition, which then goes as one."""
        source, _, repeat = copies
        for part in leaves((repeat,)):
            self.of(part)
        factor.parts = (source, repeat)
        return factor.parts

    def _label_repeats(self, factor: Factor) -> None:
        """Tell which indices go of a repetition that is no longer only one."""
        if factor.repeats:
            self.of(factor)
        factor.repeats = None

    def copies(self, source: Factor, repeat: Factor) -> Factor:
        """The factor that holds every index of `source` once for each index of `repeat`."""
        size = source.size * repeat.size
        own = self.vector(self.fresh(size))
        labels = self.fresh(size)
        self.products.append((labels, np.repeat(self.of(source), repeat.size), self.of(own)))
        self.balance(self.of(own), source.size, "copies of one index")
        factor = self.vector(labels)
        factor.copies = Copies(source, own, repeat)
        self._repeat(repeat, [factor.copies])
        return factor

    def _repeat(self, repeat: Factor, more: list[Copies]) -> None:
        """These copies too are made along a repetition: as many of them go as of the others."""
        made = repeat.repeats or []
        for one, other in zip(made[:1], more, strict=False):
            if find(one.own) is not find(other.own):
                own = np.concatenate([self.of(find(one.own)), self.of(find(other.own))])
                self.balance(own, len(own) // repeat.size, "copies of one index")
        repeat.repeats = [*made, *more]

    def freeze(self, axis: Axis, reason: str) -> None:
        """No index of this axis may go."""
        for factor in leaves(axis):
            if factor.frozen is None:
                self._label_repeats(factor)
                if factor.labels is not None:
                    self.frozen.append((factor.labels, reason))
                    factor.labels = None
                factor.frozen = reason

    def unite(self, left: Axis, right: Axis) -> None:
        """Index i of one axis goes exactly when index i of the other goes."""
        if len(left) == 1 and len(right) == 1:  # the common case, without stacks
            a, b = find(left[0]), find(right[0])
            if a.parts is None and b.parts is None and a.size == b.size:
                self._unite_leaves(a, b)
                return
        todo_left = [f for f in leaves(left) if f.size > 1]
        todo_right = [f for f in leaves(right) if f.size > 1]
        while todo_left and todo_right:
            for todo in (todo_left, todo_right):  # it may have become another on the way
                todo += leaves((todo.pop(),))
            a, b = todo_left.pop(), todo_right.pop()
            if a.size == b.size:
                self._unite_leaves(a, b)
            elif a.size > b.size and a.size % b.size == 0:
                outer, inner = self.split(a, b.size)
                todo_left.append(outer)
                self._unite_leaves(inner, b)
            elif b.size > a.size and b.size % a.size == 0:
                outer, inner = self.split(b, a.size)
                todo_right.append(outer)
                self._unite_leaves(a, inner)
            else:  # the radices clash: element by element, which is sound but coarser
                self.edge(self.flat((*todo_left, a)), self.flat((*todo_right, b)))
                return

    def _unite_leaves(self, a: Factor, b: Factor) -> None:
        if a is b:
            return
        if a.repeats is not None and b.repeats is not None and a.virgin and b.virgin:
            b.alias = a
            self._repeat(a, b.repeats)
            return
        self._label_repeats(a)
        self._label_repeats(b)
        if a.frozen is not None and b.frozen is not None:
            a.batch = b.batch = a.batch or b.batch
        elif b.virgin:
            b.alias = a
        elif a.virgin:
            a.alias = b
        elif a.frozen is not None:
            self.freeze((b,), a.frozen)
        elif b.frozen is not None:
            self.freeze((a,), b.frozen)
        elif a.copies and b.copies and a.copies.repeat.size == b.copies.repeat.size:
            b.alias = a
            for left, right in zip(a.copies, b.copies, strict=True):
                self.unite((left,), (right,))
        else:
            self.edge(self.of(a), self.of(b))
            b.alias = a
            a.copies = a.copies or b.copies

    def edge(self, a: Ints, b: Ints) -> None:
        """Unite two label vectors index by index."""
        for x, y in ((a, b), (b, a)):
            fixed = (x == 0) & (y != 0)
            if fixed.any():
                self.frozen.append((y[fixed], "coupled to a fixed slice"))
        both = (a != 0) & (b != 0)
        self.edges.append((a[both], b[both]))

    def balance(self, labels: Ints, blocks: int, reason: str) -> None:
        """The same number must go from each of `blocks` equal runs of this label vector."""
        self.balanced.append((labels.reshape(blocks, -1), reason))

    # ------------------------------------------------------------------ moving axes about
    def gather(self, axis: Axis, index: Ints) -> Axis:
        """The axis whose position j holds index[j] of the given one (-1: a constant)."""
        n = axis_size(axis)
        if len(index) == n and (index == np.arange(n)).all():
            return axis
        if len(index) == 1:
            self.freeze(axis, "a single index of this axis is selected")
            return ()
        parts = leaves(axis)
        reasons = [part.frozen for part in parts]
        if all(reason is not None for reason in reasons):
            return (Factor(len(index), frozen=reasons[0] if reasons else "size one"),)
        if len(parts) > 1:
            inner = n // parts[0].size
            if len(index) % inner == 0:
                rows = index.reshape(-1, inner)
                aligned = rows[:, :1] % inner == 0
                if aligned.all() and (rows == rows[:, :1] + np.arange(inner)).all():
                    return (*self.gather((parts[0],), rows[:, 0] // inner), *parts[1:])
        labels = np.where(index < 0, 0, self.flat(axis)[np.maximum(index, 0)])
        return (self.vector(labels),)

    def concat(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        """The axes one after the other."""
        pieces = [(axis, size) for axis, size in zip(axes, sizes, strict=True) if size]
        if len(pieces) == 1:
            return pieces[0][0]
        frozen = [f.frozen for axis, _ in pieces for f in leaves(axis)]
        if all(reason is not None for reason in frozen):
            return frozen_axis(sum(sizes), frozen[0] if frozen and frozen[0] else "size one")
        return (self.vector(np.concatenate([self.flat(axis) for axis, _ in pieces])),)

    def regroup(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        """The axes of a view of the same elements with these sizes."""
        if 0 in sizes:
            return self._regroup_none(axes, sizes)
        todo = [factor for axis in axes for factor in leaves(axis)][::-1]
        out: list[Axis] = []
        for position, size in enumerate(sizes):
            taken: list[Factor] = []
            have = 1
            while have < size or (todo and todo[-1].size == 1):
                factor = todo.pop()
                need = size // have if size % have == 0 else 0
                if have * factor.size <= size and size % (have * factor.size) == 0:
                    taken.append(factor)
                    have *= factor.size
                elif need and factor.size % need == 0:
                    outer, inner = self.split(factor, factor.size // need)
                    todo.append(inner)
                    taken.append(outer)
                    have *= need
                else:
                    return self._clash(out, [*taken, factor], todo, sizes[position:])
            out.append(tuple(taken))
        return out

    def _regroup_none(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        """A view of no elements: its first sizes tell as much as they are the same."""
        same = 0
        for axis, size in zip(axes, sizes, strict=False):
            if axis_size(leaves(axis)) != size:
                break
            same += 1
        rest, new = axes[same:], sizes[same:]
        if 0 in new or math.prod(axis_size(leaves(axis)) for axis in rest) != math.prod(new):
            reason = "a view of no elements"
            for axis in rest:
                self.freeze(axis, reason)
            return [*axes[:same], *(frozen_axis(size, reason) for size in new)]
        return [*axes[:same], *self.regroup(rest, new)]

    def _clash(
        self, done: list[Axis], taken: list[Factor], todo: list[Factor], sizes: Sequence[int]
    ) -> list[Axis]:
        """A view whose radices do not divide: relate what is left element by element."""
        rest = (*taken, *todo[::-1])
        if all(factor.frozen is not None for factor in rest):
            reason = rest[0].frozen or ""
            return [*done, *(frozen_axis(size, reason) for size in sizes)]
        if math.prod(sizes) > 1 << 20:
            self.freeze(rest, "a view across unaligned axes")
            return [*done, *(frozen_axis(s, "a view across unaligned axes") for s in sizes)]
        new = [fresh_axis(size) for size in sizes]
        self.edge(self.flat(rest), self.flat(tuple(f for axis in new for f in axis)))
        return [*done, *new]
