"""The ranking over layers against the slow, obvious computation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import secateurs as sc
from secateurs.cost import Cost
from secateurs.ranking import NORMALIZATIONS, Limits, importance, moves

X = torch.zeros(1, 3, 12, 12)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 9, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(9 * 16, 20), nn.ReLU(), nn.Linear(20, 4),
    )  # fmt: skip


def macs(model: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter:
        model(X)
    return counter.get_total_flops() / 2


def params(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def ranked() -> tuple[nn.Module, sc.Graph, sc.Scores]:
    model = net()
    graph = sc.trace(model, X)
    return model, graph, sc.score(model, graph, criterion="weight")


def savings(model: nn.Module, graph: sc.Graph, measure: Callable[[nn.Module], float]) -> dict:
    """By really deleting one unit of each group."""
    cut = {g.name: sc.apply(model, graph.plan({g.name: [0]})) for g in graph.groups}
    return {name: measure(model) - measure(small) for name, small in cut.items()}


def test_flops_are_weighed_relative_to_the_dearest_unit(ranked) -> None:
    model, graph, scores = ranked
    saved = savings(model, graph, macs)
    found = importance(scores, Cost(graph), flops_weight=0.3)
    for name, values in scores.values.items():
        expected = values / np.linalg.norm(values) - 0.3 * saved[name] / max(saved.values())
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "measure"), [("macs", macs), ("params", params)])
def test_cost_power_one_half_ranks_by_the_energy_lost_per_saving(ranked, name, measure) -> None:
    model, graph, scores = ranked
    saved = savings(model, graph, measure)
    found = importance(scores, Cost(graph), flops_weight=0.0, cost_power=0.5, measure=name)
    energy = {g: v**2 / (v**2).sum() / saved[g] for g, v in scores.values.items()}
    every, expected = (np.concatenate([x[g] for g in scores.values]) for x in (found, energy))
    np.testing.assert_array_equal(every.argsort(), expected.argsort())
    assert not np.array_equal(every.argsort(), _ranking(importance(scores, Cost(graph))))


def test_of_units_that_do_as_much_harm_the_dearer_goes_first(ranked) -> None:
    _, graph, scores = ranked
    cost = Cost(graph)
    saved = cost.saved_per_unit("macs")
    cheap, dear = (pick(scores.values, key=saved.__getitem__) for pick in (min, max))
    for sign in (1, -1):
        values = {name: sign * np.ones(len(v)) for name, v in scores.values.items()}
        found = importance(
            sc.Scores(values, ""), cost, normalize="none", flops_weight=0.0, cost_power=0.5
        )
        assert found[dear][0] < found[cheap][0]


def test_in_units_every_unit_costs_the_same(ranked) -> None:
    _, graph, scores = ranked
    options = {"flops_weight": 0.0, "measure": "units"}
    plain, divided = (importance(scores, Cost(graph), cost_power=p, **options) for p in (0.0, 0.5))
    np.testing.assert_array_equal(_ranking(plain), _ranking(divided))


def _ranking(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(values.values())).argsort()


# ---------------------------------------------------------------------- normalisations
def l1(v: list[float]) -> list[float]:
    return [x / sum(abs(y) for y in v) for x in v]


def rank(v: list[float]) -> list[float]:
    """(how many are smaller + the middle of those that tie) / n."""
    n = len(v)
    return [(sum(y < x for y in v) + (sum(y == x for y in v) + 1) / 2) / n for x in v]


NORMALISED: dict[str, Callable[[list[float]], list[float]]] = {
    "none": lambda v: v,
    "l1": l1,
    "l2": lambda v: [x / sum(y * y for y in v) ** 0.5 for x in v],
    "max": lambda v: [x / max(abs(y) for y in v) for x in v],
    "mean": lambda v: [len(v) * x for x in l1(v)],
    "rank": rank,
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_normalisation_keeps_signs_and_composes_with_flops(ranked, name: str) -> None:
    _, graph, scores = ranked
    cost = Cost(graph)
    draw = np.random.default_rng(0)
    values = {g: draw.normal(size=len(v)) for g, v in scores.values.items()}
    values["0"][:3] = -0.25  # ties
    values["2"][:] = 0  # a group of which the criterion says nothing
    signed = sc.Scores(values, "a signed criterion")
    plain = importance(signed, cost, normalize=name, flops_weight=0.0)
    for group in ("0", "5"):
        np.testing.assert_allclose(plain[group], NORMALISED[name](values[group].tolist()))
    assert set(plain["2"]) == ({(9 + 1) / 2 / 9} if name == "rank" else {0.0})
    if name != "rank":
        assert all((np.sign(plain[g]) == np.sign(values[g])).all() for g in values)
    weighed = importance(signed, cost, normalize=name, flops_weight=0.2)
    nothing = sc.Scores({g: np.zeros_like(v) for g, v in values.items()}, "")
    flops = importance(nothing, cost, normalize="none", flops_weight=0.2)
    for group in values:
        np.testing.assert_allclose(weighed[group], plain[group] + flops[group])


def test_a_group_that_is_not_scored_stays_whole(ranked) -> None:
    _, graph, scores = ranked
    values = {name: v for name, v in scores.values.items() if name != "2"}
    part = importance(sc.Scores(values, "weight", unscored={"2": "no reason"}), Cost(graph))
    found = moves(graph, part, Limits(), {})
    assert {move.group for move in found} == {"0", "5"}
