"""Weights that are computed, outputs with names, wrapped, compiled and frozen models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.support import doubled
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import secateurs as sc
from secateurs.errors import PlanError

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def computed(wrap: Callable[[nn.Module], nn.Module], dims: int = 2) -> tuple[nn.Module, Tensor]:
    """Two convolutions and a classifier whose weights `wrap` makes."""
    convolution = CONVOLUTIONS[dims]
    model = nn.Sequential(
        wrap(convolution(3, 8, 3, padding=1)),
        nn.ReLU(),
        wrap(convolution(8, 6, 3, padding=1)),
        nn.ReLU(),
        POOLS[dims](1),
        nn.Flatten(),
        wrap(nn.Linear(6, 2)),
    )
    return model.double(), torch.randn(2, 3, *[6] * dims).double()


def multilayer() -> nn.Module:
    layers = (nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    return nn.Sequential(*layers).double()


def transformer() -> nn.Module:
    """Heads, head dims and neurons between two projections."""
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
    return doubled(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2)))


def tokens(model: Callable[[], nn.Module]) -> Tensor:
    return torch.randn(2, 4).double() if model is multilayer else torch.randn(2, 5, 4).double()


def cut_lawfully(model: nn.Module, x: Any, *, exact: bool = True) -> nn.Module:
    """The model without 40% of its units, which keeps the law."""
    graph = sc.trace(model, x)
    plan = graph.random_plan(0.4, exact_only=exact)
    assert len(plan)
    small = sc.apply(model, plan)
    assert sc.verify(model, small, plan, x, graph=graph).max_relative_error <= 1e-12
    return small


@pytest.mark.parametrize("wrap", [weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_weight_norm_is_cut_exactly(wrap: Any, dims: int) -> None:
    model, x = computed(wrap, dims)
    model(x)  # the old one leaves a weight behind that is no leaf
    small = cut_lawfully(model, x)
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("wrap", [spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_is_marked_and_its_statistic_retaken(wrap: Any) -> None:
    model, x = computed(wrap)
    model(x)
    graph = sc.trace(model.eval(), x)
    assert [group.exact for group in graph] == [False, False]
    assert "product of weights" in graph.groups[0].why_inexact
    cut_lawfully(model, x, exact=False)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [weight_norm, spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm],
)
def test_baked_weights_are_plain_and_cut_exactly(wrap: Any, inplace: bool) -> None:
    model, x = computed(wrap)
    model(x)

    expected = model.eval()(x)
    model.train()
    names = set(model.state_dict())
    baked = sc.bake(model, inplace=inplace)
    assert (baked is model) == inplace
    assert inplace or set(model.state_dict()) == names
    assert baked.training
    assert [name for name, _ in baked.named_parameters()] == [
        f"{layer}.{name}" for layer in (0, 2, 6) for name in ("bias", "weight")
    ]
    assert torch.allclose(baked.eval()(x), expected, rtol=1e-12, atol=0)
    cut_lawfully(baked, x)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        deviation = (weight.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return F.conv2d(x, (weight - mean) / deviation, self.bias, padding=self.padding)


def test_weight_standardisation_is_exact_where_nothing_standardised_reads() -> None:
    model, x = computed(lambda layer: layer)
    model[0] = Standardised(3, 8, 3, padding=1).double()
    model[2] = Standardised(8, 6, 3, padding=1).double()
    assert [group.exact for group in sc.trace(model, x)] == [False, True]
    cut_lawfully(model, x, exact=False)


class Computed(nn.Conv2d):
    """Its weight is bounded; no statistic is taken."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.tanh(), self.bias, padding=self.padding, groups=self.groups)


class ComputedTransposed(nn.ConvTranspose2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.tanh()
        return F.conv_transpose2d(x, weight, self.bias, padding=self.padding, groups=self.groups)


class GroupedStandardised(Standardised):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.flatten(1)[None]  # as timm does: a batch normalisation of the weight
        weight = F.batch_norm(weight, None, None, training=True, eps=1e-6).view_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=self.padding, groups=self.groups)


@pytest.mark.parametrize(
    ("wrap", "exact"),
    [
        (Computed, True),
        (ComputedTransposed, True),
        (GroupedStandardised, False),
        (lambda *a, **k: parametrizations.weight_norm(nn.Conv2d(*a, **k)), True),
        (lambda *a, **k: parametrizations.spectral_norm(nn.Conv2d(*a, **k)), False),
    ],
)
def test_grouped_convolutions_with_computed_kernels_are_cut(wrap: Any, exact: bool) -> None:
    """The same index from every group where groups share an axis; as many from each elsewhere."""
    model, x = computed(lambda layer: layer)
    model.insert(2, doubled(wrap(8, 12, 3, padding=1, groups=2)))
    model[3] = nn.Conv2d(12, 6, 3, padding=1).double()
    del model[4]
    graph = sc.trace(model, x)
    sizes = {group.size for group in graph}
    assert {4, 12} <= sizes or {8, 6} <= sizes
    assert all(group.exact for group in graph) == exact
    cut_lawfully(model, x, exact=exact)


@dataclasses.dataclass(frozen=True)
class Output:
    logits: Tensor
    hidden: dict[str, Tensor]


@dataclasses.dataclass
class Batch:
    x: Tensor
    name: str


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, batch: Batch) -> Output:
        hidden = self.b(F.relu(self.a(batch.x)))
        return Output(self.c(hidden), {"hidden": hidden})


def test_dataclasses_go_in_and_come_out() -> None:
    model, batch = Named().double(), Batch(torch.randn(3, 4).double(), "three")
    graph = sc.trace(model, (batch,))
    assert [group.name for group in graph] == ["a"]  # b is given out
    small = cut_lawfully(model, (batch,))
    assert isinstance(small(batch), Output)
    data = [((batch,), torch.zeros(3, dtype=torch.long))]
    scores = sc.score(
        model, graph, data, loss=lambda out, y: F.cross_entropy(out.logits, y, reduction="none")
    )
    assert len(scores["a"]) == 8


@pytest.mark.parametrize("make", [multilayer, transformer])
def test_a_compiled_model_runs_as_written_and_is_cut(make: Callable[[], nn.Module]) -> None:
    model, x = make(), tokens(make)
    reference = sc.trace(model, x)
    compiled = torch.compile(model, backend="eager")
    graph = sc.trace(compiled, x)
    assert [group.size for group in graph] == [group.size for group in reference]
    for seed in range(2):
        small = sc.apply(compiled, graph.random_plan(0.4, seed))
        wanted = sc.apply(model, reference.random_plan(0.4, seed))
        assert torch.equal(small._orig_mod(x), wanted(x))


@pytest.mark.parametrize("make", [multilayer, transformer])
def test_a_data_parallel_model_is_cut_and_trains(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    distributed = torch.distributed
    distributed.init_process_group("gloo", f"file://{tmp_path / 'ranks'}", rank=0, world_size=1)
    try:
        x = tokens(make)
        for model in (
            nn.parallel.DistributedDataParallel(make()),
            nn.DataParallel(make()),
        ):
            small = cut_lawfully(model, x).train()
            small(x).sum().backward()
            assert all(p.grad is not None for p in small.parameters())
        wrapped = nn.parallel.DistributedDataParallel(multilayer())
        with pytest.raises(PlanError, match=r"cut model\.module"):
            sc.delete_channels(wrapped, {"module.0": [1]}, x, inplace=True)
        assert len(wrapped.module[0].weight) == 8
    finally:
        distributed.destroy_process_group()


def test_a_model_in_bfloat16_keeps_its_type() -> None:
    model, x = computed(lambda layer: layer)
    model, x = model.bfloat16(), x.bfloat16()
    plan = sc.trace(model, x).random_plan(0.4)
    small = sc.apply(model, plan)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert sc.verify(model, small, plan, x).holds


def test_frozen_parameters_are_cut_and_stay_frozen() -> None:
    model, x = computed(lambda layer: layer)
    model[0].requires_grad_(requires_grad=False)
    small = cut_lawfully(model, x)
    assert {name for name, p in small.named_parameters() if not p.requires_grad} == {
        "0.weight",
        "0.bias",
    }
    assert len(small[0].weight) < 8


def test_a_transformer_in_bfloat16_with_frozen_parameters_is_cut() -> None:
    model, x = transformer().bfloat16(), tokens(transformer).bfloat16()
    model[1].self_attn.requires_grad_(requires_grad=False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    graph = sc.trace(model, x)
    assert {"head", "head-dim", "neuron"} <= {group.kind for group in graph}
    plan = graph.random_plan(0.4)
    small = sc.apply(model, plan)
    assert sc.verify(model, small, plan, x, graph=graph).holds
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert {name for name, p in small.named_parameters() if not p.requires_grad} == frozen
    assert small[1].self_attn.in_proj_weight.numel() < model[1].self_attn.in_proj_weight.numel()


def test_a_parameter_made_by_a_function_is_cut() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            weight = F.normalize(self.a.weight, dim=1).tanh()
            return F.linear(F.relu(F.linear(x, weight, self.a.bias)), 2 * self.b.weight)

    cut_lawfully(Functional().double(), torch.randn(3, 4).double())
