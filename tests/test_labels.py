"""The algebra of axes, against numpy index arrays and brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.trace.labels import Axis, Labels, axis_size, fresh_axis, frozen_axis, leaves
from secateurs.trace.resolve import Resolved, resolve


# ---------------------------------------------------------------------- what a choice removes
def free_classes(resolved: Resolved) -> list[int]:
    """The classes that can be chosen by themselves."""
    classes = np.unique(resolved.root).tolist()
    return [c for c in classes if not resolved.frozen[c] and c not in resolved.products]


def goes(resolved: Resolved, chosen: Iterable[int]) -> np.ndarray:
    """Which labels go, (labels,), when these classes do: products by their definition."""
    gone = np.zeros(len(resolved.root), dtype=bool)
    gone[list(chosen)] = True
    for _ in range(len(resolved.products) + 1):
        for c, operands in resolved.products.items():
            gone[c] |= gone[list(operands)].any()
    return gone[resolved.root]


def removed(labels: Labels, axes: list[Axis], gone: np.ndarray) -> np.ndarray:
    """Which elements of a tensor with these axes go: those with any index that goes."""
    mask = np.zeros([1] * len(axes), dtype=bool)
    for d, axis in enumerate(axes):
        line = gone[labels.flat(axis)]
        mask = mask | line.reshape([-1 if e == d else 1 for e in range(len(axes))])
    return mask


def choices(resolved: Resolved, limit: int = 24) -> Iterable[tuple[int, ...]]:
    free = free_classes(resolved)
    every = itertools.chain.from_iterable(
        itertools.combinations(free, n) for n in range(len(free) + 1)
    )
    return itertools.islice(every, limit)


# ---------------------------------------------------------------------- moving axes about
def factorings(n: int) -> st.SearchStrategy[list[int]]:
    """Shapes with n elements, ones included."""
    if n == 1:
        return st.lists(st.just(1), max_size=1)
    divisors = [d for d in range(2, n + 1) if n % d == 0]
    head = st.sampled_from(divisors)
    shape = head.flatmap(lambda d: factorings(n // d).map(lambda rest: [d, *rest]))
    return shape.flatmap(st.permutations).map(list)


shapes = st.sampled_from([4, 6, 8, 12, 16, 18, 24]).flatmap(factorings)


@st.composite
def movements(draw: st.DrawFn) -> tuple[list[int], list[tuple]]:
    """(shape, a chain of views, permutations and index choices)."""
    shape = start = draw(shapes)
    steps: list[tuple] = []
    for kind in draw(
        st.lists(st.sampled_from(["view", "permute", "gather", "concat"]), max_size=4)
    ):
        if kind == "view":
            shape = draw(factorings(math.prod(shape)))
            steps.append((kind, shape))
        elif kind == "permute":
            order = list(draw(st.permutations(range(len(shape)))))
            shape = [shape[d] for d in order]
            steps.append((kind, order))
        elif shape:
            dim = draw(st.integers(0, len(shape) - 1))
            n = shape[dim]
            index = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
            if kind == "concat":
                index = [*range(n), *index]
            steps.append((kind, dim, index))
            shape = [*shape[:dim], len(index), *shape[dim + 1 :]]
    return start, steps


def move(labels: Labels, axes: list[Axis], cells: np.ndarray, step: tuple):
    """One step, on axes by the library and on an array of element numbers by numpy."""
    if step[0] == "view":
        return labels.regroup(axes, step[1]), cells.reshape(step[1])
    if step[0] == "permute":
        return [axes[d] for d in step[1]], cells.transpose(step[1])
    dim, index = step[1], np.array(step[2])
    n = cells.shape[dim]
    if step[0] == "gather":
        moved = labels.gather(axes[dim], index)
    else:
        tail = labels.gather(axes[dim], index[n:])
        moved = labels.concat([axes[dim], tail], [n, len(index) - n])
    return [*axes[:dim], moved, *axes[dim + 1 :]], cells.take(index, dim)


@settings(max_examples=150)
@given(movements())
def test_an_element_goes_exactly_when_it_went_where_it_came_from(
    chain: tuple[list[int], list[tuple]],
) -> None:
    shape, steps = chain
    labels = Labels()
    start = axes = [fresh_axis(n) for n in shape]
    cells = np.arange(math.prod(shape)).reshape(shape)
    for step in steps:
        axes, cells = move(labels, axes, cells, step)
        assert [axis_size(axis) or 1 for axis in axes] == list(cells.shape)
    for axis in (*start, *axes):
        labels.flat(axis)
    resolved = resolve(labels)
    for chosen in choices(resolved):
        gone = goes(resolved, chosen)
        before = np.broadcast_to(removed(labels, start, gone), shape)
        after = np.broadcast_to(removed(labels, axes, gone), cells.shape)
        assert (before.ravel()[cells] == after).all()


@given(shapes)
def test_a_view_and_back_leaves_every_unit_free(shape: list[int]) -> None:
    """Splitting and merging in whole factors couples nothing."""
    labels = Labels()
    axes = [fresh_axis(n) for n in shape]
    flat = labels.regroup(axes, [math.prod(shape)])
    back = labels.regroup(flat, shape)
    for a, b in zip(axes, back, strict=True):
        assert (labels.flat(a) == labels.flat(b)).all()
    resolved = resolve(labels)
    wide = [n for n in shape if n > 1]
    assert len(free_classes(resolved)) == sum(wide)


@given(shapes, st.data())
def test_uniting_axes_of_other_factors_makes_their_masks_equal(
    shape: list[int], data: st.DataObject
) -> None:
    other = data.draw(factorings(math.prod(shape)))
    labels = Labels()
    left = tuple(f for n in shape for f in fresh_axis(n))
    right = tuple(f for n in other for f in fresh_axis(n))
    labels.unite(left, right)
    a, b = labels.flat(left), labels.flat(right)
    resolved = resolve(labels)
    for chosen in choices(resolved):
        gone = goes(resolved, chosen)
        assert (gone[a] == gone[b]).all()


@given(st.integers(2, 12), st.data())
def test_a_frozen_index_freezes_what_it_is_united_with(size: int, data: st.DataObject) -> None:
    labels = Labels()
    axis = fresh_axis(size)
    index = np.array(data.draw(st.lists(st.integers(-1, size - 1), min_size=2, max_size=size)))
    moved = labels.gather(axis, index)
    labels.unite(moved, frozen_axis(len(index), "held"))
    resolved = resolve(labels)
    held = {int(i) for i in index if i >= 0}
    flat = labels.flat(axis)
    for i in range(size):
        if i in held:
            assert resolved.frozen[resolved.root[flat[i]]]


def test_one_index_taken_from_an_axis_freezes_it() -> None:
    labels = Labels()
    axis = fresh_axis(5)
    assert labels.gather(axis, np.array([3])) == ()
    assert [leaf.frozen for leaf in leaves(axis)] == ["a single index of this axis is selected"]


# ---------------------------------------------------------------------- solving relations
pairs = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), max_size=6)
triples = st.lists(st.tuples(*[st.integers(1, 7)] * 3), max_size=4)
some = st.lists(st.integers(1, 7), max_size=2)


def stated(edges: list, products: list, frozen: list) -> Labels:
    labels = Labels()
    labels.fresh(7)
    for a, b in edges:
        labels.edge(np.array([a]), np.array([b]))
    for triple in products:
        labels.products.append(tuple(np.array([label]) for label in triple))
    if frozen:
        labels.frozen.append((np.array(frozen), "held"))
    return labels


def closed_sets(edges: list, products: list, frozen: list) -> set[frozenset[int]]:
    """Every set of labels that keeps every relation, by trying all of them."""
    out = set()
    for bits in itertools.product([False, True], repeat=7):
        s = (False, *bits)
        if (
            all(s[a] == s[b] for a, b in edges)
            and all(s[c] == (s[a] or s[b]) for c, a, b in products)
            and not any(s[f] for f in frozen)
        ):
            out.add(frozenset(i for i in range(8) if s[i]))
    return out


def solved_sets(labels: Labels) -> set[frozenset[int]]:
    resolved = resolve(labels)
    masks = (goes(resolved, chosen) for chosen in choices(resolved, 1 << 8))
    return {frozenset(np.flatnonzero(mask).tolist()) for mask in masks}


@given(pairs, some)
def test_unions_and_freezes_give_exactly_the_closed_sets(edges: list, frozen: list) -> None:
    assert solved_sets(stated(edges, [], frozen)) == closed_sets(edges, [], frozen)


@settings(max_examples=300)
@given(pairs, triples, some)
def test_products_give_closed_sets_only(edges: list, products: list, frozen: list) -> None:
    """Coarser than need be is allowed; a set that breaks a relation is not."""
    found = solved_sets(stated(edges, products, frozen))
    assert found <= closed_sets(edges, products, frozen)
    assert frozenset() in found


@given(st.lists(st.sampled_from([(1, 2), (1, 3), (2, 3)]), max_size=2), some)
def test_products_of_free_labels_give_exactly_the_closed_sets(edges: list, frozen: list) -> None:
    grid = [(4, 1, 2), (5, 1, 3), (6, 2, 3)]
    assert solved_sets(stated(edges, grid, frozen)) == closed_sets(edges, grid, frozen)


@pytest.mark.parametrize("size", [2, 5])
def test_a_label_that_covers_an_axis_is_frozen(size: int) -> None:
    labels = Labels()
    one = labels.fresh(size)
    labels.vector(one)
    labels.edge(one[:-1], one[1:])
    resolved = resolve(labels)
    assert resolved.frozen[resolved.root[one]].all()
    assert "whole axis" in resolved.reason(int(resolved.root[one[0]]))


def test_the_first_reason_given_is_kept() -> None:
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    labels.frozen.append((a[:1], "an output"))
    labels.edge(a, b)
    resolved = resolve(labels)
    assert resolved.reason(int(resolved.root[b[0]])) == "an output"
    assert resolved.reason(int(resolved.root[b[1]])) == ""


def test_a_view_of_no_elements_keeps_what_its_sizes_tell() -> None:
    labels = Labels()
    none, channels, space = fresh_axis(0), fresh_axis(6), fresh_axis(4)
    first, flat = labels.regroup([none, channels, space], [0, 24])
    assert (first, flat) == (none, (*channels, *space))
    assert labels.regroup([channels, none], [0, 3])[1][0].frozen == "a view of no elements"
    assert channels[0].frozen == "a view of no elements"
