"""Sizes taken from a shape that is another one after the cut: the view finds them by itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.support import doubled
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import PlanError


class Attention(nn.Module):
    """Its inner width is taken from the shape of what comes in."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, scale: float = 0.5, *, offset: float = 0.0) -> Tensor:
        n, t, c = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * scale + offset).softmax(-1)
        return self.out((attention @ v).transpose(1, 2).reshape((n, t, c)))


def closed_over() -> type[Attention]:
    power = 2

    class Derived(Attention):
        """Reaches its base by super(), and a name of the function around it."""

        def forward(self, x: Tensor, scale: float = 0.5, *, offset: float = 0.0) -> Tensor:
            b, t, width = x.shape
            y = super().forward(x, scale, offset=offset)
            pairs = self.qkv(x)[..., -width:].reshape(b, t, width) ** power
            return y + self.out(pairs)

    return Derived


class Narrow(Attention):
    """Its last view finds another size by itself already."""

    def forward(self, x: Tensor, scale: float = 0.5, *, offset: float = 0.0) -> Tensor:
        c = x.shape[-1]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        attention = torch.einsum("nqhd,nkhd->nhqk", q, k).softmax(-1)
        mixed = torch.einsum("nhqk,nkhd->nqhd", attention, v)
        return self.out(mixed.reshape(len(x), -1, c))


class Block(nn.Module):
    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.attentions = nn.ModuleList(attentions)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for attention in self.attentions:
            x = x + attention(x)
        return self.head(x)


def block(*attentions: nn.Module) -> tuple[nn.Module, Tensor]:
    return doubled(Block(*attentions)), torch.randn(2, 7, 5).double()


def cut(model: nn.Module, x: Tensor, units: dict[str, list[int]]) -> tuple[Any, Any]:
    plan = sc.trace(model, x).plan(units)
    return sc.apply(model, plan), plan


HEADS = {"attentions.0.qkv": [1], "attentions.1.qkv": [0, 2]}
DIMS = "attentions.0.qkv:head-dim"


def test_heads_and_their_dimensions_are_offered_one_by_one() -> None:
    graph = sc.trace(*block(Attention(), Attention()))
    kinds = [(group.kind, [len(block) for block in group.blocks()]) for group in graph]
    assert kinds.count(("head", [3])) == kinds.count(("head-dim", [4, 4])) == 2  # of q·k, of v
    assert not [f for f in graph.frozen if "attentions" in f.tensor]


@pytest.mark.parametrize(
    "units",
    [HEADS, {DIMS: [0, 5]}, {**HEADS, DIMS: [2, 3, 4, 5]}],
)
def test_the_law_holds_at_sizes_that_were_not_traced(units: dict[str, list[int]]) -> None:
    model, x = block(Attention(), Attention())
    small, plan = cut(model, x, units)
    for shape in ((2, 7, 5), (3, 4, 5), (1, 12, 5)):
        proof = sc.verify(model, small, plan, torch.randn(shape).double())
        assert proof.max_relative_error <= 1e-12
    assert small.attentions[0].qkv.out_features < 36
    assert type(model.attentions[0]) is Attention
    assert Attention().double()(torch.randn(2, 7, 12).double()).shape == (2, 7, 12)


def test_only_the_module_that_was_cut_has_its_own_code() -> None:
    model, x = block(Attention(), Attention())
    small, plan = cut(model, x, {"attentions.0.qkv": [1]})
    assert {edit.module for edit in plan.edits} == {"attentions.0"}
    assert issubclass(type(small.attentions[0]), Attention)
    assert type(small.attentions[0]) is not Attention
    assert type(small.attentions[1]) is Attention
    own = small.attentions[0].forward
    assert own.__qualname__ == "Attention.forward"
    assert own.__func__.__defaults__ == (0.5,)
    assert own.__func__.__kwdefaults__ == {"offset": 0.0}


def test_a_cut_model_is_copied_cut_again_and_composed() -> None:
    model, x = block(Attention(), Attention())
    first_cut, first = cut(model, x, {"attentions.0.qkv": [1]})
    again, second = cut(copy.deepcopy(first_cut), x, {**HEADS, "attentions.0.qkv": [0]})
    both = sc.Plan.from_json(first.then(second).to_json())
    assert again.attentions[0].heads == again.attentions[1].heads == 1
    y = torch.randn(3, 4, 5).double()
    assert torch.equal(sc.apply(model, both)(y), again(y))
    again(y).sum().backward()


def test_a_method_with_closed_over_names_is_mended() -> None:
    model, x = block(closed_over()(), Attention())
    graph = sc.trace(model, x)
    for seed in range(3):
        plan = graph.random_plan(0.4, seed=seed)
        small = sc.apply(model, plan)
        assert (
            sc.verify(model, small, plan, torch.randn(3, 4, 5).double()).max_relative_error < 1e-12
        )


def test_a_view_that_finds_another_size_already_is_told_the_number() -> None:
    model, x = block(Narrow(), Attention())
    small, plan = cut(model, x, HEADS)
    assert [restated.module for restated in plan.restated] == ["attentions.0"]
    for tokens in (7, 3):
        y = torch.randn(3, tokens, 5).double()
        assert sc.verify(model, small, plan, y).max_relative_error <= 1e-12


def moved() -> nn.Module:
    """Attention whose code is not where its lines say, so that it cannot be read."""

    def rewritten(self: Attention, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).unbind(2)
        return self.out((q * k + v).reshape(n, t, c))

    code = rewritten.__code__
    elsewhere = code.replace(co_firstlineno=code.co_firstlineno + 1)

    class Moved(Attention):
        forward = type(rewritten)(elsewhere, globals())  # type: ignore[assignment]

    return Moved()


def test_code_that_is_not_its_source_is_left_as_it_is() -> None:
    model, x = block(moved())
    small, plan = cut(model, x, {"attentions.0.qkv": [1]})
    assert plan.restated
    assert not plan.edits
    assert sc.verify(model, small, plan, x).max_relative_error <= 1e-12


def test_a_size_is_restated_where_torch_export_leaves_the_batch_open() -> None:
    model, x = block(moved())
    small, _ = cut(model, x, {"attentions.0.qkv": [1]})
    batch = torch.export.Dim("batch")
    program = torch.export.export(small, (x,), dynamic_shapes=({0: batch},), strict=False)
    y = torch.randn(3, 7, 5).double()
    assert torch.allclose(program.module()(y), small(y), rtol=0, atol=1e-12)


def test_a_plan_for_other_code_is_refused_before_anything_changes() -> None:
    model, x = block(Attention(), Attention())
    _, plan = cut(model, x, HEADS)
    data = plan.to_dict()
    data["edits"][0][2] = "x.reshape(__import__('os').getpid())"
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PlanError, match="does not have"):
        sc.apply(model, sc.Plan.from_dict(data), inplace=True)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )


class FromTheEnd(nn.Module):
    """Slices counted from the end, by a size and by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(5, 24), nn.Linear(5, 8)
        self.a, self.b = nn.Linear(8, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        wide, narrow = self.wide(x), self.narrow(x)
        own = wide[:, -narrow.shape[1] :] * narrow
        return self.a(own) + self.b(wide[:, -20:-16])


def test_slices_from_the_end_are_mended() -> None:
    model, x = doubled(FromTheEnd()), torch.randn(3, 5).double()
    graph = sc.trace(model, x)
    for seed in range(4):
        plan = graph.random_plan(0.5, seed=seed)
        assert len(plan) >= 6
        plan = sc.Plan.from_json(plan.to_json())
        assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12


class Coincidence(nn.Module):
    """As many tokens as channels, where a view states the one and finds the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).transpose(1, 2).clone().transpose(1, 2).reshape(x.shape[1], -1))


def test_a_view_that_finds_its_size_is_not_told_one_that_is_equal() -> None:
    model, x = doubled(Coincidence()), torch.randn(1, 8, 5).double()
    small, plan = cut(model, x, {"a": [1, 2]})
    assert not plan.edits
    assert not plan.restated
    assert sc.verify(model, small, plan, x).max_relative_error <= 1e-12


def attend(x: Tensor, qkv: nn.Linear, heads: int) -> Tensor:
    """Takes another way, with more views, where there are many tokens."""
    n, t, c = x.shape
    if t > 8:
        x = x.reshape(n * t, c).reshape(n, t, c).roll(1, 1)
    q, k, v = qkv(x).reshape(n, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
    attention = (q @ k.transpose(-2, -1)).softmax(-1)
    return (attention @ v).transpose(1, 2).reshape(n, t, c)


class Helped(Attention):
    def forward(self, x: Tensor, scale: float = 0.5, *, offset: float = 0.0) -> Tensor:
        return self.out(attend(x, self.qkv, self.heads))


def test_a_function_that_a_method_calls_is_mended_for_that_module_alone() -> None:
    model, x = block(Helped(), Helped())
    first, plan = cut(model, x, {"attentions.0.qkv": [1]})
    assert {edit.helper for edit in plan.edits} == {"attend"}
    plan = sc.Plan.from_json(plan.to_json())
    for tokens in (7, 12):  # the ordinals of the calls differ
        proof = sc.verify(model, first, plan, torch.randn(2, tokens, 5).double())
        assert proof.max_relative_error <= 1e-12
    again, second = cut(first, x, {DIMS: [0, 4], "attentions.1.qkv": [0, 1]})
    y = torch.randn(3, 9, 5).double()
    assert torch.equal(sc.apply(model, plan.then(second))(y), again(y))
    assert attend(y[..., :1].expand(3, 9, 12), model.attentions[0].qkv, 3).shape == (3, 9, 12)
