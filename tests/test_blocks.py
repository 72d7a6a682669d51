"""Residual blocks: which there are, and what is told of them against branches zeroed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from tests.references import LOSS, REFERENCES, Gated, changes, close, gated, pairs
from tests.support import doubled
from torch import Tensor, nn

import secateurs as sc
from secateurs.criteria import CRITERIA
from secateurs.errors import ConfigError, PlanError, UnscoredError
from secateurs.exact.changes import Engine

TOKENS, WIDTH = 8, 16


class Branched(Gated):
    """A network whose branches have gates by hand."""

    def branch(self, name: str, x: Tensor) -> Tensor:
        """What a branch adds, (examples, …), gated."""
        self.see(name, x[:, None].clone())
        return self.read("trunk", name, x, times=x.shape[1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * 8), nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.out((F.softmax(q @ k.mT / 2, -1) @ v).transpose(1, 2).flatten(2))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.GELU(), nn.Linear(6, WIDTH))


class SmallViT(Branched):
    """Two layers of two branches each, of a norm, and attention or an MLP."""

    sizes: ClassVar = {f"layers.{i}.{part}": 1 for i in (0, 1) for part in ("attn", "mlp")}
    reads: ClassVar = {name: ["trunk"] for name in sizes}

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(TOKENS, WIDTH))
        self.layers = nn.ModuleList(
            nn.ModuleDict({"n1": nn.LayerNorm(WIDTH), "attn": Attention(),
                           "n2": nn.LayerNorm(WIDTH), "mlp": mlp()}) for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, (TOKENS, WIDTH)) + self.place
        for i, layer in enumerate(self.layers):
            x = x + self.branch(f"layers.{i}.attn", layer["attn"](layer["n1"](x)))
            x = self.branch(f"layers.{i}.mlp", layer["mlp"](layer["n2"](x))) + x
        return self.head(x.mean(1))


def convolutions(width: int, made: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, made, 3, stride, 1), nn.BatchNorm2d(made), nn.ReLU(),
        nn.Conv2d(made, made, 3, 1, 1), nn.BatchNorm2d(made),
    )  # fmt: skip


class SmallResNet(Branched):
    """A block on the trunk itself, added in place, and one beside a shortcut that strides."""

    sizes: ClassVar = {"one": 1, "two": 1}
    reads: ClassVar = {name: ["trunk"] for name in sizes}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (
            nn.Conv2d(2, 3, 3),
            convolutions(3, 3),
            convolutions(3, 4, 2),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.branch("one", self.one(x))
        y += x
        x = F.relu(y)
        x = F.relu(self.branch("two", self.two(x)) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


def made(kind: type[Branched]) -> Branched:
    torch.manual_seed(0)
    return doubled(kind())


KINDS = pytest.mark.parametrize("kind", [SmallViT, SmallResNet])


# ---------------------------------------------------------------------- the naive loop
@KINDS
def test_the_oracle_of_a_block_is_that_of_its_branch_zeroed(kind: type[Branched]) -> None:
    net, (x, y) = made(kind), pairs(6)
    graph = sc.trace(net, x)
    assert {block.name: block.size for block in graph.blocks} == net.sizes
    found = dict(Engine(net, graph, LOSS, groups=graph.blocks).changes((x, y)))
    zero = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        whole = LOSS(net(x), y)
        for name in net.sizes:
            change = LOSS(gated(net, x, {name: zero}), y) - whole
            assert float((found[name].loss[:, 0] - change).abs().max()) <= 1e-10
            assert float(change.abs().max()) > 1e-4
            assert found[name].how == "rows"


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_of_a_block_is_its_formula(name: str) -> None:
    kind = SmallResNet if CRITERIA[name].needs else SmallViT
    net, (x, y) = made(kind), pairs()
    graph = sc.trace(net, x[:2])

    def scored() -> sc.Scores:
        return sc.score(net, graph, [(x, y)], loss=LOSS, criterion=name, groups=graph.blocks)

    if CRITERIA[name].needs or name == "random":
        close(scored(), REFERENCES[name](made(kind), x, y), 1e-9)
    else:
        with pytest.raises(UnscoredError, match=r"no weight|no normalisation"):
            scored()


@pytest.mark.parametrize("name", ["taylor", "taylor-gate", "fisher", "activation-std"])
def test_a_criterion_of_branches_of_a_transformer_is_its_formula(name: str) -> None:
    net, (x, y) = made(SmallViT), pairs()
    graph = sc.trace(net, x[:2])
    found = sc.score(net, graph, [(x, y)], loss=LOSS, criterion=name, groups=graph.blocks)
    close(found, REFERENCES[name](made(SmallViT), x, y), 1e-9)


def test_branches_under_one_path_are_skipped_together() -> None:
    net, (x, y) = made(SmallViT), pairs(6)
    graph = sc.trace(net, x)
    layers = graph.joined(["layers.0", "layers.1"])
    found = sc.oracle(net, graph, [(x, y)], loss=LOSS, groups=layers)
    zero = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        for layer in layers:
            change = LOSS(gated(net, x, dict.fromkeys(layer.branches, zero)), y) - LOSS(net(x), y)
            assert abs(found.loss[layer.name][0] - float(change.mean())) <= 1e-10
    with pytest.raises(UnscoredError, match="at no one place"):
        sc.score(net, graph, [(x, y)], criterion="activation", groups=layers)
    with pytest.raises(ConfigError, match=r"under 'layers\.2'"):
        graph.joined(["layers.2"])


def test_a_block_is_replayed_from_its_addition_on() -> None:
    net, (x, y) = made(SmallViT), pairs(6)
    graph = sc.trace(net, x)
    engine = Engine(net, graph, LOSS, groups=graph.blocks)
    starts = [cone.start for cone in engine._recording(x).cones]
    assert starts == [read.position for read in graph.branches.values()]
    assert starts[-1] > len(graph.program.nodes) * 3 // 4
    list(engine.changes((x, y)))


# ---------------------------------------------------------------------- other ways of the oracle
class Mixing(SmallResNet):
    """Its last block sees the mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Looking(SmallResNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


def test_blocks_of_a_network_that_mixes_the_examples() -> None:
    net, (x, y) = made(Mixing), pairs(6)
    found = sc.oracle(net, graph := sc.trace(net, x), [(x, y)], loss=LOSS, groups=graph.blocks)
    assert all("mixes the examples" in why for why in found.how.values())
    for name, change in changes(net, x, y).items():
        assert abs(found.loss[name] - change.numpy()).max() <= 1e-10


def test_blocks_by_an_objective() -> None:
    net, (x, y) = made(SmallResNet), pairs(6)

    def objective(model: Any, batch: Any) -> Tensor:
        return LOSS(model(batch["x"]), batch["y"])

    graph = sc.trace(net, x)
    data = [{"x": x, "y": y}]
    found = sc.oracle(net, graph, data, objective=objective, groups=graph.blocks)
    for name, change in changes(net, x, y).items():
        assert abs(found.loss[name] - change.numpy()).max() <= 1e-10


def test_a_block_of_a_model_that_looks_at_values_is_refused() -> None:
    net, (x, y) = made(Looking), pairs(6)
    graph = sc.trace(net, x)
    with pytest.raises(PlanError, match=r"without block 'one'.*skip it"):
        sc.oracle(net, graph, [(x, y)], loss=LOSS, groups=graph.blocks)


# ---------------------------------------------------------------------- beside other groups
def test_blocks_are_asked_for_and_no_plan_cuts_them() -> None:
    net, (x, y) = made(SmallViT), pairs(6)
    graph = sc.trace(net, x)
    whole = sc.oracle(net, graph, [(x, y)], loss=LOSS)
    assert list(whole.loss) == [group.name for group in graph]
    assert set(whole.loss).isdisjoint(net.sizes)
    some = [graph.groups[1], graph.blocks[0]]
    found = sc.oracle(net, graph, [(x, y)], loss=LOSS, groups=some)
    assert list(found.loss) == [group.name for group in some]
    assert (found.loss[some[0].name] == whole.loss[some[0].name]).all()
    for criterion in ("taylor", "activation", "l1"):
        before = sc.score(net, graph, [(x, y)], loss=LOSS, criterion=criterion)
        after = sc.score(net, graph, [(x, y)], loss=LOSS, criterion=criterion, groups=some)
        assert (before[some[0].name] == after[some[0].name]).all()
    with pytest.raises(PlanError, match=r"residual block.*skip it in the model"):
        graph.plan({"layers.1.attn": [0]})
    with pytest.raises(ConfigError, match="two of groups="):
        sc.score(net, graph, [(x, y)], loss=LOSS, groups=graph.blocks * 2)
    with pytest.raises(ConfigError, match="no group"):
        sc.score(net, graph, [(x, y)], loss=LOSS, groups=[])
    other = sc.trace(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="none of this graph"):
        sc.oracle(net, graph, [(x, y)], loss=LOSS, groups=other)


def test_an_interrupted_oracle_of_blocks_goes_on(tmp_path: Any) -> None:
    net, (x, y) = made(SmallResNet), pairs(6)
    graph = sc.trace(net, x)
    first = sc.oracle(net, graph, [(x, y)], loss=LOSS, groups=graph.blocks, out=tmp_path)
    next(tmp_path.glob("*0001.safetensors")).unlink()
    options: dict[str, Any] = {"loss": LOSS, "groups": graph.blocks, "out": tmp_path}
    again = sc.oracle(net, graph, [(x, y)], resume=True, **options)
    assert again.to_dict() == first.to_dict()


# ---------------------------------------------------------------------- which there are
class Parts(nn.Module):
    """Layers to make sums of."""

    def __init__(self, forward: Callable[[Parts, Tensor], Tensor]):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in "abc")
        self.norm, self.mlp, self.way = nn.LayerNorm(4), nn.Sequential(*map(lin, "12")), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def lin(_: str) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())


def parallel(net: Parts, x: Tensor) -> Tensor:
    y = net.norm(x)
    return x + net.a(y) + net.mlp(y)


def together(net: Parts, x: Tensor) -> Tensor:
    y = net.norm(x)
    return net.a(y).relu() + net.mlp(y) + x


def nested(net: Parts, x: Tensor) -> Tensor:
    return x + net.c((y := net.a(x).relu()) + net.b(y))


def shared(net: Parts, x: Tensor) -> Tensor:
    for _ in range(2):
        x = x + net.a(x).relu()
    return x


def post_norm(net: Parts, x: Tensor) -> Tensor:
    x = net.norm(net.a(x).relu() + x)
    return net.norm(net.mlp(x) + x)


def moved(net: Parts, x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 2)).flatten(1) + net.mlp(x)


def adapter(net: Parts, x: Tensor) -> Tensor:
    return net.a(x) + net.c(net.b(x))


def rotary(net: Parts, x: Tensor) -> Tensor:
    q = net.a(x)
    return q * 0.5 + torch.cat([-q[:, 2:], q[:, :2]], 1) * 0.5


def recurrent(net: Parts, x: Tensor) -> Tensor:
    h = torch.zeros_like(x)
    for i in range(3):
        h = torch.tanh(net.a(x * i) + net.b(h))
    return h


def gated_cell(net: Parts, x: Tensor) -> Tensor:
    z, n = torch.sigmoid(net.a(x)), torch.tanh(net.b(x))
    return n + z * (x - n)


def positional(net: Parts, x: Tensor) -> Tensor:
    return net.mlp(x + net.a.bias) + net.b.bias


def twins(net: Parts, x: Tensor) -> Tensor:
    return (x + net.a(x).relu()) + (x + net.b(x).relu())


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (parallel, ["a", "mlp"]),
        (together, ["the model"]),
        (nested, ["b", "the model"]),
        (shared, ["a", "a#2"]),
        (post_norm, ["a", "mlp"]),
        (moved, ["mlp"]),
        (adapter, []),
        (rotary, []),
        (recurrent, []),
        (gated_cell, []),
        (positional, []),
        (twins, ["a", "b"]),
    ],
)
def test_which_sums_are_residual(
    forward: Callable[[Parts, Tensor], Tensor], names: list[str]
) -> None:
    graph = sc.trace(Parts(forward), torch.randn(3, 4))
    assert list(graph.branches) == names


def test_a_sum_over_an_example_axis_alone_is_no_block() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 1), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)[:, 0]
            return y + self.b(y[:, None]).tanh()[:, 0] * math.pi

    assert not sc.trace(Flat(), torch.randn(3, 4)).blocks
