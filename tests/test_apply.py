"""What a cut model is: the same class, mended, trainable, with its ties and its flags."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.networks import NETWORKS, HardView, network
from tests.support import call
from tests.zoo import ZOO, zoo_model
from torch import nn

import secateurs as sc


def cut(name: str, *, inplace: bool = False) -> tuple[nn.Module, nn.Module, Any]:
    model, inputs = network(name)
    plan = sc.trace(model, inputs).random_plan(0.3, exact_only=False)
    return model, sc.apply(model, plan, inplace=inplace), inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_in_place_gives_what_a_copy_gives(name: str) -> None:
    model, copied, inputs = cut(name)
    model, changed, _ = cut(name, inplace=True)
    assert changed is model
    for a, b in zip(call(copied, inputs), call(changed, inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_shares_nothing_with_the_model(name: str) -> None:
    model, small, _ = cut(name)
    ours = {p.untyped_storage().data_ptr() for p in model.state_dict().values()}
    theirs = {p.untyped_storage().data_ptr() for p in small.state_dict().values()}
    assert not ours & theirs
    assert isinstance(small, type(model))


def test_in_place_keeps_parameter_objects_and_flags() -> None:
    model, x = network("residual")
    model.a.weight.requires_grad_(False)
    sc.trace(model, x)
    model(x).sum().backward()
    objects = {name: id(p) for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sc.delete_channels(model, {"stem": [1], "a": [0, 5]}, x, inplace=True)
    assert {name: id(p) for name, p in model.named_parameters()} == objects
    assert not model.a.weight.requires_grad
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    before = model.b.weight.clone()
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.b.weight, before)


@pytest.mark.parametrize("inplace", [False, True])
def test_tied_weights_stay_tied_and_frozen_ones_frozen(inplace: bool) -> None:
    model, x = network("tied")
    model.encode.bias.requires_grad_(False)
    plan = sc.trace(model, x).plan({"encode": [0, 3]})
    small = sc.apply(model, plan, inplace=inplace)
    assert small.alias is small.encode
    assert small.encode.weight.shape == (8, 6)
    assert not small.encode.bias.requires_grad
    assert small.encode.weight.requires_grad

    twin = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)).double()
    twin[1].weight = twin[0].weight
    graph = sc.trace(twin, x)
    for group in graph:
        cut_twin = sc.apply(twin, graph.plan({group.name: [0]}))
        assert cut_twin[1].weight is cut_twin[0].weight


# (network, units that go, what the attributes say afterwards)
MENDED = [
    ("lenet", {"conv2": [0, 1]}, {"conv2.out_channels": 8, "fc1.in_features": 128}),
    ("residual", {"stem": [0]}, {"stem.out_channels": 7, "norm.num_features": 7}),
    ("residual", {"stem": [0]}, {"a.in_channels": 7, "b.out_channels": 7, "head.in_features": 7}),
    ("groupnorm", {"a": [0]}, {"norm_a.num_groups": 3, "norm_a.num_channels": 12}),
    ("groupnorm", {"a:channel": [1]}, {"norm_a.num_groups": 4, "norm_a.num_channels": 12}),
    ("layernorm_mlp", {"a": [0, 1, 2]}, {"norm.normalized_shape": (9,), "b.in_features": 9}),
    ("grouped", {"stem": [0, 2, 4, 6]}, {"stem.out_channels": 4, "depthwise.groups": 4}),
    ("grouped", {"stem": [0, 2, 4, 6]}, {"depthwise.out_channels": 8, "depthwise.in_channels": 4}),
    ("grouped", {"stem": [0, 2, 4, 6]}, {"grouped.in_channels": 8, "grouped.groups": 4}),
    ("grouped", {"depthwise": [1]}, {"depthwise.groups": 8, "depthwise.out_channels": 8}),
    ("shuffled", {"conv": [0]}, {"conv.out_channels": 28, "shuffle.upscale_factor": 2}),
    ("instance1d", {"conv": [0]}, {"norm.num_features": 7, "act.num_parameters": 7}),
    ("attribute_slice", {"conv": [0, 63]}, {"k": 39, "a.in_channels": 39, "b.in_channels": 23}),
    ("chunks", {"conv": [0, 9]}, {"a.in_channels": 7, "b.in_channels": 7}),
]


@pytest.mark.parametrize(("name", "units", "wanted"), MENDED)
def test_attributes_say_the_new_sizes(name: str, units: dict, wanted: dict[str, Any]) -> None:
    model, inputs = network(name)
    small = sc.delete_channels(model, units, inputs)
    for path, value in wanted.items():
        module, _, attribute = path.rpartition(".")
        found = getattr(small.get_submodule(module), attribute)
        assert found == value, path
        assert type(found) is type(value)


# ---------------------------------------------------------------------- numbers in the code
def test_a_number_in_the_code_is_mended_for_that_module_alone() -> None:
    model, x = network("hard_view")
    small = sc.delete_channels(model, {"conv2": [0, 5]}, x)
    assert small.head.in_features == 62 * 64
    other = HardView().double()
    assert other(x).shape == (2, 4)
    assert model(x).shape == (2, 4)
    again = sc.delete_channels(small, {"conv2": [0], "conv1": [2]}, x)
    assert again.head.in_features == 61 * 64
    assert small(x).shape == copy.deepcopy(again)(x).shape


FLAT = {"width": 1024}


class OutOfReach(nn.Module):
    """The number is written in no method, nor in a function that one calls by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(1024, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.head(x.view(-1, FLAT["width"]))


def test_a_number_that_cannot_be_mended_freezes_with_file_and_line() -> None:
    graph = sc.trace(OutOfReach(), torch.zeros(2, 3, 8, 8))
    assert [group.name for group in graph] == ["conv1"]
    frozen = {(f.tensor, f.dim): f.reason for f in graph.frozen}
    for axis in (("conv2.weight", 0), ("conv2.bias", 0), ("head.weight", 1)):
        assert "test_apply.py" in frozen[axis]
        assert "1024" in frozen[axis]


# ---------------------------------------------------------------------- life after the cut
@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_model_trains_copies_and_can_be_cut_again(name: str) -> None:
    _, small, inputs = cut(name)
    small = copy.deepcopy(small).train()
    args = () if isinstance(inputs, dict) else inputs
    args = args if isinstance(args, tuple) else (args,)
    output = small(*args, **(inputs if isinstance(inputs, dict) else {}))
    leaves = torch.utils._pytree.tree_leaves(output)
    sum(t.square().sum() for t in leaves if isinstance(t, torch.Tensor)).backward()
    for path, parameter in small.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.shape == parameter.shape
    again = sc.trace(small, inputs).random_plan(0.2, seed=7, exact_only=False)
    assert sc.verify(small, sc.apply(small, again), again, inputs).holds
    assert small.training


@pytest.mark.parametrize("name", ZOO)
def test_a_cut_network_of_torchvision_trains(name: str) -> None:
    model, x = zoo_model(name)
    small = sc.apply(model, sc.trace(model, x).random_plan(0.3), inplace=True).train()
    outputs = small(x)
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        output.square().mean().backward(retain_graph=True)
    for path, parameter in small.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path


def test_deleting_by_any_member_is_deleting_the_group() -> None:
    model, x = network("residual")
    one = sc.delete_channels(model, {"norm": [2]}, x)
    two = sc.delete_channels(model, {"stem": [2]}, x)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_an_empty_plan_changes_nothing() -> None:
    model, x = network("lenet")
    plan = sc.trace(model, x).plan({})
    assert len(plan) == 0
    assert torch.equal(sc.apply(model, plan)(x), model(x))


def test_models_are_freed_as_soon_as_nobody_holds_them() -> None:
    """Not only when the garbage collector comes round: a cut of a large model is a large copy."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        plan = sc.trace(model, torch.zeros(1, 4)).plan({"0": [1]})
        small = sc.apply(model, plan)
        sc.verify(model, small, plan, torch.zeros(1, 4))
        watched = [weakref.ref(thing) for thing in (model, model[0].weight, small, small[0].weight)]
        del model, small
        assert [thing() for thing in watched] == [None] * 4
    finally:
        if collecting:
            gc.enable()
