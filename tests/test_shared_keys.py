"""Queries that share keys, where counts, dims and sizes are all the same number."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support import call, doubled, relative_error
from torch import Tensor, nn

import secateurs as sc


class Shared(nn.Module):
    """Four heads of queries, two of keys and values, each of two dims."""

    def __init__(self) -> None:
        super().__init__()
        self.dims, self.times, self.kept = 2, 2, 2
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.out = nn.Linear(8, 8)

    def repeat(self, k: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, self.dims) for layer in (self.q, self.k, self.v))
        q, k, v = q.transpose(1, 2), self.repeat(k), self.repeat(v)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


class AfterTime(Shared):
    def repeat(self, k: Tensor) -> Tensor:
        return k.repeat_interleave(2, dim=2).transpose(1, 2)


class BeforeTime(Shared):
    def repeat(self, k: Tensor) -> Tensor:
        return torch.repeat_interleave(k.transpose(1, 2), 2, 1)


class ByName(Shared):
    def repeat(self, k: Tensor) -> Tensor:
        return torch.repeat_interleave(k, dim=2, repeats=2).transpose(1, 2)


class ByAttribute(Shared):
    def repeat(self, k: Tensor) -> Tensor:
        return k.repeat_interleave(self.times, dim=2).transpose(1, 2)


class ByAttributeAndName(Shared):
    def repeat(self, k: Tensor) -> Tensor:
        return k.transpose(1, 2).repeat_interleave(repeats=self.times, dim=1)


class Expanded(Shared):
    def repeat(self, k: Tensor) -> Tensor:
        n, t = k.shape[:2]
        k = k.transpose(1, 2)[:, :, None]
        return k.expand(n, 2, 2, t, 2).reshape(n, 4, t, 2)


class ExpandedByShape(Shared):
    def repeat(self, k: Tensor) -> Tensor:
        k = k.transpose(1, 2)
        n, heads, t, dims = k.shape
        k = k[:, :, None, :, :].expand(n, heads, 2, t, dims)
        return k.reshape(n, heads * 2, t, dims)


class ReadForItsShape(Shared):
    """Nothing is known of a tensor of which only the shape is used."""

    def repeat(self, k: Tensor) -> Tensor:
        n, heads, t, dims = k.transpose(1, 2).shape
        k = k.transpose(1, 2)[:, :, None, :, :].expand(n, heads, 2, t, dims)
        return k.reshape(n, heads * 2, t, dims)


class ExpandedByAttributes(Shared):
    def repeat(self, k: Tensor) -> Tensor:
        n, t, _, dims = k.shape
        k = k.transpose(1, 2)[:, :, None].expand(-1, -1, self.times, -1, -1)
        return k.reshape(n, self.kept * self.times, t, dims)


FORMS = [AfterTime, BeforeTime, ByName, ByAttribute, ByAttributeAndName, Expanded,
         ExpandedByShape, ExpandedByAttributes]  # fmt: skip
NEEDS_COLUMNS = sys.version_info < (3, 11)


class Net(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(5, 8), attention, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.attention(x))


def traced(make: Any, *shape: int) -> tuple[nn.Module, Tensor, sc.Graph]:
    torch.manual_seed(0)
    model, x = doubled(Net(make())), torch.randn(*shape, 5).double()
    return model, x, sc.trace(model, x)


@pytest.mark.parametrize("shape", [(2, 2), (3, 5)], ids=["all alike", "apart"])
@pytest.mark.parametrize("make", FORMS)
def test_every_group_is_offered_and_keeps_the_law(make: Any, shape: tuple[int, int]) -> None:
    model, x, graph = traced(make, *shape)
    assert {"kv-head", "head", "head-dim"} <= {group.kind for group in graph}
    for group in graph:
        for at in (0, -1):
            plan = graph.plan({group.name: [int(block[at]) for block in group.blocks()]})
            small = sc.apply(model, sc.Plan.from_json(plan.to_json()))
            assert sc.verify(model, small, plan, x).max_relative_error <= 1e-12, group.name


@pytest.mark.parametrize("make", FORMS)
def test_cuts_of_all_groups_hold_at_other_sizes_and_compose(make: Any) -> None:
    model, x, graph = traced(make, 2, 2)
    plan = graph.random_plan(0.5, exact_only=False)
    small = sc.apply(model, plan)
    for inputs in (x, torch.randn(3, 4, 5).double()):
        assert sc.verify(model, small, plan, inputs).max_relative_error <= 1e-12
    again = sc.trace(small, x).random_plan(0.4, seed=2, exact_only=False)
    twice, both = sc.apply(small, again), sc.apply(model, plan.then(again))
    assert relative_error(call(twice, x), call(both, x)) <= 1e-12


def test_a_shape_of_what_is_not_used_is_no_reason_to_fail() -> None:
    model, x, graph = traced(ReadForItsShape, 2, 2)
    assert {group.kind for group in graph} >= {"neuron"}
    plan = graph.random_plan(0.5, exact_only=False)
    assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12
