"""Nothing but an in-place cut changes a user's model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.networks import NETWORKS, network
from tests.support import snapshot
from torch import nn

import secateurs as sc
from secateurs.errors import PlanError, TraceError

HOOKS = nn.modules.module._global_forward_pre_hooks, nn.modules.module._global_forward_hooks


def loss(output: Any, target: Any) -> torch.Tensor:
    leaves = torch.utils._pytree.tree_leaves(output)
    return sum(t.flatten(1).sum(1) for t in leaves if isinstance(t, torch.Tensor))


def trace(model: nn.Module, inputs: Any) -> None:
    sc.trace(model, inputs)


def cut_a_copy(model: nn.Module, inputs: Any) -> None:
    sc.apply(model, sc.trace(model, inputs).random_plan(0.3, exact_only=False))


def verify(model: nn.Module, inputs: Any) -> None:
    graph = sc.trace(model, inputs)
    plan = graph.random_plan(0.3, exact_only=False)
    sc.verify(model, sc.apply(model, plan), plan, inputs, graph=graph)


def score(model: nn.Module, inputs: Any) -> None:
    call = dict(inputs) if isinstance(inputs, dict) else inputs
    sc.score(model, sc.trace(model, inputs), [(call, None)], loss=loss)


@pytest.mark.parametrize("verb", [trace, cut_a_copy, verify, score])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_verb_leaves_every_bit_as_it_was(
    name: str, verb: Callable[[nn.Module, Any], None]
) -> None:
    model, inputs = network(name)
    model.train()
    next(iter(model.children()), model).eval()  # modes may differ from module to module
    before = snapshot(model)
    verb(model, inputs)
    assert snapshot(model) == before
    assert not any(HOOKS)
    assert torch.is_grad_enabled()


class Counts(nn.Module):
    """Keeps a tally of its runs, in every way that a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 8), nn.Linear(8, 2), nn.BatchNorm1d(8)
        self.register_buffer("in_place", torch.zeros(3))
        self.register_buffer("anew", torch.zeros(3))
        self.runs, self.sizes, self.fails = 0, (8, 2), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.in_place += 1
        self.anew = self.anew + 1
        self.runs += 1
        x = torch.relu(self.norm(self.a(x)))
        if self.fails:
            raise ValueError("on purpose")
        return self.b(x)


def test_tallies_kept_in_forward_are_put_back() -> None:
    model = Counts()
    before = snapshot(model)
    sc.trace(model, torch.zeros(3, 4))
    assert snapshot(model) == before


def test_a_forward_that_raises_leaves_every_bit_as_it_was() -> None:
    model = Counts()
    model.fails = True
    before = snapshot(model)
    with pytest.raises(TraceError, match="ValueError in 'Counts': on purpose"):
        sc.trace(model, torch.zeros(3, 4))
    assert snapshot(model) == before
    assert not any(HOOKS)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(3, 5), r"raised RuntimeError in 'a'.*\(3, 5\) float32 on cpu"),
        (torch.zeros(3, 4, dtype=torch.float64), "parameters are float32"),
        ((torch.zeros(3, 4), torch.zeros(3, 4)), "TypeError"),
        ({"y": torch.zeros(3, 4)}, "TypeError"),
        (torch.zeros(3, 4, device="meta"), "on meta"),
        (None, "holds no tensor"),
    ],
)
def test_inputs_that_do_not_run_are_refused(inputs: Any, message: str) -> None:
    model = Counts()
    before = snapshot(model)
    with pytest.raises(TraceError, match=message):
        sc.trace(model, inputs)
    assert snapshot(model) == before


def test_what_is_not_a_module_or_returns_no_tensor_is_refused() -> None:
    with pytest.raises(TraceError, match=r"torch\.nn\.Module"):
        sc.trace(lambda x: x, torch.zeros(3))

    class Says(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "nothing"

    with pytest.raises(TraceError, match="no tensor"):
        sc.trace(Says(), torch.zeros(3))


def test_a_refused_deletion_in_place_changes_nothing() -> None:
    model, inputs = network("lenet")
    before = snapshot(model)
    with pytest.raises(PlanError, match="out of range"):
        sc.delete_channels(model, {"conv1": [99]}, inputs, inplace=True)
    assert snapshot(model) == before


class Remembers(nn.Module):
    """Keeps what it made of a parameter until it trains, as the attention of LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.bias, self.known = nn.Parameter(torch.randn(8)), {}

    def train(self, mode: bool = True) -> nn.Module:
        self.known = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and "bias" not in self.known:
            self.known["bias"] = self.bias * 2
        bias = self.bias * 2 if self.training else self.known["bias"]
        return self.b(torch.relu(self.a(x) + bias))


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_what_a_module_remembers_is_left_alone_and_made_anew_where_it_was_cut(
    ran: bool, inplace: bool
) -> None:
    model, x = Remembers().double().eval(), torch.randn(3, 4).double()
    if ran:
        model(x)
    before = dict(model.known)
    graph = sc.trace(model, x)
    assert model.known == before
    assert {axis.tensor for axis in graph["a"].axes} >= {"bias", "a.weight", "b.weight"}
    gated = model.b.weight[:, 3:] @ torch.relu(model.a(x) + model.bias * 2)[:, 3:].T
    expected = gated.T + model.b.bias
    small = sc.apply(model, graph.plan({"a": [0, 1, 2]}), inplace=inplace)
    assert torch.allclose(small(x), expected)
    assert inplace or model.known == before


def test_freed_memory_is_not_taken_for_what_is_in_its_place_later() -> None:
    """A live value that was written to some memory made constants live that had been there."""

    class Looks(nn.Module):
        def __init__(self, constants: int) -> None:
            super().__init__()
            self.constants, self.fc = constants, nn.Linear(4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert bool(x.isfinite().all())  # so that it runs on values
            scale = sum(float(torch.zeros(2, 8).sum()) for _ in range(self.constants))
            return torch.zeros(2, 8).add_(self.fc(x)) + scale

    programs = [sc.trace(Looks(n), torch.randn(2, 4)).program for n in (0, 20)]
    assert not any(program.on_shapes for program in programs)
    few, many = (sum(value.live for value in program.values) for program in programs)
    assert few == many
