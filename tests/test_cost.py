"""Costs against PyTorch's own counter, before a cut and after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.networks import NETWORKS, network
from tests.support import call
from tests.zoo import zoo_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import secateurs as sc
from secateurs.cost import MEASURES, Cost
from secateurs.groups import Selection

LARGE = ("resnet18", "mobilenet_v2", "densenet121", "resnext50_32x4d", "googlenet")


def counted(model: nn.Module, inputs: Any) -> dict[str, int]:
    """MACs and parameters as PyTorch counts them."""
    counter = FlopCounterMode(display=False)
    with counter:
        call(model, inputs)
    parameters = sum(p.numel() for p in model.parameters())
    return {"macs": counter.get_total_flops() // 2, "params": parameters}


def case(name: str) -> tuple[nn.Module, Any, sc.Graph]:
    model, inputs = zoo_model(name) if name in LARGE else network(name)
    return model, inputs, sc.trace(model, inputs)


@pytest.mark.parametrize("name", [*NETWORKS, *LARGE])
def test_costs_are_pytorchs_before_and_after_a_cut(name: str) -> None:
    model, inputs, graph = case(name)
    cost = Cost(graph)
    whole = cost.all()
    assert whole == {**counted(model, inputs), "units": sum(g.size for g in graph)}
    plan = graph.random_plan(0.4, seed=4, exact_only=False)
    predicted = cost.all(graph.select(plan.groups))
    small = sc.apply(model, plan)
    assert predicted == {**counted(small, inputs), "units": whole["units"] - len(plan)}
    assert predicted["params"] < whole["params"]
    assert predicted["macs"] < whole["macs"]


@pytest.mark.parametrize("name", ["lenet", "residual", "grouped", "chunks", "unet", "groupnorm"])
@pytest.mark.parametrize("measure", MEASURES)
def test_saved_per_unit_is_what_a_real_cut_saves(name: str, measure: str) -> None:
    model, inputs, graph = case(name)
    cost = Cost(graph)
    saved = cost.saved_per_unit(measure)
    assert set(saved) == {group.name for group in graph}
    for group in graph:
        units = [int(block[-1]) for block in group.blocks()]
        small = sc.apply(model, graph.plan({group.name: units}))
        after = {**counted(small, inputs), "units": cost.of("units") - len(units)}
        assert saved[group.name] == (cost.of(measure) - after[measure]) / len(units)
        assert saved[group.name] > 0


def test_a_tied_weight_counts_once_and_an_unused_one_counts() -> None:
    model, x = network("tied")
    model.spare = nn.Linear(3, 5)
    graph = sc.trace(model, x)
    assert Cost(graph).of("params") == sum(p.numel() for p in model.parameters())


def test_costs_scale_with_the_inputs() -> None:
    model, x = network("lenet")
    one, two = (Cost(sc.trace(model, x[:n])) for n in (1, 2))
    assert two.of("macs") == 2 * one.of("macs")
    assert two.of("params") == one.of("params")


def test_an_empty_selection_costs_the_whole() -> None:
    graph = sc.trace(*network("grouped"))
    cost = Cost(graph)
    assert cost.all(Selection(graph, torch.zeros(0, dtype=torch.long).tolist())) == cost.all()
