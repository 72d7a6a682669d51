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
from secateurs.ranking import importance

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


def test_in_units_every_unit_costs_the_same(ranked) -> None:
    _, graph, scores = ranked
    options = {"flops_weight": 0.0, "measure": "units"}
    plain, divided = (importance(scores, Cost(graph), cost_power=p, **options) for p in (0.0, 0.5))
    np.testing.assert_array_equal(_ranking(plain), _ranking(divided))


def _ranking(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(values.values())).argsort()
