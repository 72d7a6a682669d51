"""The laws on networks that nobody wrote."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.generated import Generated, Spec, specs
from tests.support import call, doubled, relative_error, snapshot

import secateurs as sc
from secateurs.cost import Cost


def built(spec: Spec) -> tuple[Generated, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return doubled(Generated(spec)), torch.randn(2, 3, 8, 8).double()


@settings(max_examples=30)
@given(specs(), st.integers(0, 99))
def test_the_law_holds_on_generated_networks(spec: Spec, seed: int) -> None:
    model, x = built(spec)
    before = snapshot(model)
    graph = sc.trace(model, x)
    for exact_only in (True, False):
        plan = graph.random_plan(0.35, seed=seed, exact_only=exact_only)
        assert sc.Plan.from_json(plan.to_json()) == plan
        small = sc.apply(model, plan)
        proof = sc.verify(model, small, plan, x, graph=graph)
        assert proof.max_relative_error <= 1e-10
        assert Cost(graph).of("params", graph.select(plan.groups)) == sum(
            p.numel() for p in small.parameters()
        )
    assert snapshot(model) == before
    assert len(graph) > 0


@settings(max_examples=30)
@given(specs(), st.data())
def test_any_plan_of_valid_steps_is_valid(spec: Spec, data: st.DataObject) -> None:
    """Every subset that respects the blocks can be planned, cut, and composed with another."""
    model, x = built(spec)
    graph = sc.trace(model, x)
    units = {}
    for group in graph:
        blocks = group.blocks()
        count = data.draw(st.integers(0, min(len(block) for block in blocks) - 1))
        orders = [data.draw(st.permutations(block.tolist())) for block in blocks]
        units[group.name] = [i for order in orders for i in order[:count]]
    plan = graph.plan(units)
    small = sc.apply(model, plan)
    assert sc.verify(model, small, plan, x, graph=graph).holds
    again = sc.trace(small, x).random_plan(0.3, exact_only=False)
    composed = sc.apply(model, plan.then(again))
    assert relative_error(call(sc.apply(small, again), x), call(composed, x)) == 0


@settings(max_examples=15)
@given(specs())
def test_generated_networks_are_scored_as_they_are_batched(spec: Spec) -> None:
    # PyTorch's own gradient is wrong there: InstanceNorm on CPU, given a channels-last gradient.
    assume(spec.head != "nhwc" or all(norm != "instance" for _, _, norm in spec.blocks))
    model, x = built(spec)
    graph = sc.trace(model, x)
    more = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()

    def objective(net: object, batch: torch.Tensor) -> torch.Tensor:
        return net(batch).flatten(1).square().sum(1)

    whole = sc.score(model, graph, [more], objective=objective)
    parts = sc.score(model, graph, [more[:1], more[1:]], objective=objective)
    for group in graph:
        a, b = (torch.from_numpy(scores[group.name]) for scores in (whole, parts))
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)
