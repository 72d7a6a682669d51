"""Sizes that decide more than a size: which way the code goes, or what an operation takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support import doubled
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import MendError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.out = nn.Linear(4, 16), nn.Linear(4, 3), nn.Linear(1, 2)
        self.behind, self.w = nn.Linear(18, 2), nn.Parameter(torch.randn(6))
        self.table = nn.Parameter(torch.randn(16, 16))
        self.width = 16

    def end(self, y: Tensor) -> Tensor:
        return self.out(y.flatten(1).sum(1, keepdim=True))


class Equal(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.end(y.relu() if y.shape[1] == self.width else y.sigmoid())


class Divides(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.end(y.sigmoid() if y.size(1) % 16 else y.relu())


class Least(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.end(y) / min(y.shape[1], 15)


class Looked(Net):
    """A dictionary asks whether two keys are equal."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.end(y) * {16: 2.0, 12: 3.0}[y.shape[1]]


class Shape(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.end(y.relu() if y.shape == (3, 16) else y)


class OfNothing(Net):
    """A tensor that is made for its shape alone is not followed."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.end(y) / y[:, 8:].shape[1]


class Unfolded(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.a(x).unfold(1, 16, 16).relu())


class Diagonal(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.a(x) * self.table.diagonal())


class Cropped(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.pad(self.a(x), (0, -8)).relu())


@pytest.mark.parametrize(
    "make",
    [Divides, Least, Looked, Shape, OfNothing, Unfolded, Diagonal, Cropped],
    ids=lambda make: make.__name__,
)
def test_a_size_that_decides_more_is_not_cut(make: Any) -> None:
    graph = sc.trace(doubled(make()), torch.randn(3, 4).double())
    assert "a" not in [group.name for group in graph]
    assert any(axis.tensor == "a.weight" and axis.dim == 0 for axis in graph.frozen)
    assert all(axis.reason.count("serves such a cut") <= 1 for axis in graph.frozen)


def test_an_attribute_that_equals_a_size_stays_equal() -> None:
    model, x = doubled(Equal()), torch.randn(3, 4).double()
    plan = sc.trace(model, x).plan({"a": [1, 2, 9]})
    assert plan.attributes["width"] == (16, 13)
    assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12


class Threshold(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        assert y.shape[1] == self.a.out_features > 1
        return self.end(y.relu() if y.shape[1] > 8 else y.sigmoid())


def test_a_comparison_is_asked_again_of_each_plan() -> None:
    model, x = doubled(Threshold()), torch.randn(3, 4).double()
    graph = sc.trace(model, x)
    plan = graph.plan({"a": range(7)})
    assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12
    with pytest.raises(MendError, match="would make 8 and 8"):
        graph.plan({"a": range(8)})


class Outer(Net):
    """The second axis repeats nothing: along it the factors differ."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)[:, :6]
        return self.behind((y.sum(1)[:, None, None].expand(-1, 3, 6) * y[:, None, :]).flatten(1))


class ToldApart(Net):
    """The repetition is merged first, and told apart later."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)[:, :, None].expand(-1, 3, 6)
        return self.behind(y.reshape(3, -1)) + self.end(y * self.w)


class Twice(Net):
    """As many copies must go of one as of the other, for one number says how many there are."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)[:, :, None].expand(-1, 3, 6)
        z = y.reshape(3, -1).relu() * self.behind.bias[0]
        return self.behind(y.reshape(3, -1)) + F.linear(z, self.behind.weight.sigmoid())


@pytest.mark.parametrize("make", [Outer, ToldApart, Twice], ids=lambda make: make.__name__)
def test_what_is_told_apart_is_no_copy(make: Any) -> None:
    model, x = doubled(make()), torch.randn(3, 4).double()
    graph = sc.trace(model, x)
    assert len(graph) > 0
    for group in graph:
        plan = graph.plan({group.name: [int(block[0]) for block in group.blocks()]})
        assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12


@pytest.mark.parametrize("make", [Least, OfNothing], ids=lambda make: make.__name__)
def test_replay_goes_the_way_that_was_traced(make: Any) -> None:
    model, x = doubled(make()), torch.randn(3, 4).double()
    plan = sc.trace(model, x, replay=True).plan({"a": [1, 2, 9]})
    assert plan.replay
    assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12
