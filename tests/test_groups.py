"""The groups and frozen axes of networks that were read by hand."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from tests.networks import NETWORKS, network
from tests.support import doubled
from tests.zoo import ZOO, zoo_model
from torch import nn

import secateurs as sc
from secateurs.errors import PlanError


def graph_of(name: str) -> sc.Graph:
    model, inputs = zoo_model(name) if name in ZOO else network(name)
    return sc.trace(model, inputs)


def listed(members: list) -> list[str]:
    return sorted(map(str, members))


# name -> [(group, kind, units, exact, blocks)]
EXPECTED = {
    "lenet": [
        ("conv1", "channel", 6, True, 1),
        ("conv2", "channel", 10, True, 1),
        ("fc1", "neuron", 20, True, 1),
    ],
    "residual": [("stem", "channel", 8, True, 1), ("a", "channel", 12, True, 1)],
    "unet": [
        ("down1", "channel", 8, True, 1),
        ("down2", "channel", 16, True, 1),
        ("up", "channel", 8, True, 1),
        ("out", "channel", 8, True, 1),
    ],
    "groupnorm": [("a", "channel", 4, True, 1), ("a:channel", "channel", 4, False, 1)],
    "nhwc": [("conv", "channel", 8, True, 1)],
    "hard_view": [("conv1", "channel", 16, True, 1), ("conv2", "channel", 64, True, 1)],
    "cbam": [("conv", "channel", 8, False, 1)],
    "squeeze_excite": [("conv", "channel", 8, True, 1), ("squeeze", "neuron", 6, True, 1)],
    "literal_slice": [("conv", "channel", 64, True, 1)],
    "chunks": [("conv", "channel", 16, True, 2)],
    "grouped": [
        ("stem", "channel", 8, True, 4),
        ("depthwise", "channel", 2, True, 1),
        ("grouped", "channel", 32, True, 4),
        ("transposed", "channel", 16, True, 4),
    ],
    "shuffled": [("conv", "channel", 8, True, 1)],
    "shared": [("stem", "channel", 8, True, 1)],
    "instance1d": [("conv", "channel", 8, True, 1)],
    "conv3d": [("conv", "channel", 6, True, 1)],
    "two_inputs": [("a", "neuron", 8, True, 1)],
    "dicts": [("a", "neuron", 8, True, 1), ("b", "neuron", 6, True, 1)],
    "tied": [("encode", "neuron", 10, True, 1)],
    "bare_parameter": [("first", "neuron", 9, True, 1)],
    "in_place": [("a", "channel", 8, True, 1)],
    "layernorm_mlp": [("a", "neuron", 12, False, 1), ("b", "neuron", 8, True, 1)],
    "resnet18": [
        ("conv1", "channel", 64, True, 1),
        ("layer1.0.conv1", "channel", 64, True, 1),
        ("layer1.1.conv1", "channel", 64, True, 1),
        ("layer2.0.conv1", "channel", 128, True, 1),
        ("layer2.0.conv2", "channel", 128, True, 1),
        ("layer2.1.conv1", "channel", 128, True, 1),
        ("layer3.0.conv1", "channel", 256, True, 1),
        ("layer3.0.conv2", "channel", 256, True, 1),
        ("layer3.1.conv1", "channel", 256, True, 1),
        ("layer4.0.conv1", "channel", 512, True, 1),
        ("layer4.0.conv2", "channel", 512, True, 1),
        ("layer4.1.conv1", "channel", 512, True, 1),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_groups_are_those_read_off_the_code(name: str) -> None:
    found = [(g.name, g.kind, g.size, g.exact, len(g.blocks())) for g in graph_of(name)]
    assert found == EXPECTED[name]


def test_members_of_a_residual_group() -> None:
    group = graph_of("resnet18")["conv1"]
    assert listed(group.writes) == [
        "conv1.weight[0]", "layer1.0.conv2.weight[0]", "layer1.1.conv2.weight[0]",
    ]  # fmt: skip
    assert listed(group.reads) == [
        "layer1.0.conv1.weight[1]", "layer1.1.conv1.weight[1]",
        "layer2.0.conv1.weight[1]", "layer2.0.downsample.0.weight[1]",
    ]  # fmt: skip
    assert listed(group.carries) == sorted(
        f"{norm}.{tensor}[0]"
        for norm in ("bn1", "layer1.0.bn2", "layer1.1.bn2")
        for tensor in ("weight", "bias", "running_mean", "running_var")
    )
    assert group.members[0] == "conv1"


@pytest.mark.parametrize(
    ("name", "group", "axis"),
    [
        ("lenet", "conv2", "fc1.weight[1] ×16"),
        ("nhwc", "conv", "head.weight[1] ×64"),
        ("shuffled", "conv", "conv.weight[0] ×4"),
        ("grouped", "stem", "depthwise.weight[0] ×2"),
        ("grouped", "depthwise", "depthwise.weight[0] ×8"),
        ("grouped", "transposed", "transposed.weight[1]"),
        ("unet", "down1", "out.weight[1]"),
        ("instance1d", "conv", "act.weight[0]"),
        ("bare_parameter", "first", "second[0]"),
        ("squeeze_excite", "conv", "excite.weight[0]"),
    ],
)
def test_a_unit_owns_so_many_slices(name: str, group: str, axis: str) -> None:
    assert axis in listed(graph_of(name)[group].axes)


def test_densenet_growth_is_read_by_every_later_layer_of_its_block() -> None:
    graph = graph_of("densenet121")
    block = "features.denseblock1.denselayer"
    group = graph[f"{block}1.conv2"]
    assert (group.size, len(graph)) == (32, 120)
    assert listed(group.writes) == [f"{block}1.conv2.weight[0]"]
    readers = [f"{block}{i}.conv1.weight[1]" for i in range(2, 7)]
    assert listed(group.reads) == [*readers, "features.transition1.conv.weight[1]"]


def test_resnext_channels_go_equally_from_32_groups() -> None:
    graph = graph_of("resnext50_32x4d")
    for i, width in enumerate((128, 256, 512, 1024), 1):
        for conv in ("conv1", "conv2"):
            blocks = graph[f"layer{i}.0.{conv}"].blocks()
            assert [block.tolist() for block in blocks] == [
                list(range(b, b + width // 32)) for b in range(0, width, width // 32)
            ]
        assert graph[f"layer{i}.0.conv3"].balance is None


def test_a_statistic_over_the_units_is_inexact_and_says_why() -> None:
    assert "amax" in graph_of("cbam")["conv"].why_inexact
    assert "layer normalisation" in graph_of("layernorm_mlp")["a"].why_inexact
    whole, within = graph_of("groupnorm")
    assert whole.exact
    assert not whole.why_inexact
    assert "group normalisation" in within.why_inexact


# ---------------------------------------------------------------------- nothing is silent
@pytest.mark.parametrize("name", [*NETWORKS, *ZOO])
def test_every_parameter_axis_is_in_a_group_or_frozen_with_a_reason(name: str) -> None:
    model, inputs = zoo_model(name) if name in ZOO else network(name)
    graph = sc.trace(model, inputs)
    grouped = {(m.tensor, m.dim) for g in graph for m in g.axes}
    frozen = {(f.tensor, f.dim): f for f in graph.frozen}
    for path, parameter in model.named_parameters():
        for dim, size in enumerate(parameter.shape):
            if size > 1 and (path, dim) not in grouped:
                assert frozen[path, dim].reason
                assert frozen[path, dim].size
    for group in graph:
        assert group.size > 1
        assert group.members


# What may be frozen in the zoo besides inputs, outputs and kernels, each looked at by eye.
ORDINARY = {
    "input of the network",
    "output of the network",
    "kernel axis",
    "an axis of one index",
    "no output in eval mode depends on it",  # inside GoogLeNet's auxiliary heads
    "output of the network in training mode",
}


@pytest.mark.parametrize("name", sorted({*ZOO} - {"shufflenet_v2_x1_0"}))
def test_nothing_is_frozen_that_could_be_cut(name: str) -> None:
    unexpected = [str(f) for f in graph_of(name).frozen if f.reason not in ORDINARY]
    assert unexpected == []


@pytest.mark.parametrize("name", ["residual", "squeeze_excite", "unet", "groupnorm", "cbam"])
def test_the_layout_in_memory_does_not_matter(name: str) -> None:
    model, x = network(name)
    wanted = sc.trace(model, x)
    found = sc.trace(
        model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    )
    assert found.records() == wanted.records()
    assert found.frozen == wanted.frozen


class Skips(nn.Module):
    """One parameter that no run touches, and one that only training would."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aside = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


def test_a_parameter_that_the_run_did_not_touch_is_frozen_and_says_so() -> None:
    graph = sc.trace(Skips(), torch.zeros(2, 4))
    assert {(f.tensor, f.dim) for f in graph.frozen} >= {
        ("aside.weight", 0), ("aside.weight", 1), ("aside.bias", 0),
    }  # fmt: skip
    with pytest.raises(PlanError, match="aside"):
        graph["aside"]


class Aside(Skips):
    """A head that runs in training mode only, and draws random numbers there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.a(x))
        if not self.training:
            return self.b(hidden)
        return self.b(hidden), self.aside(hidden * torch.rand(()))


def test_what_runs_in_training_mode_only_is_coupled_too() -> None:
    model, x = Aside().eval(), torch.randn(2, 4)
    random, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    graph = sc.trace(model, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.training
    assert all(torch.equal(model.state_dict()[name], old) for name, old in weights.items())
    assert "aside" in graph["a"].members
    assert {f.reason for f in graph.frozen if f.tensor == "aside.weight"} == {
        "output of the network in training mode"
    }
    small = sc.delete_channels(model, {"a": [0, 5]}, x)
    assert [t.shape for t in small.train()(x)] == [(2, 2), (2, 3)]


def test_a_training_mode_that_does_not_run_on_these_inputs_is_left_aside() -> None:
    class NeedsTargets(Skips):
        def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
            if self.training:
                return (self.aside(self.a(x)) - targets).square()
            return self.b(torch.relu(self.a(x)))

    graph = sc.trace(NeedsTargets(), torch.zeros(2, 4))
    assert graph.records() == sc.trace(Skips(), torch.zeros(2, 4)).records()
    assert graph.frozen == sc.trace(Skips(), torch.zeros(2, 4)).frozen


def test_an_operation_without_a_rule_freezes_by_name() -> None:
    class Transforms(Skips):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.fft.fft(self.a(x)).real)

    graph = sc.trace(Transforms(), torch.zeros(2, 4))
    assert not len(graph)
    reason = next(f.reason for f in graph.frozen if f.tensor == "a.weight" and f.dim == 0)
    assert "aten._fft_r2c" in reason


# ---------------------------------------------------------------------- looking up
def test_any_member_that_makes_or_passes_on_the_units_names_the_group(
    caplog: pytest.LogCaptureFixture,
) -> None:
    graph = graph_of("residual")
    with caplog.at_level(logging.INFO, "secateurs"):
        assert graph["norm"] is graph["stem"]
    assert "'norm' is coupled with stem, b" in caplog.text
    assert graph["b"] is graph["stem"]  # it writes there, and reads another group
    assert graph["stem.weight[0]"] is graph["stem"]
    with pytest.raises(PlanError, match=r"'head' cannot be cut.*only reads 'stem'"):
        graph["head"]  # its own outputs are meant, and they are fixed


@pytest.mark.parametrize(
    ("network_name", "name", "message"),
    [
        ("lenet", "cov1", "did you mean 'conv1'"),
        ("groupnorm", "b", "several groups: 'a', 'a:channel'"),
        ("lenet", "zzzzzz", "known: conv1, conv2, fc1"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(
    network_name: str, name: str, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        graph_of(network_name)[name]


def test_a_graph_prints_as_a_table() -> None:
    text = str(graph_of("chunks"))
    assert "groups: 1" in text
    assert "2 blocks" in text
    for word in ("conv", "channel", "16", "yes", "a, b"):
        assert word in text
    assert "no: amax is taken over it" in " ".join(str(graph_of("cbam")).split())
    assert repr(graph_of("lenet")) == "<Graph: 3 groups, 7 frozen axes>"
    assert max(map(len, text.splitlines())) <= 120


class Shuffled(nn.Module):
    """ShuffleNet: chunk, one branch, concatenation, shuffle; twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 3)
        self.branches = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for branch in self.branches:
            left, right = x.chunk(2, dim=1)
            x = torch.cat((left, torch.relu(branch(right))), dim=1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


def test_halves_of_halves_are_cut_in_proportion() -> None:
    model, x = Shuffled().double(), torch.randn(2, 3, 6, 6).double()
    graph = sc.trace(model, x)
    group = graph["stem"]
    assert [len(block) for block in group.blocks()] == [4, 4, 4, 4]
    assert not [f for f in graph.frozen if "overlap" in f.reason]
    plan = graph.plan({"stem": [int(block[1]) for block in group.blocks()]})
    small = sc.apply(model, plan)
    assert small.stem.out_channels == 12
    assert sc.verify(model, small, plan, x).max_relative_error <= 1e-12


class Strided(nn.Module):
    """Gates and values lie side by side, and slices with a step take them apart."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, width), nn.Linear((width + 1) // 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        gate = torch.tanh(x[..., 1::2]) if x.shape[-1] % 2 == 0 else 1
        return self.out(x[..., ::2] * gate)


def test_a_slice_with_a_step_takes_its_units_in_runs() -> None:
    model, x = doubled(Strided()), torch.randn(4, 5).double()
    graph = sc.trace(model, x)
    assert (graph["a"].size, listed(graph["a"].writes)) == (4, ["a.weight[0] ×2"])
    small = sc.apply(model, plan := graph.plan({"a": [1, 2]}))
    assert torch.equal(small.a.weight, model.a.weight[[0, 1, 6, 7]])
    wanted = copy.deepcopy(model)
    wanted.out.weight.data[:, [1, 2]] = 0
    assert torch.allclose(small(x), wanted(x), rtol=1e-12, atol=1e-12)
    assert sc.verify(model, small, plan, x).max_relative_error < 1e-12
    uneven = sc.trace(Strided(9), torch.randn(4, 5))
    assert not len(uneven)
    assert "a slice with a step" in {axis.reason for axis in uneven.frozen}


class Computed(nn.Module):
    """Grouped convolutions whose kernels are made of their parameters."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.a, self.b, self.out = nn.Conv2d(3, 12, 1), kind(12, 9, 3, groups=3), nn.Conv2d(9, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, x = self.b, self.a(x)
        run = F.conv2d if isinstance(b, nn.Conv2d) else F.conv_transpose2d
        return self.out(run(x, b.weight * 2, b.bias, groups=b.groups).relu())


@pytest.mark.parametrize("transposed", [False, True])
def test_a_computed_kernel_loses_the_same_index_in_every_group(transposed: bool) -> None:
    model, x = doubled(Computed(transposed)), torch.randn(2, 3, 5, 5).double()
    graph = sc.trace(model, x)
    reads, writes = graph["a"], graph["b"]
    together, apart = (writes, reads) if transposed else (reads, writes)
    assert (together.size, len(together.blocks())) == ((3, 1) if transposed else (4, 1))
    assert [len(block) for block in apart.blocks()] == [4 if transposed else 3] * 3
    plan = graph.plan({together.name: [1], apart.name: [0, 5, 8] if transposed else [0, 4, 8]})
    small = sc.apply(model, plan)
    assert sc.verify(model, small, plan, x).max_relative_error < 1e-12
    assert (small.b.in_channels, small.b.out_channels, small.b.groups) == (9, 6, 3)
