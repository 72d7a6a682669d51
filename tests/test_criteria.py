"""Every criterion of the table against its naive reference, and law 5 for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attentive import attentive
from tests.references import (
    LOSS,
    REFERENCES,
    Gated,
    as_tensors,
    close,
    everything,
    information_gain,
    pairs,
    scored,
)  # fmt: skip
from torch import nn

import secateurs as sc
from secateurs.criteria import CRITERIA


def test_every_criterion_has_a_reference() -> None:
    assert set(REFERENCES) == set(CRITERIA)


@pytest.mark.parametrize("make", [everything, attentive])
@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_is_its_formula(name: str, make: Callable[[], Gated]) -> None:
    found = scored(name, net=make())
    close(found, REFERENCES[name](make(), *pairs()), 1e-9)
    assert set(found.unscored) == make().sizes.keys() - set(found)
    assert sc.Scores.from_dict(found.to_dict()).to_dict() == found.to_dict()


def test_a_reference_can_fail() -> None:
    """The negative control: mean and gate form, first and second order are told apart."""
    for name, other in (("taylor", "taylor-gate"), ("taylor-squared", "taylor-second")):
        with pytest.raises(AssertionError):
            close(scored(name), REFERENCES[other](everything(), *pairs()), 1e-3)


# ---------------------------------------------------------------------- law 5
def splits(n: int) -> st.SearchStrategy[list[list[int]]]:
    """The examples 0 … n−1 in any order, cut into batches anywhere."""
    cuts = st.sets(st.integers(1, n - 1), max_size=5).map(sorted)
    return st.tuples(st.permutations(range(n)), cuts).map(
        lambda drawn: [drawn[0][a:b] for a, b in zip([0, *drawn[1]], [*drawn[1], n], strict=True)]
    )


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_do_not_depend_on_batches_order_or_workers(name: str) -> None:
    net, (x, y) = everything(), pairs(12)
    graph = sc.trace(net, x[:2])
    options: dict[str, Any] = {"loss": LOSS, "criterion": name, "calibration": (x, y)}
    whole = as_tensors(sc.score(net, graph, [(x, y)], **options))

    @settings(max_examples=5, deadline=None)
    @given(splits(12), st.integers(0, 5))
    def check(parts: list[list[int]], mine: int) -> None:
        batches = [(x[part], y[part]) for part in parts]
        close(sc.score(net, graph, batches, **options), whole, 1e-6)
        if 0 < mine < len(batches):
            workers = [batches[:mine], batches[mine:]]
            close(by_workers(net, graph, workers, **options), whole, 1e-6)

    check()


def by_workers(net: nn.Module, graph: sc.Graph, workers: list[Any], **options: Any) -> sc.Scores:
    """The scores of several workers with a part of the data each, as the last of them has them."""
    rounds: list[list[dict[str, Any]]] = []  # what each has told, at every exchange
    while True:
        told: list[list[dict[str, Any]]] = [[] for _ in workers]
        for worker, data in enumerate(workers):

            def share(own: dict[str, Any], mine: list = told[worker]) -> list[dict[str, Any]]:
                mine.append(own)
                return rounds[len(mine) - 1] if len(mine) <= len(rounds) else [own]

            found = sc.score(net, graph, data, **options, share=share)
        if len(told[0]) == len(rounds):
            return found
        rounds.append([own[len(rounds)] for own in told])


def test_workers_share_the_edges_of_all_their_first_batches() -> None:
    net, (x, y) = everything(), pairs()
    graph, workers = sc.trace(net, x[:2]), [[(x[:9], y[:9])], [(x[9:], y[9:])]]
    found = by_workers(net, graph, workers, criterion="information-gain")
    close(found, information_gain(net, x, y), 1e-9)
