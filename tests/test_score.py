"""Scores against slow references: one example at a time, explicit gates at hand-listed readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.networks import network
from torch import Tensor, nn

import secateurs as sc
from secateurs.criteria import CRITERIA, GroupBatch, GroupInfo
from secateurs.errors import ConfigError, DataError

# network -> {group: [(module that reads, the unit of each of its input channels, -1 for none)]}
READERS: dict[str, dict[str, list[tuple[str, list[int]]]]] = {
    "lenet": {
        "conv1": [("conv2", list(range(6)))],
        "conv2": [("fc1", [c for c in range(10) for _ in range(16)])],
        "fc1": [("fc2", list(range(20)))],
    },
    "residual": {
        "stem": [("a", list(range(8))), ("head", list(range(8)))],
        "a": [("b", list(range(12)))],
    },
    "unet": {
        "down1": [("down2", list(range(8))), ("out", [-1] * 8 + list(range(8)))],
        "down2": [("up", list(range(16)))],
        "up": [("out", list(range(8)) + [-1] * 8)],
        "out": [("head", list(range(8)))],
    },
    "nhwc": {"conv": [("head", list(range(8)) * 64)]},
    "hard_view": {
        "conv1": [("conv2", list(range(16)))],
        "conv2": [("head", [c for c in range(64) for _ in range(64)])],
    },
    "squeeze_excite": {
        "conv": [("squeeze", list(range(8))), ("out", list(range(8)))],
        "squeeze": [("excite", list(range(6)))],
    },
    "grouped": {
        "stem": [("grouped", [c for c in range(8) for _ in range(2)])],
        "depthwise": [("grouped", [0, 1] * 8)],
        "grouped": [("transposed", list(range(32)))],
        "transposed": [("head", list(range(16)))],
    },
    "shared": {"stem": [("twice", list(range(8))), ("head", list(range(8)))]},
    "in_place": {"a": [("b", list(range(8))), ("head", list(range(8)))]},
    "shuffled": {"conv": [("head", list(range(8)))]},
}


def loss_of(output: Any, target: Tensor) -> Tensor:
    """One value per example, far from linear in the output."""
    return (output.flatten(1) - target[:, None]).square().mean(1)


def examples(name: str, n: int = 5) -> tuple[nn.Module, Any, Tensor, Tensor]:
    model, x = network(name)
    draw = torch.Generator().manual_seed(7)
    more = torch.randn(n, *x.shape[1:], dtype=x.dtype, generator=draw)
    return model, x, more, torch.randn(n, dtype=x.dtype, generator=draw)


def test_a_norm_of_weights_is_held_fixed_whatever_the_batch() -> None:
    """`weight_norm` reads the units of its input in the norm, where examples are one."""
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), layer).double()
    x, y = torch.randn(6, 4).double(), torch.randn(6).double()
    gate = torch.ones(6, 8).double().requires_grad_()
    total = loss_of(layer(net[:2](x) * gate), y).sum()
    [slope] = torch.autograd.grad(total, gate)
    wanted = {
        "taylor": slope.abs().mean(0),
        "taylor-squared": slope.mean(0).square(),
        "fisher": slope.square().mean(0) / 2,
    }
    graph = sc.trace(net, x)
    for criterion, expected in wanted.items():
        for size in (6, 4, 1):
            data = list(zip(x.split(size), y.split(size), strict=True))
            found = sc.score(net, graph, data, loss=loss_of, criterion=criterion)
            torch.testing.assert_close(torch.from_numpy(found["0"]), expected)
    halves, ones = (
        sc.score(
            net, graph, zip(x.split(n), y.split(n), strict=True), loss=loss_of, criterion="obd"
        )
        for n in (3, 1)
    )
    np.testing.assert_allclose(halves["0"], ones["0"])


def test_positions_are_counted_where_they_are_read() -> None:
    """Behind 4 × 4 pooling, 16 times equation 7 at the map after the nonlinearity."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    x, y = torch.randn(5, 3, 10, 10).double(), torch.randn(5).double()
    map_ = net[:2](x).detach().requires_grad_()
    [slope] = torch.autograd.grad(loss_of(net[2:](map_), y).sum(), map_)
    paper = (slope * map_).mean((2, 3)).abs().mean(0)
    found = sc.score(net, sc.trace(net, x), [(x, y)], loss=loss_of)
    torch.testing.assert_close(torch.from_numpy(found["0"]), (16 * paper).detach())


def naive_taylor(model: nn.Module, readers: dict, x: Tensor, y: Tensor, loss: Any) -> dict:
    """Mean over examples of |Σ over readers of (1/M) ∂C/∂gate|, M counted at each reader."""
    totals: dict[str, Tensor] = {}
    for i in range(len(x)):
        gates: list[tuple[str, Tensor, list[int]]] = []
        hooks = []
        for group, places in readers.items():
            for path, owner in places:
                units = torch.tensor(owner)
                gate = torch.ones(int(units.max()) + 1, dtype=x.dtype, requires_grad=True)
                positions: list[int] = []

                def hook(_: nn.Module, args: tuple, units=units, gate=gate, positions=positions):
                    line = torch.where(units < 0, 1.0, gate[units.clamp(0)])
                    positions.append(args[0].numel() // len(units) * int((units == 0).sum()))
                    return (args[0] * line.reshape(1, -1, *[1] * (args[0].dim() - 2)),)

                hooks.append(model.get_submodule(path).register_forward_pre_hook(hook))
                gates.append((group, gate, positions))
        cost = loss(model(x[i : i + 1]), y[i : i + 1]).sum()
        slopes = torch.autograd.grad(cost, [gate for _, gate, _ in gates])
        for hook_handle in hooks:
            hook_handle.remove()
        one: dict[str, Tensor] = {}
        for (group, _, positions), slope in zip(gates, slopes, strict=True):
            one[group] = one.get(group, 0) + slope / positions[0]
        for group, value in one.items():
            totals[group] = totals.get(group, 0) + value.abs() / len(x)
    return totals


def close(found: sc.Scores, wanted: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert set(found) == set(wanted)
    for group, values in wanted.items():
        given = torch.from_numpy(found[group])
        assert given.shape == values.shape
        assert float((given - values).abs().max()) <= tolerance * float(values.abs().max()), group


@pytest.mark.parametrize("name", READERS)
def test_taylor_is_the_mean_of_absolute_gate_derivatives(name: str) -> None:
    model, example, x, y = examples(name)
    found = sc.score(model, sc.trace(model, example), [(x, y)], loss=loss_of)
    close(found, naive_taylor(model, READERS[name], x, y, loss_of))
    assert (found.criterion, found.examples, found.assumed) == ("taylor", 5, "one loss per example")


@pytest.mark.parametrize("criterion", ["taylor", "activation"])
@pytest.mark.parametrize("name", ["lenet", "residual", "grouped", "squeeze_excite"])
@pytest.mark.parametrize("sizes", [[1] * 5, [3, 2], [2, 2, 1]], ids=str)
def test_scores_do_not_depend_on_how_the_data_is_batched(
    name: str, criterion: str, sizes: list[int]
) -> None:
    model, example, x, y = examples(name)
    graph = sc.trace(model, example)
    whole = sc.score(model, graph, [(x, y)], loss=loss_of, criterion=criterion)
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    for data in (batches, batches[::-1], iter(batches)):
        found = sc.score(model, graph, data, loss=loss_of, criterion=criterion)
        close(found, {g: torch.from_numpy(whole[g]) for g in whole})
        assert found.examples == 5


def test_images_of_several_sizes_make_one_score() -> None:
    model, example, x, y = examples("residual")
    small = x[:2, :, :10, :12]
    graph = sc.trace(model, example)
    found = sc.score(model, graph, [(x[2:], y[2:]), (small, y[:2])], loss=loss_of)
    parts = [
        naive_taylor(model, READERS["residual"], part, target, loss_of)
        for part, target in ((x[2:], y[2:]), (small, y[:2]))
    ]
    close(found, {g: 0.6 * parts[0][g] + 0.4 * parts[1][g] for g in parts[0]})


# ---------------------------------------------------------------------- losses
def labels_for(n: int) -> Tensor:
    return torch.arange(n) % 4


def test_a_scalar_mean_gives_the_scores_of_one_loss_per_example() -> None:
    model, example, x, _ = examples("lenet")
    y, graph = labels_for(5), sc.trace(model, example)
    each = sc.score(model, graph, [(x, y)], loss=nn.CrossEntropyLoss(reduction="none"))
    batches = list(zip(x.split(2), y.split(2), strict=True))
    mean = sc.score(model, graph, batches, loss=nn.CrossEntropyLoss())
    close(mean, {g: torch.from_numpy(each[g]) for g in each})
    assert mean.assumed == "a scalar loss, read as the mean over examples"


def test_class_weights_and_ignored_labels_are_exact_per_example() -> None:
    model, example, x, _ = examples("lenet", 6)
    y = torch.tensor([0, 1, -100, 2, 1, -100])
    weighted = nn.CrossEntropyLoss(
        weight=torch.tensor([0.1, 3.0, 1.0, 9.0]).double(), reduction="none"
    )
    found = sc.score(model, sc.trace(model, example), [(x, y)], loss=weighted)
    close(found, naive_taylor(model, READERS["lenet"], x, y, weighted))
    some = y >= 0
    part = sc.score(model, sc.trace(model, example), [(x[some], y[some])], loss=weighted)
    close(found, {g: torch.from_numpy(part[g]) * 4 / 6 for g in part})


def test_an_objective_says_the_same_as_a_loss() -> None:
    model, example, x, y = examples("residual")
    graph = sc.trace(model, example)
    wanted = sc.score(model, graph, [(x, y)], loss=loss_of)

    def objective(net: Any, batch: dict[str, Tensor]) -> Tensor:
        assert net.stem is model.stem  # what else the model offers is there
        return loss_of(net(batch["image"]), batch["target"])

    found = sc.score(model, graph, [{"image": x, "target": y}], objective=objective)
    close(found, {g: torch.from_numpy(wanted[g]) for g in wanted})


def test_inputs_by_name_are_told_apart_in_any_order() -> None:
    model, inputs = network("dicts")
    graph = sc.trace(model, inputs)

    def loss(output: Any, _: Any) -> Tensor:
        return (output["mean"].square() + output["more"][0]).sum(1)

    turned = dict(reversed(list(inputs.items())))
    wanted = sc.score(model, graph, [(inputs, None)], loss=loss)
    found = sc.score(model, graph, [(inputs, None), (turned, None)], loss=loss)
    close(found, {g: torch.from_numpy(wanted[g]) for g in wanted})


def test_other_arguments_than_tensors_are_told_apart() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.b(torch.relu(self.a(x))) * scale

    model, x = Scaled().double(), torch.randn(3, 4).double()
    graph = sc.trace(model, x)

    def scores(*scales: float) -> sc.Scores:
        def objective(net: Any, scale: Tensor) -> Tensor:
            return net(x, float(scale)).sum(1)

        return sc.score(model, graph, map(torch.tensor, scales), objective=objective)

    one, ten, both = scores(1.0)["a"], scores(10.0)["a"], scores(1.0, 10.0)["a"]
    assert both == pytest.approx((one + ten) / 2)


# ---------------------------------------------------------------------- other criteria
def test_weight_is_the_mean_square_of_all_that_writes() -> None:
    model, example = network("residual")
    found = sc.score(model, sc.trace(model, example), criterion="weight")
    stem, a, b = (
        w.detach().flatten(1) for w in (model.stem.weight, model.a.weight, model.b.weight)
    )
    close(found, {"stem": torch.cat([stem, b], 1).square().mean(1), "a": a.square().mean(1)})


def test_weight_reads_grouped_and_transposed_kernels() -> None:
    model, example = network("grouped")
    found = sc.score(model, sc.trace(model, example), criterion="weight")
    transposed = model.transposed.weight.unflatten(0, (4, 8)).transpose(1, 2)  # block, out, in
    depthwise = model.depthwise.weight.unflatten(0, (8, 2))
    stem = torch.cat([model.stem.weight.flatten(1), depthwise.flatten(1)], 1)
    wanted = {
        "stem": stem.square().mean(1),
        "depthwise": depthwise.transpose(0, 1).flatten(1).square().mean(1),
        "grouped": model.grouped.weight.flatten(1).square().mean(1),
        "transposed": transposed.reshape(16, -1).square().mean(1),
    }
    close(found, {group: value.detach() for group, value in wanted.items()})


def test_activation_is_the_mean_of_what_the_first_reader_reads() -> None:
    model, example, x, y = examples("residual")
    graph = sc.trace(model, example)
    found = sc.score(model, graph, [(x, y)], loss=loss_of, criterion="activation")
    read: dict[str, Tensor] = {}
    for path in ("a", "b"):
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: read.update({path: args[0].mean((0, 2, 3)).detach()})
        )
    model(x)
    close(found, {"stem": read["a"], "a": read["b"]})


def test_random_is_fixed_by_the_seed_alone() -> None:
    model, example = network("lenet")
    graph = sc.trace(model, example)
    one, same, other = (sc.score(model, graph, criterion="random", seed=s) for s in (1, 1, 2))
    for group in graph:
        assert (one[group.name] == same[group.name]).all()
        assert (one[group.name] != other[group.name]).all()
        assert ((one[group.name] >= 0) & (one[group.name] < 1)).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_states_merge_to_the_state_of_all_the_data(name: str) -> None:
    criterion = CRITERIA[name]
    weights = (torch.randn(4, 6), torch.randn(4, 3))
    info = GroupInfo("group", 4, weights, weights, weights, seed=3, sample=torch.randn(16, 4))
    batches = [
        GroupBatch(
            *(torch.randn(n, 4) for _ in range(3)),
            torch.randn(n, 4, 2),
            torch.randn(n, 4, 9),
            torch.randint(3, (n,)),
            torch.randn(n, 4),
        )
        for n in (3, 1, 5)
    ]
    alone = criterion.init(info)
    for batch in batches:
        alone = criterion.update(alone, batch)
    a, b, c = (criterion.update(criterion.init(info), batch) for batch in batches)
    for merged in (
        criterion.merge(criterion.merge(a, b), c),
        criterion.merge(a, criterion.merge(b, c)),
        criterion.merge(criterion.merge(c, a), criterion.merge(b, criterion.init(info))),
    ):
        torch.testing.assert_close(
            criterion.score(merged), criterion.score(alone), rtol=1e-6, atol=0
        )


class Largest:
    """A user's own: the largest gate derivative of any example."""

    name = "largest"
    needs = frozenset({"mean_gradient"})

    def init(self, group: GroupInfo) -> Tensor:
        return torch.zeros(group.size)

    def update(self, state: Tensor, batch: GroupBatch) -> Tensor:
        return torch.maximum(state, batch.mean_gradient.abs().amax(0))

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b)

    def score(self, state: Tensor) -> Tensor:
        return state


def test_a_criterion_of_the_user_is_one_object() -> None:
    model, example, x, y = examples("lenet", 3)
    graph = sc.trace(model, example)
    found = sc.score(model, graph, [(x, y)], loss=loss_of, criterion=Largest())
    each = [sc.score(model, graph, [(x[i : i + 1], y[i : i + 1])], loss=loss_of) for i in range(3)]
    for group in graph:
        stacked = torch.stack([torch.from_numpy(one[group.name]) for one in each])
        torch.testing.assert_close(torch.from_numpy(found[group.name]), stacked.amax(0))
    assert found.criterion == "largest"


# ---------------------------------------------------------------------- bad input
def nan(output: Tensor, target: Tensor) -> Tensor:
    return output.sum(1) * float("nan")


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([], {"loss": loss_of}, DataError, "empty"),
        (None, {"loss": loss_of}, DataError, "needs data"),
        ("pairs", {}, DataError, "one of the two"),
        ("pairs", {"loss": loss_of, "objective": nan}, DataError, "one of the two"),
        ("pairs", {"loss": nan}, DataError, "not finite"),
        ("pairs", {"loss": lambda o, t: o}, DataError, r"shape \(5, 4\)"),
        ("pairs", {"loss": lambda o, t: 1.0}, DataError, "must be a tensor"),
        ("bare", {"loss": loss_of}, DataError, "pairs"),
        ("pairs", {"loss": loss_of, "criterion": "tailor"}, ConfigError, "mean 'taylor'"),
        ("pairs", {"loss": loss_of, "criterion": object()}, ConfigError, "not a criterion"),
        ("pairs", {"loss": loss_of, "batches": 0}, DataError, "empty"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    data: Any, options: dict, error: type[Exception], message: str
) -> None:
    model, example, x, y = examples("lenet")
    graph = sc.trace(model, example)
    given = {"pairs": [(x, y)], "bare": [x]}.get(data, data) if isinstance(data, str) else data
    with pytest.raises(error, match=message):
        sc.score(model, graph, given, **options)
    assert all(p.grad is None for p in model.parameters())


def test_a_criterion_that_returns_another_shape_is_refused() -> None:
    class Short(Largest):
        def score(self, state: Tensor) -> Tensor:
            return state[:1]

    model, example, x, y = examples("lenet")
    with pytest.raises(DataError, match="scores for the 6 units of group 'conv1'"):
        sc.score(model, sc.trace(model, example), [(x, y)], loss=loss_of, criterion=Short())


def test_gradients_and_modes_are_left_as_they_were() -> None:
    model, example, x, y = examples("residual")
    model.train()
    F.mse_loss(model(x)[:, 0], y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    sc.score(model, sc.trace(model, example), [(x, y)], loss=loss_of)
    assert model.training
    for parameter, grad in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, grad)
