"""One network for each fault that was found."""

from __future__ import annotations

import pytest
import torch
from tests import oddities
from tests.oddities import ODDITIES
from tests.support import call, doubled, relative_error
from torch import Tensor, nn

import secateurs as sc


def built(make: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return doubled(make()), torch.randn(2, 3, 8, 8).double()


@pytest.mark.parametrize("make", ODDITIES)
def test_the_recorded_program_is_the_model(make: type[nn.Module]) -> None:
    model, x = built(make)
    plan = sc.trace(model, x).plan({})
    assert sc.verify(model, model, plan, x).max_relative_error <= 1e-12


def _law(make: type[nn.Module]) -> None:
    model, x = built(make)
    graph = sc.trace(model, x)
    for seed in range(8):
        plan = graph.random_plan(0.4, seed=seed, exact_only=False)
        proof = sc.verify(model, sc.apply(model, plan), plan, x, graph=graph)
        assert proof.max_relative_error <= 1e-10


@pytest.mark.parametrize(
    "make",
    ODDITIES,
)
def test_whatever_is_offered_keeps_the_law(make: type[nn.Module]) -> None:
    _law(make)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (oddities.Rolled, "rolled"),
        (oddities.Picked, "indexed by a tensor"),
        (oddities.Functional, "512"),
    ],
)
def test_what_cannot_be_cut_says_why(make: type[nn.Module], reason: str) -> None:
    graph = sc.trace(*built(make))
    frozen = {(f.tensor, f.dim): f.reason for f in graph.frozen}
    assert reason in frozen["conv.weight", 0]


def test_equal_integers_in_one_call_are_told_apart() -> None:
    model, x = built(oddities.Convoluted)
    small = sc.delete_channels(model, {"conv": [0, 1]}, x)
    assert small.norm.normalized_shape == (6, 8, 8)


def test_groups_of_one_unit_each_are_not_offered() -> None:
    graph = sc.trace(*built(oddities.GroupedAfterGroups))
    assert all(min(map(len, group.blocks())) > 1 for group in graph)
    assert [group.name for group in graph] == ["conv:channel", "grouped"]


def test_a_grouped_kernel_that_becomes_depthwise_composes() -> None:
    """Its blocks are runs of the original rows, of which the second cut takes some whole."""
    model, x = built(oddities.GroupedAfterGroups)
    first = sc.trace(model, x).plan({"conv:channel": [0]})
    once = sc.apply(model, first)
    assert once.grouped.weight.shape == (8, 1, 1, 1)
    graph = sc.trace(once, x)
    second = graph.plan({"grouped": [int(block[0]) for block in graph["grouped"].blocks()]})
    twice = sc.apply(once, second)
    direct = sc.apply(model, sc.Plan.from_json(first.then(second).to_json()))
    assert relative_error(call(twice, x), call(direct, x)) == 0


def test_sizes_taken_from_the_tensor_itself_need_no_mending() -> None:
    graph = sc.trace(*built(oddities.SizedBySelf))
    assert [(group.name, group.size) for group in graph] == [("conv", 6)]
