"""Solve the relations between labels: which classes go together, which can never go."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .labels import Bools, Ints, Labels

_NEVER = "coupled to a fixed slice"
_WHOLE = "a single unit would cover a whole axis"


@dataclass
class Resolved:
    """Classes of labels after every relation holds.

    Attributes:
        root: label -> its class, (labels,).
        reasons: class -> why it can never go; an empty string where it can.
        products: class -> the classes each of which takes it along.
        triples: (3, products) the same as rows: a class and two that take it along.
    """

    root: Ints
    frozen: Bools
    reason_of: Ints
    reasons: list[str]
    products: dict[int, set[int]]
    triples: Ints

    def reason(self, cls: int) -> str:
        return self.reasons[self.reason_of[cls]] if self.frozen[cls] else ""


class _Solver:
    def __init__(self, labels: Labels):
        self.labels = labels
        self.root = np.arange(labels.count)
        self.reasons: list[str] = [_NEVER]
        self.ids: dict[str, int] = {_NEVER: 0}
        self.frozen = np.zeros(labels.count, dtype=bool)
        self.reason_of = np.zeros(labels.count, dtype=np.int64)
        self.frozen[0] = True
        self.triples = (
            np.concatenate([np.stack(t) for t in labels.products], axis=1)
            if labels.products
            else np.zeros((3, 0), dtype=np.int64)
        )

    # ------------------------------------------------------------------ primitive steps
    def unite(self, a: Ints, b: Ints) -> None:
        """Merge classes pairwise; a class with a frozen member is frozen."""
        parent = self.root
        while True:
            a, b = parent[a], parent[b]
            differ = a != b
            if not differ.any():
                break
            a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            np.minimum.at(parent, high, low)
            while True:
                up = parent[parent]
                if (up == parent).all():
                    break
                parent[:] = up
        late = np.flatnonzero(self.frozen)
        roots = parent[late]
        self.reason_of[roots] = self.reason_of[late]
        self.frozen[roots] = True

    def freeze(self, labels: Ints, reason: str | Ints) -> None:
        """Freeze the classes of these labels; the first reason given stays."""
        roots = self.root[labels]
        new = ~self.frozen[roots]
        if isinstance(reason, str):
            if reason not in self.ids:
                self.ids[reason] = len(self.reasons)
                self.reasons.append(reason)
            self.reason_of[roots[new]] = self.ids[reason]
        else:
            self.reason_of[roots[new]] = reason[new]
        self.frozen[roots] = True

    # ------------------------------------------------------------------ the fixpoint
    def solve(self) -> Resolved:
        labels = self.labels
        for members, reason in labels.frozen:
            self.freeze(members, reason)
        if labels.edges:
            a, b = (np.concatenate(side) for side in zip(*labels.edges, strict=True))
            self.unite(a, b)
        while self._simplify() or self._cover() or self._coarsen():
            pass
        products: dict[int, set[int]] = {}
        triples = self.root[self.triples]
        for c, left, right in triples.T.tolist():
            products.setdefault(c, set()).update((left, right))
        return Resolved(self.root, self.frozen, self.reason_of, self.reasons, products, triples)

    def _simplify(self) -> bool:
        """Products with a frozen, equal or identical operand. True if anything changed."""
        if not self.triples.shape[1]:
            return False
        c, left, right = self.root[self.triples]
        fc, fl, fr = self.frozen[c], self.frozen[left], self.frozen[right]
        changed = bool((fl & fr & ~fc).any() or (fc & ~(fl & fr)).any())
        self.freeze(c[fl & fr], self.reason_of[left[fl & fr]])
        self.freeze(left[fc], self.reason_of[c[fc]])
        self.freeze(right[fc], self.reason_of[c[fc]])
        pairs = [
            (c[fl & ~fr & ~fc], right[fl & ~fr & ~fc]),
            (c[fr & ~fl & ~fc], left[fr & ~fl & ~fc]),
            (c[left == right], left[left == right]),
            (left[(c == left) | (c == right)], right[(c == left) | (c == right)]),
        ]
        rest = ~(fc | fl | fr | (left == right))
        c, left, right = c[rest], left[rest], right[rest]
        left, right = np.minimum(left, right), np.maximum(left, right)
        order = np.lexsort((c, right, left))
        c, left, right = c[order], left[order], right[order]
        same = (left[1:] == left[:-1]) & (right[1:] == right[:-1])
        pairs.append((c[1:][same], c[:-1][same]))
        distinct = np.r_[True, ~(same & (c[1:] == c[:-1]))] if len(c) else np.zeros(0, bool)
        self.triples = np.stack([c, left, right])[:, distinct]
        a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
        if (self.root[a] != self.root[b]).any():
            self.unite(a, b)
            return True
        return changed

    def _cover(self) -> bool:
        """Freeze every class that would empty a whole axis."""
        takers: dict[int, set[int]] = {}
        for c, left, right in self.root[self.triples].T.tolist():
            takers.setdefault(c, set()).update((left, right))
        closed: dict[int, frozenset[int]] = {}

        def implied(c: int) -> frozenset[int]:
            if c not in closed:
                closed[c] = frozenset((c,))
                operands = (implied(operand) for operand in takers.get(c, ()))
                closed[c] = closed[c].union(*operands)
            return closed[c]

        changed = False
        for vector in self.labels.vectors:
            if vector.labels is None or not len(vector.labels):
                continue
            classes = self.root[vector.labels]
            if (classes == classes[0]).all():
                common: frozenset[int] = implied(int(classes[0]))
            elif takers and any(c in takers for c in classes[:2].tolist()):
                common = implied(int(classes[0]))
                for c in np.unique(classes).tolist():
                    common &= implied(c)
                    if not common:
                        break
            else:
                continue
            for c in common:
                if not self.frozen[c]:
                    self.freeze(np.array([c]), _WHOLE)
                    changed = True
        return changed

    def _coarsen(self) -> bool:
        """One class that is two different products: unite what they do not share."""
        c, left, right = self.root[self.triples]
        order = np.argsort(c, kind="stable")
        c, left, right = c[order], left[order], right[order]
        again = np.flatnonzero(c[1:] == c[:-1])
        shared: list[tuple[int, int]] = []
        clash: list[tuple[int, int]] = []
        for i in again.tolist():
            first, second = {left[i], right[i]}, {left[i + 1], right[i + 1]}
            if first == second:
                continue
            only_first, only_second = sorted(first - second), sorted(second - first)
            if first & second and only_first and only_second:
                shared.append((only_first[0], only_second[0]))
            else:
                members = [*sorted(first | second), c[i]]
                clash += list(pairwise(members))
        pairs = np.array(shared or clash, dtype=np.int64).reshape(-1, 2)
        if not len(pairs):
            return False
        self.unite(pairs[:, 0], pairs[:, 1])
        return True


def resolve(labels: Labels) -> Resolved:
    """Every relation of a label space, solved.

    Products with a frozen operand become their other operand; a class that would empty an axis is
    frozen; a class that is two different products is made coarser, which is always sound.
    """
    return _Solver(labels).solve()
