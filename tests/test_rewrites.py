"""A number is rewritten where the code surely runs the copy and all its runs agree, or refused."""

from __future__ import annotations

import copy
import functools
import io
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support import doubled
from torch import Tensor, nn

import secateurs as sc

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python keeps the line of a call only"
)
SCALE = 1.0


def take(y: Tensor) -> Tensor:
    return y[:, :8] * SCALE


taken: Any = functools.partial(take)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.out = nn.Linear(8, 16), nn.Linear(8, 2), nn.Linear(1, 2)
        self.kept = self.first
        self.heads = 4

    def first(self, y: Tensor) -> Tensor:
        return y[:, :8]

    second = first

    def end(self, *parts: Tensor) -> Tensor:
        return sum((i + 1) * self.out(y.flatten(1).sum(1, True)) for i, y in enumerate(parts))


class Alias(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.second(self.a(x)))


class Kept(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.kept(self.a(x)))


class Super(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(super().first(self.a(x)))


class ByClass(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(Net.first(self, self.a(x)))


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(self.hook)

    def hook(self, module: nn.Module, given: Any, made: Tensor) -> Tensor:
        return made[:, :8]

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.a(x))


class Called(Net):
    def __call__(self, x: Tensor) -> Tensor:
        return self.end(self.a(x)[:, :8])


class Partial(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.end(take(y), taken(y))


class Whole(Net):
    """Of the first, PyTorch records no slice: eight are all there are."""

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.first(x), self.first(self.a(x)))


class Narrowed(Net):
    """The start of the second run stands where the length of the first stands."""

    def forward(self, x: Tensor) -> Tensor:
        return self.end(*[self.a(x).narrow(1, i * 6, 6) for i in range(2)])


class Counted(Net):
    """One run of the count must become less, the other stay."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 2)

    def repeated(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(4, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x).view(-1, 2, 4), self.repeated(self.k(x)).view(-1, 2, 4)
        return self.end(q * k, self.repeated(self.c(x)))


@pytest.mark.parametrize(
    ("make", "group"),
    [(make, "a") for make in
     (Alias, Kept, Super, ByClass, Hooked, Called, Partial, Whole, Narrowed)]
    + [(Counted, "q:neuron")],
)  # fmt: skip
def test_what_would_not_be_heard_or_agree_is_refused(make: Any, group: str) -> None:
    model, x = doubled(make()), torch.randn(3, 8).double()
    assert group not in [found.name for found in sc.trace(model, x)]
    served = sc.trace(model, x, replay=True)
    if make is not Called:  # a static program stands in for forward
        plan = served.plan({group: [1]})
        assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12


class TwoCallers(Net):
    def one(self, y: Tensor) -> Tensor:
        return take(y)

    def two(self, y: Tensor) -> Tensor:
        return take(y) * 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.end(self.one(y), self.two(y))


class Renamed(Net):
    def run(self, x: Tensor) -> Tensor:
        return self.end(self.a(x)[:, :8])

    forward = run


class ByKeyword(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.narrow(self.a(x), length=8, start=8, dim=1))


class Handed(Net):
    """PyTorch's functions in Python hand arguments on otherwise than they are written."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = F.layer_norm(y, normalized_shape=[16]) + y.unflatten(dim=1, sizes=(16, 1)).flatten(1)
        two = torch.split(y, split_size_or_sections=[6, 10], dim=1)
        return self.end(*two, *y.split([6, 10], 1))


class Chained(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = (self.a(x)
             .view(-1, 16))  # fmt: skip
        return self.end(y.relu())


SURE = [TwoCallers, Renamed, ByKeyword, Handed, Chained]


@pytest.mark.parametrize("make", SURE, ids=[make.__name__ for make in SURE])
def test_what_is_sure_is_rewritten(make: Any) -> None:
    model, x = doubled(make()), torch.randn(3, 8).double()
    plan = sc.trace(model, x).plan({"a": [1, 7, 9]})
    assert plan.edits
    assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12


def test_groups_by_keyword_are_told_from_the_padding() -> None:
    class Depthwise(Net):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.w = nn.Linear(8, 4), nn.Parameter(torch.randn(4, 1, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(x)[:, :, None].expand(-1, -1, 12).sigmoid()
            return self.end(F.conv1d(y, self.w, groups=4, padding=4))

    model, x = doubled(Depthwise()), torch.randn(3, 8).double()
    plan = sc.trace(model, x).plan({"b": [1]})
    assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12


def cut() -> tuple[nn.Module, Tensor]:
    model, x = doubled(TwoCallers()), torch.randn(3, 8).double()
    return sc.apply(model, sc.trace(model, x).plan({"a": [1, 2, 9]})), x


def test_a_rewritten_module_is_the_same_after_a_pickle_and_a_copy() -> None:
    small, x = cut()
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for again in (torch.load(file, weights_only=False), copy.deepcopy(small), copy.copy(small)):
        assert torch.equal(again(x), small(x))
        assert type(again) is type(small)
    plan = sc.trace(small, x).plan({"a": [0]})
    assert sc.verify(small, sc.apply(small, plan), plan, x).max_relative_error <= 1e-12


def test_a_replica_computes_with_its_own_weights() -> None:
    small, x = cut()
    replica = small._replicate_for_data_parallel()
    replica.a, replica.out = copy.deepcopy(small.a), small.out
    nn.init.zeros_(replica.a.weight)
    nn.init.zeros_(replica.a.bias)
    assert torch.allclose(replica(x), 3 * small.out.bias.expand(3, -1))


def test_rewritten_code_sees_its_module_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    small, x = cut()
    bias = 3 * small.out.bias
    before = small(x) - bias
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert torch.allclose(small(x) - bias, 2 * before)


def test_a_number_is_rewritten_where_a_size_was_restated_before() -> None:
    class Both(Net):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            z = self.b(x).reshape(-1, self.heads, x.shape[1] // self.heads)
            return self.end(z, self.a(x)[:, :8])

    model, x = doubled(Both()), torch.randn(3, 8).double()
    first = sc.trace(model, x).plan({"b:neuron": [0]})
    assert first.restated
    small = sc.apply(model, first)
    second = sc.trace(small, x).plan({"a": [1, 9]})
    assert second.edits
    assert sc.verify(small, sc.apply(small, second), second, x).max_relative_error <= 1e-12


class Restated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.p, self.out = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(1, 2)
        self.heads, self.groups = 4, 4

    def forward(self, x: Tensor) -> Tensor:
        y = self.q(x).reshape(-1, self.heads, x.shape[1] // self.heads)
        z = self.p(x).reshape(-1, self.groups, x.shape[1] // self.groups)
        return self.out(y.flatten(1).sum(1, True) + z.flatten(1).sum(1, True))


@pytest.mark.parametrize("last", ["p:neuron", "q:neuron"])
def test_plans_compose_for_a_model_that_states_sizes_already(last: str) -> None:
    whole, x = doubled(Restated()), torch.randn(4, 24).double()
    model = sc.apply(whole, sc.trace(whole, x).plan({"p:neuron": [0]}))
    graph = sc.trace(model, x)
    first = graph.plan({"q:neuron": [0]})
    small = sc.apply(model, first)
    second = sc.trace(small, x).plan({last: [0]})
    both = sc.Plan.from_json(first.then(second, graph).to_json())
    made = sc.apply(model, both)
    assert made.stated == sc.apply(small, second).stated
    assert sc.verify(model, made, both, x).max_relative_error <= 1e-12
