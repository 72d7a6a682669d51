"""The law of the cut: the cut network is the uncut one with every read of the units zeroed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.networks import NETWORKS, network
from tests.support import call, relative_error
from tests.zoo import ZOO, zoo_model
from torch import nn

import secateurs as sc
from secateurs.errors import LawError
from secateurs.plan import Slices

TOLERANCE = 1e-10


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_the_law_holds_on_the_zoo(name: str) -> None:
    model, x = zoo_model(name)
    graph = sc.trace(model, x)
    plan = graph.random_plan(0.3, seed=1)
    small = sc.apply(model, plan)
    proof = sc.verify(model, small, plan, x, graph=graph)
    assert proof.exact
    assert proof.max_relative_error <= TOLERANCE
    assert len(plan) > 0.2 * sum(group.size for group in graph if group.exact)
    assert parameters(small) < 0.8 * parameters(model)


@pytest.mark.parametrize("exact_only", [True, False], ids=["exact", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_law_holds_on_plain_networks(name: str, exact_only: bool) -> None:
    model, inputs = network(name)
    graph = sc.trace(model, inputs)
    for seed in range(3):
        plan = graph.random_plan(0.3, seed=seed, exact_only=exact_only)
        proof = sc.verify(model, sc.apply(model, plan), plan, inputs, graph=graph)
        assert proof.max_relative_error <= TOLERANCE
        assert proof.exact == all(graph[group].exact for group in plan.groups)
    if not exact_only:
        assert len(plan) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_every_single_unit_keeps_the_law(name: str) -> None:
    """One unit at a time (one of each block where counts are balanced)."""
    model, inputs = network(name)
    graph = sc.trace(model, inputs)
    for group in graph:
        blocks = group.blocks()
        for i in range(min(4, *(len(block) - 1 for block in blocks), 4)):
            plan = graph.plan({group.name: [int(block[i]) for block in blocks]})
            proof = sc.verify(model, sc.apply(model, plan), plan, inputs, graph=graph)
            assert proof.max_relative_error <= TOLERANCE, (group.name, i)


# ---------------------------------------------------------------------- without our own replay
def zeroed_reads(model: nn.Module, readers: dict[str, list[int]]) -> list:
    """Hooks that zero channels of what the named modules are given."""

    def hook(channels: list[int]):
        def zero(_: nn.Module, args: tuple) -> tuple:
            mask = torch.ones(args[0].shape[1], dtype=args[0].dtype)
            mask[channels] = 0
            return (args[0] * mask.reshape(1, -1, *[1] * (args[0].dim() - 2)),)

        return zero

    return [
        model.get_submodule(path).register_forward_pre_hook(hook(channels))
        for path, channels in readers.items()
    ]


def columns(channels: list[int], positions: int) -> list[int]:
    return [c * positions + m for c in channels for m in range(positions)]


def by_hand(name: str) -> tuple[nn.Module, torch.Tensor, dict, dict]:
    """(model, input, units, readers): the readers were listed by reading the model's code."""
    if name == "lenet":
        model, x = network("lenet")
        units = {"conv1": [0, 4], "conv2": [1, 2, 9], "fc1": [3, 19]}
        readers = {"conv2": [0, 4], "fc1": columns([1, 2, 9], 16), "fc2": [3, 19]}
        return model, x, units, readers
    if name == "densenet":  # the growth of the first layers is read through every later norm
        model, x = zoo_model("densenet121")
        block = "features.denseblock1.denselayer"
        units = {f"{block}1.conv2": [0, 5], f"{block}2.conv1": [7, 100]}
        late = {f"{block}{i}.conv1": [64, 69] for i in range(2, 7)}
        late["features.transition1.conv"] = [64, 69]
        return model, x, units, {**late, f"{block}2.conv2": [7, 100]}
    model, x = zoo_model("resnet18")
    units = {"conv1": [0, 7, 63], "layer1.0.conv1": [5], "layer4.1.conv1": [1, 511]}
    stem = ("layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0")
    readers = {path: [0, 7, 63] for path in stem}
    return model, x, units, {**readers, "layer1.0.conv2": [5], "layer4.1.conv2": [1, 511]}


@pytest.mark.parametrize("name", ["lenet", "resnet18", "densenet"])
def test_hooks_written_by_hand_agree(name: str) -> None:
    model, x, units, readers = by_hand(name)
    small = sc.delete_channels(model, units, x)
    before = call(model, x)
    for _ in zeroed_reads(model, readers):
        pass
    gated = call(model, x)
    assert relative_error(gated, call(small, x)) <= TOLERANCE
    assert relative_error(before, gated) > 1e-6  # the units mattered


# ---------------------------------------------------------------------- negative controls
def tampered(plan: sc.Plan, path: str, dim: int) -> sc.Plan:
    """The plan with other indices, equally many, along one axis of one tensor."""
    old = plan.tensors[path]
    other = []
    for block in old.removed[dim]:
        every = np.arange(old.shape[dim])
        kept = np.setdiff1d(every, block)
        other.append(sorted([*block[1:], int(kept[0])]))
    slices = Slices(old.shape, {**old.removed, dim: other})
    return dataclasses.replace(plan, tensors={**plan.tensors, path: slices})


@pytest.mark.parametrize("name", ["lenet", "residual", "unet", "grouped", "squeeze_excite"])
def test_wrong_indices_in_any_one_coupled_axis_break_the_law(name: str) -> None:
    model, inputs = network(name)
    graph = sc.trace(model, inputs)
    plan = graph.random_plan(0.3, seed=2)
    axes = [(path, dim) for path, cut in plan.tensors.items() for dim in cut.removed]
    assert len(axes) >= 6
    for path, dim in axes:
        wrong = sc.apply(model, tampered(plan, path, dim))
        proof = sc.verify(model, wrong, plan, inputs, graph=graph)
        assert not proof.holds, (path, dim)
        assert "BROKEN" in str(proof)


@pytest.mark.parametrize("path", ["norm.running_mean", "head.weight", "b.bias", "a.weight"])
def test_a_coupled_axis_left_out_breaks_the_law(path: str) -> None:
    model, inputs = network("residual")
    plan = sc.trace(model, inputs).plan({"stem": [1, 2]})
    left = {name: cut for name, cut in plan.tensors.items() if name != path}
    wrong = sc.apply(model, dataclasses.replace(plan, tensors=left))
    with pytest.raises(LawError, match="does not run"):
        sc.verify(model, wrong, plan, inputs)


def test_zeroing_writers_is_not_the_law() -> None:
    """BatchNorm's shift stands between: a zeroed kernel is another function."""
    model, x = network("residual")
    small = sc.delete_channels(model, {"stem": [1]}, x)
    with torch.no_grad():
        model.stem.weight[1] = 0
        model.b.weight[1] = 0
        model.b.bias[1] = 0
    assert relative_error(call(model, x), call(small, x)) > 1e-6


def test_a_broken_model_gives_a_proof_that_does_not_hold() -> None:
    model, x = network("lenet")
    plan = sc.trace(model, x).plan({"conv1": [0]})
    small = sc.apply(model, plan)
    with torch.no_grad():
        small.fc1.weight[0, 0] = float("nan")
    assert not sc.verify(model, small, plan, x).holds
    small.fc2 = nn.Linear(20, 5).double()
    with pytest.raises(LawError, match="shape"):
        sc.verify(model, small, plan, x)


def test_inputs_by_name_may_come_in_any_order() -> None:
    model, inputs = network("dicts")
    graph = sc.trace(model, inputs)
    plan = graph.random_plan(0.3)
    turned = dict(reversed(list(inputs.items())))
    assert sc.verify(model, sc.apply(model, plan), plan, turned, graph=graph).holds
