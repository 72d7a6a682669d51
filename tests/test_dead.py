"""Removing dead units changes no output, whatever the input; what cannot go stays and is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.generated import Generated, Spec, specs
from tests.networks import NETWORKS, network
from tests.support import call, doubled, relative_error, snapshot
from tests.zoo import zoo_model
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateurs as sc
from secateurs.errors import LawError, NotFiniteError, TraceError

TOLERANCE = 1e-10


def thin(model: nn.Module, kept: float, seed: int = 0) -> None:
    """Keep a random share of the weights; biases and norms stay, so that constants are not zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p *= torch.rand(p.shape, generator=draw) < kept


def plant(model: nn.Module, inputs: object, seed: int = 0) -> dict[str, dict[str, list[int]]]:
    """Zero all weights that write, or all that read, a unit or two of each group."""
    graph, tensors = sc.trace(model, inputs), dict(model.named_parameters())
    draw = np.random.default_rng(seed)
    planted: dict[str, dict[str, list[int]]] = {"writes": {}, "reads": {}}
    for group in graph:
        count = min(2, group.size // 4)
        chosen = draw.permutation(group.size)
        for role, units in (("writes", chosen[:count]), ("reads", chosen[count : 2 * count])):
            mask = np.zeros(len(graph.classes), dtype=bool)
            mask[group.units[units]] = True
            zeroed: set[int] = set()
            for name, dim, axis in graph.slots:
                if graph.analysis.roles.get((name, dim)) != role or name not in tensors:
                    continue
                if name in graph.analysis.blocked and dim == 1:
                    continue
                at, theirs = graph.axis_incidence(axis)
                with torch.no_grad():
                    tensors[name].index_fill_(dim, torch.from_numpy(at[mask[theirs]]), 0)
                zeroed.update(theirs[mask[theirs]].tolist())
            planted[role][group.name] = [u for u in units.tolist() if group.units[u] in zeroed]
    return planted


def others(inputs: object, seed: int = 1) -> object:
    """Other inputs of the same shapes."""
    draw = torch.Generator().manual_seed(seed)
    return pytree.tree_map_only(
        Tensor,
        lambda t: torch.randn(t.shape, generator=draw).to(t) if t.is_floating_point() else t,
        inputs,
    )


def law(model: nn.Module, inputs: object) -> tuple[sc.DeadUnits, nn.Module]:
    """The cut network and the masked one agree on inputs that the search never saw."""
    before = snapshot(model)
    dead = sc.dead_units(model, inputs)
    small = sc.remove_dead(model, inputs)
    assert snapshot(model) == before
    for seed in (1, 2):
        x = others(inputs, seed)
        wanted, given = call(model, x), call(small, x)
        worst = max(float((a - b).abs().max()) for a, b in zip(wanted, given, strict=True))
        scale = max(float(a.abs().max()) for a in wanted)
        assert worst <= TOLERANCE * max(scale, 1)
    return dead, small


# ---------------------------------------------------------------------- the law
@pytest.mark.parametrize("kept", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("name", NETWORKS)
def test_plain_networks_compute_the_same_without_their_dead_units(name: str, kept: float) -> None:
    model, inputs = network(name)
    thin(model, kept)
    planted = plant(model, inputs)
    dead, small = law(model, inputs)
    graph = sc.trace(model, inputs)
    told = {g: {**dead.removed.get(g, {}), **dead.kept.get(g, {})} for g in planted["writes"]}
    for role in planted.values():
        for group, units in role.items():
            assert set(units) <= set(told[group]), (group, units, told[group])
    if kept == 1.0:
        for group, units in planted["reads"].items():
            if graph[group].exact and graph[group].balance is None:
                assert set(units) <= set(dead.removed.get(group, {})), dead.kept.get(group)
    again = sc.dead_units(small, inputs)
    assert len(again) == 0, str(again)


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "mobilenet_v2", "resnext50_32x4d", "efficientnet_b0"]
)
def test_networks_of_torchvision_compute_the_same(name: str) -> None:
    model, x = zoo_model(name)
    thin(model, 0.05)
    plant(model, x)
    dead, small = law(model, x)
    print(dead)


@settings(max_examples=40)
@given(specs(), st.sampled_from([1.0, 0.1, 0.03]), st.integers(0, 99))
def test_generated_networks_compute_the_same(spec: Spec, kept: float, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = doubled(Generated(spec)), torch.randn(2, 3, 8, 8).double()
    thin(model, kept, seed)
    plant(model, x, seed)
    _, small = law(model, x)
    assert len(sc.dead_units(small, x)) == 0
