"""Removing dead units changes no output, whatever the input; what cannot go stays and is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.generated import Network, image_networks
from tests.networks import NETWORKS, network
from tests.support import call, doubled, relative_error, snapshot
from tests.zoo import zoo_model
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateurs as sc
from secateurs.errors import LawError, NotFiniteError, TraceError
from secateurs.sparse.fold import Folder

TOLERANCE = 1e-10


def thin(model: nn.Module, kept: float, seed: int = 0) -> None:
    """Keep a random share of the weights; biases and norms stay, so that constants are not zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p *= torch.rand(p.shape, generator=draw) < kept


def plant(model: nn.Module, inputs: object, seed: int = 0) -> dict[str, dict[str, list[int]]]:
    """Zero all weights that write, or all that read, a unit or two of each group."""
    graph, tensors = sc.trace(model, inputs), dict(model.named_parameters())
    draw = np.random.default_rng(seed)
    planted: dict[str, dict[str, list[int]]] = {"writes": {}, "reads": {}}
    for group in graph:
        count = min(2, group.size // 4)
        chosen = draw.permutation(group.size)
        for role, units in (("writes", chosen[:count]), ("reads", chosen[count : 2 * count])):
            mask = np.zeros(len(graph.classes), dtype=bool)
            mask[group.units[units]] = True
            zeroed: set[int] = set()
            for name, dim, axis in graph.slots:
                if graph.analysis.roles.get((name, dim)) != role or name not in tensors:
                    continue
                if name in graph.analysis.blocked and dim == 1:
                    continue
                at, theirs = graph.axis_incidence(axis)
                with torch.no_grad():
                    tensors[name].index_fill_(dim, torch.from_numpy(at[mask[theirs]]), 0)
                zeroed.update(theirs[mask[theirs]].tolist())
            planted[role][group.name] = [u for u in units.tolist() if group.units[u] in zeroed]
    return planted


def others(inputs: object, seed: int = 1) -> object:
    """Other inputs of the same shapes."""
    draw = torch.Generator().manual_seed(seed)
    return pytree.tree_map_only(
        Tensor,
        lambda t: torch.randn(t.shape, generator=draw).to(t) if t.is_floating_point() else t,
        inputs,
    )


def law(model: nn.Module, inputs: object) -> tuple[sc.DeadUnits, nn.Module]:
    """The cut network and the masked one agree on inputs that the search never saw."""
    before = snapshot(model)
    dead = sc.dead_units(model, inputs)
    small = sc.remove_dead(model, inputs)
    assert snapshot(model) == before
    for seed in (1, 2):
        x = others(inputs, seed)
        wanted, given = call(model, x), call(small, x)
        worst = max(float((a - b).abs().max()) for a, b in zip(wanted, given, strict=True))
        scale = max(float(a.abs().max()) for a in wanted)
        assert worst <= TOLERANCE * max(scale, 1)
    return dead, small


# ---------------------------------------------------------------------- the law
@pytest.mark.parametrize("kept", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("name", NETWORKS)
def test_plain_networks_compute_the_same_without_their_dead_units(name: str, kept: float) -> None:
    model, inputs = network(name)
    thin(model, kept)
    planted = plant(model, inputs)
    dead, small = law(model, inputs)
    graph = sc.trace(model, inputs)
    told = {g: {**dead.removed.get(g, {}), **dead.kept.get(g, {})} for g in planted["writes"]}
    for role in planted.values():
        for group, units in role.items():
            assert set(units) <= set(told[group]), (group, units, told[group])
    if kept == 1.0:
        for group, units in planted["reads"].items():
            if graph[group].exact and graph[group].balance is None:
                assert set(units) <= set(dead.removed.get(group, {})), dead.kept.get(group)
    again = sc.dead_units(small, inputs)
    assert len(again) == 0, str(again)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x1_0", "mobilenet_v3_small"])
def test_networks_of_torchvision_compute_the_same(name: str) -> None:
    model, x = zoo_model(name)
    thin(model, 0.05)
    plant(model, x)
    dead, small = law(model, x)
    assert len(dead) > 20
    assert dead.kept
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@settings(max_examples=15)
@given(image_networks(), st.sampled_from([1.0, 0.1, 0.03]), st.integers(0, 99))
def test_generated_networks_compute_the_same(network: Network, kept: float, seed: int) -> None:
    model, (x,) = network.module(), network.example()
    thin(model, kept, seed)
    plant(model, x, seed)
    _, small = law(model, x)
    assert len(sc.dead_units(small, x)) == 0


def test_single_precision_is_within_a_millionth() -> None:
    model, x = network("lenet")
    model, x = model.float(), x.float()
    thin(model, 0.05)
    small = sc.remove_dead(model, x)
    y = others(x)
    assert float((call(model, y)[0] - call(small, y)[0]).abs().max()) <= 1e-6
    assert small.fc1.out_features < model.fc1.out_features


# ---------------------------------------------------------------------- against plain loops
def dead_by_loops(layers: list[nn.Linear]) -> list[set[int]]:
    """The dead units of each hidden layer of a perceptron, one removal at a time."""
    weights = [layer.weight.tolist() for layer in layers]
    dead: list[set[int]] = [set() for _ in layers[:-1]]
    changed = True
    while changed:
        changed = False
        for i, gone in enumerate(dead):
            before = dead[i - 1] if i else set()
            after = dead[i + 1] if i + 1 < len(dead) else set()
            for u in set(range(len(weights[i]))) - gone:
                fed = any(w for k, w in enumerate(weights[i][u]) if k not in before)
                heard = any(row[u] for k, row in enumerate(weights[i + 1]) if k not in after)
                if not (fed and heard):
                    gone.add(u)
                    changed = True
    return dead


@pytest.mark.parametrize("seed", range(6))
def test_a_perceptron_loses_what_plain_loops_find(seed: int) -> None:
    torch.manual_seed(seed)
    layers = [nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.Sigmoid())][:-1])
    model, x = doubled(model), torch.randn(3, 8).double()
    thin(model, 0.12, seed)
    wanted = dead_by_loops(layers)
    dead, _ = law(model, x)
    for i, units in enumerate(wanted):
        found = set(dead.removed.get(str(2 * i), {})) | set(dead.kept.get(str(2 * i), {}))
        assert found == units
        assert len(dead.kept.get(str(2 * i), {})) == (len(units) == 12)
    assert len(dead) > 3


def test_the_constant_goes_into_the_readers_bias() -> None:
    torch.manual_seed(0)
    model = doubled(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    with torch.no_grad():
        model[0].weight[1] = 0
    small = sc.remove_dead(model, torch.zeros(1, 4).double())
    wanted = model[2].bias + model[2].weight[:, 1] * torch.tanh(model[0].bias[1])
    torch.testing.assert_close(small[2].bias, wanted, rtol=0, atol=1e-15)
    torch.testing.assert_close(small[2].weight, model[2].weight[:, [0, 2]], rtol=0, atol=0)


# ---------------------------------------------------------------------- padding
def two_convolutions(padding: int, constant: float) -> nn.Module:
    model = doubled(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=padding))
    )
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = constant
    return model


@pytest.mark.parametrize(
    ("padding", "constant", "goes"),
    [(0, 0.7, True), (1, 0.7, False), (1, -0.7, True), (1, 0.0, True)],
)
def test_a_constant_at_a_padded_reader_stays_and_is_named(
    padding: int, constant: float, goes: bool
) -> None:
    model, x = two_convolutions(padding, constant), torch.randn(2, 3, 7, 7).double()
    dead, _ = law(model, x)
    assert dead.removed == ({"0": {2: "without inputs"}} if goes else {})
    if not goes:
        assert "padding" in dead.kept["0"][2]
        assert "padding" in str(dead)


def test_a_padded_reader_that_uses_the_centre_only_takes_the_constant() -> None:
    model, x = two_convolutions(1, 0.7), torch.randn(2, 3, 7, 7).double()
    with torch.no_grad():
        centre = model[2].weight[:, 2, 1, 1].clone()
        model[2].weight[:, 2] = 0
        model[2].weight[:, 2, 1, 1] = centre
    dead, small = law(model, x)
    assert dead.removed == {"0": {2: "without inputs"}}
    torch.testing.assert_close(small[2].bias, model[2].bias + 0.7 * centre)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, padding=1), nn.AvgPool2d(3, padding=1)])
def test_a_constant_goes_through_a_padded_pool_into_columns(pool: nn.Module) -> None:
    head = nn.Linear(6 * 3 * 3, 5)
    model = doubled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), pool, nn.Flatten(), head))
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
    dead, small = law(model, torch.randn(2, 3, 9, 9).double())
    assert dead.removed == {"0": {1: "without inputs", 4: "without inputs"}}
    assert small[4].weight.shape == (5, 4 * 9)


# ---------------------------------------------------------------------- who takes the constant
def test_a_running_mean_takes_what_a_reader_without_bias_cannot() -> None:
    model = doubled(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)
        )
    )
    with torch.no_grad():
        model[0].weight[2] = 0
    dead, small = law(model, torch.randn(2, 3, 7, 7).double())
    shift = model[2].weight[:, 2].sum((1, 2)) * torch.sigmoid(model[0].bias[2])
    assert list(dead.shifts) == ["3.running_mean"]
    torch.testing.assert_close(small[3].running_mean, model[3].running_mean - shift)


def test_a_reader_without_bias_leaves_the_unit() -> None:
    model = doubled(nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2, bias=False)))
    with torch.no_grad():
        model[0].weight[2] = 0
    dead, _ = law(model, torch.zeros(1, 4).double())
    assert dead.removed == {}
    assert dead.kept == {"0": {2: "2 has no bias that could take what it emits"}}


class Added(nn.Module):
    """A bias that is added by the code, after a transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(4, 6), nn.Parameter(torch.randn(3, 6))
        self.shift = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ torch.sigmoid(self.first(x)).T).T + self.shift


def test_a_bias_that_the_code_adds_takes_the_constant() -> None:
    model = doubled(Added())
    with torch.no_grad():
        model.first.weight[2] = 0
    dead, _ = law(model, torch.randn(5, 4).double())
    assert list(dead.shifts) == ["shift"]


class Normed(nn.Module):
    """A unit that is read by a norm, to which constants do not add up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x))
        return self.last(x) + torch.linalg.vector_norm(x, dim=1, keepdim=True)


def test_a_constant_under_a_norm_stays() -> None:
    model = doubled(Normed())
    with torch.no_grad():
        model.first.weight[2] = 0
    dead, _ = law(model, torch.randn(5, 4).double())
    assert dead.removed == {}
    assert "linalg_vector_norm" in dead.kept["first"][2]


class Twice(nn.Module):
    """One layer reads two layers' units, which go together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(torch.sigmoid(self.a(x))) * self.shared(torch.sigmoid(self.b(x)))


@pytest.mark.parametrize("equal", [True, False])
def test_a_shared_bias_takes_a_constant_that_all_uses_agree_on(equal: bool) -> None:
    model = doubled(Twice())
    with torch.no_grad():
        model.a.weight[2] = model.b.weight[2] = 0
        if equal:
            model.a.bias[2] = model.b.bias[2]
    dead, _ = law(model, torch.randn(5, 4).double())
    assert len(dead) == equal
    assert equal or "several places" in dead.kept["a"][2]


# ---------------------------------------------------------------------- coupled units
def test_a_residual_unit_is_dead_when_every_writer_is() -> None:
    model, x = network("residual")
    with torch.no_grad():
        model.norm.bias.fill_(-9)  # so that the stem's constants are zero
        model.stem.weight[[1, 3]] = 0
        model.b.weight[[3, 5]] = 0
        model.b.bias[[3, 5]] = 0
    dead, _ = law(model, x)
    removed = dead.removed["stem"]
    assert 3 in removed
    assert 1 not in removed  # b still writes it


def test_a_constant_under_a_live_gate_is_not_dead() -> None:
    model, x = network("squeeze_excite")
    with torch.no_grad():
        model.conv.weight[[1, 2]] = 0
        model.conv.bias[1], model.conv.bias[2] = 0.5, -0.5
    dead, _ = law(model, x)
    assert dead.removed == {"conv": {2: "without inputs"}}
    assert dead.kept == {}  # the gate's weights write unit 1 too
    with torch.no_grad():
        model.excite.weight[1] = 0
    dead, _ = law(model, x)
    assert dead.removed == {"conv": {1: "without inputs", 2: "without inputs"}}


def test_a_norm_over_the_units_keeps_them() -> None:
    model = doubled(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)))
    with torch.no_grad():
        model[0].weight[[1, 5]] = 0  # the units are what has the same place in both groups
    dead, _ = law(model, torch.randn(2, 3, 4, 4).double())
    assert dead.removed == {}
    assert [why for units in dead.kept.values() for why in units.values()] == [
        "group normalisation takes its statistics over it"
    ]


def test_a_layer_without_inputs_keeps_one_unit() -> None:
    model = doubled(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))
    with torch.no_grad():
        model[0].weight.zero_()
    dead, small = law(model, torch.zeros(1, 4).double())
    assert (len(dead), small[0].out_features) == (5, 1)
    assert [*dead.kept["0"].values()] == ["an axis keeps at least one unit"]


def test_blocks_lose_equally_many() -> None:
    model = doubled(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2)))
    with torch.no_grad():
        model[2].weight[:4, [0, 1]] = 0
        model[2].weight[4:, 3] = 0
    dead, small = law(model, torch.randn(2, 3, 4, 4).double())
    assert dead.removed == {"0": {0: "without readers", 7: "without readers"}}
    assert list(dead.kept["0"]) == [1]
    assert "block" in dead.kept["0"][1]
    assert small[0].out_channels == 6


# ---------------------------------------------------------------------- the verb
def test_channels_may_come_last_in_memory() -> None:
    model, inputs = network("lenet")
    model = model.to(memory_format=torch.channels_last)
    thin(model, 0.05)
    small = sc.remove_dead(model, inputs)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert relative_error(call(model, inputs), call(small, inputs)) <= TOLERANCE


def test_nothing_dead_gives_a_copy() -> None:
    model, x = network("lenet")
    dead, small = law(model, x)
    assert (len(dead), dead.removed, dead.kept, dead.shifts) == (0, {}, {}, {})
    assert small is not model
    assert relative_error(call(model, x), call(small, x)) == 0


def test_in_place_the_parameters_stay_the_same_objects() -> None:
    model, x = network("lenet")
    thin(model, 0.02)
    before, wanted = {id(p) for p in model.parameters()}, call(model, x)
    assert sc.remove_dead(model, x, inplace=True) is model
    assert {id(p) for p in model.parameters()} == before
    assert model.fc1.out_features < 20
    assert relative_error(wanted, call(model, x)) <= TOLERANCE


def test_a_constant_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without the folded constants the outputs differ."""
    model, x = two_convolutions(0, 0.7), torch.zeros(2, 3, 7, 7).double()
    before = snapshot(model)
    fold = Folder.fold
    monkeypatch.setattr(Folder, "fold", lambda *args: ({}, fold(*args)[1]))
    with pytest.raises(LawError, match="differ"):
        sc.remove_dead(model, x, inplace=True)
    assert snapshot(model) == before


class Looks(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def test_code_that_looks_at_values_keeps_its_units() -> None:
    model = doubled(Looks(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    with torch.no_grad():
        model[0].weight[1] = 0
    dead = sc.dead_units(model, torch.ones(1, 4).double())
    assert dead.removed == {}
    assert "looks at values" in dead.kept["0"][1]


def test_what_cannot_run_is_refused() -> None:
    model, x = network("lenet")
    with pytest.raises(TraceError):
        sc.remove_dead(model, x[:, :, :3])
    with pytest.raises(TraceError, match="meta"):
        sc.dead_units(nn.Linear(3, 3, device="meta"), torch.zeros(1, 3, device="meta"))
    model.fc2.bias.data[0] = float("nan")
    with pytest.raises(NotFiniteError):
        sc.remove_dead(model, x)
