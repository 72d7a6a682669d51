"""Blocks of units of which equally many go, so that every balance constraint on them holds.

A constraint says that equally many indices go from each of its blocks. A *cell* is the set of units
that lie in the same block of every constraint, with equally many indices each. Where a block of a
constraint holds two cells and the other one, twice as many must go from that one: it is split in
two. So it is where a unit of the one takes two indices along, as a rotary frequency does.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from .labels import Ints

Cell: TypeAlias = tuple[tuple[int, int, int], ...]
"""(constraint, block, how many of its indices go with a unit) of each that it lies in."""


def places(numbers: Ints) -> list[Ints]:
    """Where each number stands, in the order of the numbers.

    >>> [where.tolist() for where in places(np.array([7, 5, 7]))]
    [[1], [0, 2]]
    """
    order = np.argsort(numbers, kind="stable")
    ends = np.flatnonzero(np.diff(numbers[order])) + 1
    return [order[a:b] for a, b in pairwise((0, *ends.tolist(), len(numbers)))]


def split_cells(cells: Sequence[Cell], numbers: Ints) -> Ints | None:
    """A block number for each unit, given the number of its cell; None if no equal counts would do.

    >>> cells = [((0, 0, 1), (1, 0, 1)), ((0, 0, 1), (1, 1, 1)), ((0, 1, 1),)]
    >>> split_cells(cells, np.array([0, 0, 1, 1, 2, 2, 2, 2])).tolist()
    [0, 0, 1, 1, 2, 2, 3, 3]
    >>> split_cells([((0, 0, 2),), ((0, 1, 1),)], np.array([0, 0, 1, 1, 1, 1])).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    members = {cells[numbers[units[0]]]: units for units in places(numbers)}
    shares = _shares(sorted(members))
    blocks, first = np.zeros(len(numbers), dtype=np.int64), 0
    for cell, share in shares.items():
        units = members[cell]
        if len(units) % share:
            return None
        blocks[units] = first + np.arange(len(units)) // (len(units) // share)
        first += share
    return blocks if shares else None


def _shares(cells: Sequence[Cell]) -> dict[Cell, int]:
    """How many times as many go from each cell as from the least; nothing if none agree."""
    shares = dict.fromkeys(cells, 1)
    for _ in cells:
        uneven = [held for held in _held(shares).values() if len(set(held.values())) > 1]
        if not uneven:
            return shares
        for held in uneven[:1]:
            whole = math.lcm(*held.values())
            for cell in cells:
                for constraint, block, _ in cell:
                    if (constraint, block) in held:
                        shares[cell] *= whole // held[constraint, block]
        least = math.gcd(*shares.values())
        shares = {cell: share // least for cell, share in shares.items()}
    return {}


def _held(shares: Mapping[Cell, int]) -> dict[int, Counter[tuple[int, int]]]:
    """Constraint -> how much of it lies in each of its blocks."""
    out: defaultdict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
    for cell, share in shares.items():
        for constraint, block, weight in cell:
            out[constraint][constraint, block] += share * weight
    return out
