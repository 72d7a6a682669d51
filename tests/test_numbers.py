"""Numbers in the code: one is rewritten where that very call writes it, and nowhere else."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support import call, doubled, relative_error
from torch import Tensor, nn

import secateurs as sc

WIDTH = {"hidden": 6}


class Hidden(nn.Module):
    """A size of unknown origin equals a number that stands elsewhere in the same function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(-1, WIDTH["hidden"])
        return self.out(F.relu(x) * 6)


class SameCall(Hidden):
    """The number is in the same expression, but in the call before."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x.mul(6)).div(6).view(-1, WIDTH["hidden"]))


class Elsewhere(Hidden):
    """It is written in the call, and used for something else beside."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).view(-1, 6) * 6 / 6)


class Twice(nn.Module):
    """The same number twice in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 9), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).view(-1, 3, 3).tanh().sum(1))


class Folded(Hidden):
    """Said by arithmetic, and by names that are assigned once."""

    def forward(self, x: Tensor) -> Tensor:
        rows, width = 2, 3
        x = torch.reshape(self.a(x), (-1, 2 * 3)).unflatten(-1, (rows, width))
        return self.out(x.tanh().flatten(1))


class Reassigned(Hidden):
    """A name that is assigned twice is not known to be either."""

    def forward(self, x: Tensor) -> Tensor:
        width = 5
        x = x.view(-1, width)
        width = 6
        return self.out(self.a(x).view(-1, width))


class Looped(nn.Module):
    """One call, of which two runs need different numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 6)])
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)).view(-1, 6)
        return self.out(x)


class Indexed(nn.Module):
    """Of these numbers only one is a bound of the slice that is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 8, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)[..., None, :].expand(-1, -1, 5, -1)
        return self.out(x[:, 4, 4, 4:] + x[:3, 2, 2:4, :4].sum(1))


def flat(x: Tensor) -> Tensor:
    return x.view(-1, 6)


class Helped(Hidden):
    """The number is in a plain function that the method calls."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(flat(self.a(x)) / 6)


def traced(make: type[nn.Module], *shape: int) -> tuple[nn.Module, Tensor, sc.Graph]:
    torch.manual_seed(0)
    model, x = doubled(make()), torch.randn(*shape or (2, 5)).double()
    return model, x, sc.trace(model, x)


CERTAIN: list[tuple[type[nn.Module], tuple[int, ...]]] = [
    (Elsewhere, (2, 5)), (Twice, (2, 5)), (Folded, (2, 5)), (Helped, (2, 5)), (Indexed, (3, 5, 5)),
]  # fmt: skip


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python keeps the line of a call only")
@pytest.mark.parametrize(("make", "shape"), CERTAIN, ids=[make.__name__ for make, _ in CERTAIN])
def test_a_number_is_rewritten_in_its_call_alone(make: Any, shape: tuple[int, ...]) -> None:
    model, x, graph = traced(make, *shape)
    assert "a" in [group.name for group in graph]
    for group in graph:
        for units in ([0], [group.size - 1]):
            plan = sc.Plan.from_json(graph.plan({group.name: units}).to_json())
            small = sc.apply(model, plan)
            assert sc.verify(model, small, plan, x).max_relative_error <= 1e-12
    again = sc.trace(small, x).random_plan(0.4, seed=1)
    twice = sc.apply(small, again)
    assert sc.verify(small, twice, again, x).max_relative_error <= 1e-12
    both = sc.apply(model, plan.then(again))
    assert relative_error(call(twice, x), call(both, x)) <= 1e-12


@pytest.mark.parametrize("make", [Hidden, SameCall, Reassigned, Looped])
def test_a_number_that_is_not_sure_is_refused(make: Any) -> None:
    model, x, graph = traced(make)
    assert not len(graph)
    reasons = {frozen.reason for frozen in graph.frozen if frozen.tensor.startswith("out.weight")}
    assert any("test_numbers.py" in reason for reason in reasons)
    served = sc.trace(model, x, replay=True)
    plan = served.plan({served.groups[0].name: [1]})
    assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12


def test_what_lines_alone_do_not_tell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10))
    names = {make: [g.name for g in traced(make)[2]] for make in (Elsewhere, TwoInALine)}
    assert names == {Elsewhere: ["a"], TwoInALine: []}


class TwoInALine(Hidden):
    """Two calls that read alike stand in one line."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).view(-1, 6).tanh().view(-1, 6))


def test_two_calls_that_read_alike_are_told_apart() -> None:
    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 6)
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y = y.view(-1, 6)
            y = self.b(torch.tanh(y))
            y = y.view(-1, 6)
            return self.out(y)

    model, x, graph = traced(Alike)
    for units in ({"a": [1]}, {"b": [0, 5]}, {"a": [2, 3], "b": [4]}):
        plan = graph.plan(units)
        assert len(plan.edits) == len(units)
        assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12
