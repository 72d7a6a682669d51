"""The laws on networks that nobody wrote; `make fuzz` tries thousands."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.generated import Network, image_networks, networks, small_networks
from tests.generated.brute import Search, axes, faults
from tests.generated.laws import check
from torch import Tensor, nn

import secateurs as sc
from secateurs.cost import Cost
from secateurs.errors import UnscoredError

TRIES = 500  # sets of slices, in one network


@settings(max_examples=60)
@given(networks(), st.integers(0, 99))
def test_the_laws_hold_on_generated_networks(network: Network, units: int) -> None:
    check(network, units)


# ---------------------------------------------------------------------- against brute force
@settings(max_examples=40)
@given(small_networks())
def test_groups_are_what_a_search_of_all_subsets_finds(network: Network) -> None:
    model, inputs = network.module(), network.example()
    assume(sum(axes(model).values()) <= 16)
    search = Search(model, inputs)
    assume(search.tries() <= TRIES)
    assert not faults(sc.trace(model, inputs), search.clean())


class Pair(nn.Module):
    """A hidden layer of three: three units of three slices, and what goes with several of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def searched(model: nn.Module) -> tuple[sc.Graph, set]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(6, 1).double()
    return sc.trace(model, x), Search(model, (x,)).clean()


def test_the_search_finds_what_a_person_would() -> None:
    _, clean = searched(Pair().double())
    unit = [{("a.weight", 0, i), ("a.bias", 0, i), ("b.weight", 1, i)} for i in range(3)]
    assert clean == {*map(frozenset, unit), *(frozenset(unit[i] | unit[j])
                                              for i, j in ((0, 1), (0, 2), (1, 2)))}  # fmt: skip


def test_a_coarser_group_and_a_missed_coupling_are_found() -> None:
    graph, clean = searched(Pair().double())
    assert not faults(graph, clean)
    coarse = faults(sc.trace(Tied().double(), torch.randn(6, 1).double()), clean)
    assert any(fault.startswith("coarse") for fault in coarse)
    missed = faults(graph, {cut for cut in clean if len(cut) > 3})
    assert any(fault.startswith("missed") for fault in missed)


class Tied(Pair):
    """The same tensors, two of whose units go together."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x))
        return self.b(y + y.flip(-1))


# ---------------------------------------------------------------------- other verbs
@settings(max_examples=10)
@given(image_networks(), st.integers(0, 99))
def test_the_parameters_that_a_plan_leaves_are_counted(network: Network, seed: int) -> None:
    model, inputs = network.module(), network.example()
    graph = sc.trace(model, inputs)
    plan = graph.random_plan(0.35, seed=seed, exact_only=False)
    left = sum(p.numel() for p in sc.apply(model, plan).parameters())
    assert Cost(graph).of("params", graph.select(plan.groups)) == left


@settings(max_examples=15)
@given(image_networks())
def test_generated_networks_are_scored_as_they_are_batched(network: Network) -> None:
    # PyTorch's own gradient is wrong there: InstanceNorm on CPU, given a channels-last gradient.
    assume("InstanceNorm" not in network.code)
    model, inputs = network.module(), network.example()
    graph = sc.trace(model, inputs)
    more = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()

    def objective(net: nn.Module, batch: Tensor) -> Tensor:
        return net(batch).flatten(1).square().sum(1)

    try:
        whole = sc.score(model, graph, [more], objective=objective)
    except UnscoredError:  # nothing but statistics reads its units
        return
    parts = sc.score(model, graph, [more[:1], more[1:]], objective=objective)
    assert {*whole, *whole.unscored} == {group.name for group in graph}
    for name in whole:
        a, b = (torch.from_numpy(scores[name]) for scores in (whole, parts))
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)
