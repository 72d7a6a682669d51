"""Second derivatives by single weights, against slow references that build every Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.networks import NETWORKS, network
from tests.zoo import zoo_model
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.utils import _pytree as pytree

from secateurs.errors import DataError, DerivativeError
from secateurs.sparse.curvature import gauss_newton_diagonal, obd_diagonal

Loss = Callable[[Tensor, Tensor], Tensor]
Named = dict[str, Tensor]


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).flatten(1).square().sum(1)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def rows(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """(outputs, inputs): the Jacobian of a function, built whole."""
    found = jacobian(function, at)
    return found.reshape(-1, at.numel())


def naive_recursion(net: nn.Sequential, x: Tensor, target: Tensor, loss: Loss) -> Named:
    """Layer by layer and example by example, by the square of each layer's whole Jacobian."""
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for n in range(len(x)):
        values = [x[n : n + 1]]
        for layer in net:
            values.append(layer(values[-1]).detach())
        bends = hessian(lambda y, n=n: loss(y, target[n : n + 1]).sum(), values[-1])
        bend = bends.reshape(values[-1].numel(), -1).diagonal()
        for i in reversed(range(len(net))):
            layer, value = net[i], values[i]
            for name, p in layer.named_parameters():

                def by(w: Tensor, layer=layer, name=name, value=value) -> Tensor:
                    return functional_call(layer, {name: w}, (value,))

                own = rows(by, p.detach()).square().T @ bend
                total[f"{i}.{name}"] += own.reshape(p.shape)
            bend = rows(lambda v, layer=layer: layer(v.clone()), value).square().T @ bend
    return {name: found / len(x) for name, found in total.items()}


def naive_gauss_newton(net: nn.Module, x: Tensor, target: Tensor, loss: Loss) -> Named:
    """diag(JᵀHJ) of each example, with J and H built whole."""
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for n in range(len(x)):
        y = net(x[n : n + 1]).detach()
        bends = hessian(lambda y, n=n: loss(y, target[n : n + 1]).sum(), y)
        bends = bends.reshape(y.numel(), -1)
        for name, p in net.named_parameters():

            def by(w: Tensor, name=name, n=n) -> Tensor:
                return functional_call(net, {name: w}, (x[n : n + 1],))

            J = rows(by, p.detach())
            total[name] += torch.einsum("ka,kl,la->a", J, bends, J).reshape(p.shape)
    return {name: found / len(x) for name, found in total.items()}


def names(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_parameters()]


def close(found: Named, wanted: Named, to: float) -> None:
    assert found.keys() == wanted.keys()
    for name, own in wanted.items():
        scale = own.abs().max().clamp_min(1e-30)
        assert ((found[name] - own).abs().max() / scale) <= to, name


def deviation(found: Named, wanted: Named) -> float:
    """Σ |difference| / Σ |wanted|, over all weights."""
    off = sum((found[name] - own).abs().sum() for name, own in wanted.items())
    return float(off / sum(own.abs().sum() for own in wanted.values()))


def double(*layers: nn.Module) -> nn.Sequential:
    """In float64 and eval mode, with statistics that are not those of a new net."""
    torch.manual_seed(1)
    net = nn.Sequential(*layers).double().eval()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand_like(tensor)
            tensor.copy_(drawn + 0.5 if name.endswith(("running_var", "weight")) else drawn - 0.5)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(torch.randn_like(p).sign())
    return net


# ---------------------------------------------------------------------- where it is exact
@pytest.mark.parametrize("act", [nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.GELU()])
def test_one_hidden_layer_with_squared_error_is_exact(act: nn.Module) -> None:
    net = double(nn.Linear(5, 7), act, nn.Linear(7, 3))
    x, target = torch.randn(11, 5).double(), torch.randn(11, 3).double()
    data = [(x[:4], target[:4]), (x[4:], target[4:])]
    found = obd_diagonal(net, names(net), data, loss=squared_error)
    close(found, naive_gauss_newton(net, x, target, squared_error), 1e-10)
    exact = gauss_newton_diagonal(net, names(net), data, loss=squared_error)
    assert max((found[n] - exact[n]).abs().max() for n in names(net)) <= 1e-10


@pytest.mark.parametrize("kind", ["convolution", "cross-entropy", "deep"])
def test_elsewhere_it_deviates(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The negative control of the test before, and by how much."""
    net, x = double(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), torch.randn(11, 5).double()
    loss, target = squared_error, torch.randn(11, 3).double()
    if kind == "convolution":
        x = torch.randn(11, 1, 8, 8).double()
        net = double(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    elif kind == "deep":
        net = double(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))
    else:
        loss, target = cross_entropy, torch.arange(11) % 3
    found = obd_diagonal(net, names(net), [(x, target)], loss=loss)
    exact = gauss_newton_diagonal(net, names(net), [(x, target)], loss=loss)
    off = deviation(found, exact)
    with capsys.disabled():
        print(f"\n{kind}: the recursion is off the exact Gauss-Newton diagonal by {off:.3f}")
    assert 1e-3 < off < 2
    close(found, naive_recursion(net, x, target, loss), 1e-10)


# ---------------------------------------------------------------------- one operation at a time
IMAGE, LINE, CUBE = (4, 6, 7), (4, 9), (4, 3, 4, 3)
LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "conv1d": (LINE, lambda: nn.Conv1d(4, 3, 3, stride=2, padding=1)),
    "conv2d": (IMAGE, lambda: nn.Conv2d(4, 3, 3, bias=False)),
    "strided": (IMAGE, lambda: nn.Conv2d(4, 3, (3, 2), stride=(2, 3), padding=(1, 2))),
    "dilated": (IMAGE, lambda: nn.Conv2d(4, 3, 3, padding=2, dilation=2)),
    "grouped": (IMAGE, lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2)),
    "depthwise": (IMAGE, lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4)),
    "reflected": (IMAGE, lambda: nn.ReflectionPad2d(2)),
    "padded": (IMAGE, lambda: nn.ZeroPad2d((1, 0, 2, 1))),
    "conv3d": (CUBE, lambda: nn.Conv3d(4, 3, 2, stride=(1, 2, 1))),
    "transposed": (IMAGE, lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)),
    "linear": (LINE, lambda: nn.Linear(9, 5)),
    "max_pool": (IMAGE, lambda: nn.MaxPool2d(3, 2, 1)),
    "max_pool1d": (LINE, lambda: nn.MaxPool1d(2)),
    "avg_pool": (IMAGE, lambda: nn.AvgPool2d(2)),
    "avg_pool1d": (LINE, lambda: nn.AvgPool1d(2)),
    "avg_pool_padded": (IMAGE, lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "avg_pool_uncounted": (IMAGE, lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "avg_pool_divided": (IMAGE, lambda: nn.AvgPool2d(3, 2, divisor_override=5)),
    "adaptive": (IMAGE, lambda: nn.AdaptiveAvgPool2d((4, 3))),
    "global": (IMAGE, lambda: nn.AdaptiveAvgPool2d(1)),
    "adaptive_max": (IMAGE, lambda: nn.AdaptiveMaxPool2d(3)),
    "batch_norm": (IMAGE, lambda: nn.BatchNorm2d(4)),
    "batch_norm_plain": (LINE, lambda: nn.BatchNorm1d(4, affine=False)),
    "instance_norm": (IMAGE, lambda: nn.InstanceNorm2d(4, affine=True)),
    "layer_norm": (IMAGE, lambda: nn.LayerNorm((6, 7))),
    "layer_norm_plain": (LINE, lambda: nn.LayerNorm(9, elementwise_affine=False)),
    "group_norm": (IMAGE, lambda: nn.GroupNorm(2, 4)),
    "softmax": (LINE, lambda: nn.Softmax(-1)),
    "log_softmax": (LINE, lambda: nn.LogSoftmax(1)),
    "prelu": (IMAGE, lambda: nn.PReLU(4)),
    "relu6": (LINE, nn.ReLU6),
    "hardswish": (LINE, nn.Hardswish),
    "silu": (LINE, nn.SiLU),
    "gelu": (LINE, nn.GELU),
    "in_place": (LINE, lambda: nn.ReLU(inplace=True)),
    "dropout": (LINE, lambda: nn.Dropout(0.5)),
    "upsample": (IMAGE, lambda: nn.Upsample(scale_factor=2)),
    "pixel_shuffle": (IMAGE, lambda: nn.PixelShuffle(2)),
    "unflatten": (LINE, lambda: nn.Unflatten(2, (3, 3))),
    "channel_shuffle": (IMAGE, lambda: nn.ChannelShuffle(2)),
}


class Scale(nn.Module):
    """A weight of its own for each element: what goes back through a layer is seen here."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@pytest.mark.parametrize("name", LAYERS)
def test_each_operation_against_its_whole_jacobian(name: str) -> None:
    shape, make = LAYERS[name]
    size = make().eval()(torch.zeros(1, *shape)).numel()
    net = double(Scale(shape), make(), nn.Flatten(), nn.Linear(size, 3))
    x, target = torch.randn(2, *shape).double(), torch.zeros(2, 3).double()
    wanted = naive_recursion(net, x, target, squared_error)
    found = obd_diagonal(net, names(net), [(x, target)], loss=squared_error)
    close(found, wanted, 1e-10)
    assert all(own.any() for own in wanted.values())


class Streams(nn.Module):
    """y = a·x + tanh(b·x) ⊙ (a·x), cat and a matrix product: what is read twice gets both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        ax = x * self.a
        gated = torch.tanh(x * self.b) * ax
        return torch.cat([ax + gated, ax * ax], 1)


def test_a_value_that_is_read_often_sums_over_its_readers() -> None:
    torch.manual_seed(0)
    net, x = Streams().double(), torch.randn(3, 4).double()
    a, b = net.a.detach(), net.b.detach()
    t = torch.tanh(x * b)
    by_product, by_gate = 2 * torch.ones_like(x), 2 * torch.ones_like(x)  # of C = Σ y²
    by_ax = by_product + by_gate * t**2 + 2 * (2 * x * a) ** 2
    wanted = {
        "a": (by_ax * x**2).mean(0),
        "b": (by_gate * (x * a) ** 2 * (1 - t**2) ** 2 * x**2).mean(0),
    }
    found = obd_diagonal(net, ["a", "b"], [(x, torch.zeros(3, 8).double())], loss=squared_error)
    close(found, wanted, 1e-12)


@st.composite
def nets(draw: st.DrawFn) -> nn.Sequential:
    """A chain of two or three convolutions with what may lie between them."""
    channels, layers = 2, list[nn.Module]()
    for _ in range(draw(st.integers(1, 2))):
        width = draw(st.sampled_from([2, 4]))
        layers.append(
            nn.Conv2d(
                channels, width, draw(st.sampled_from([1, 2, 3])),
                stride=draw(st.integers(1, 2)), padding=draw(st.integers(1, 2)),
                groups=draw(st.sampled_from([1, 2])), bias=draw(st.booleans()),
            )
        )  # fmt: skip
        between = [nn.Tanh, nn.SiLU, lambda w=width: nn.BatchNorm2d(w), lambda: nn.AvgPool2d(2, 1)]
        between += [lambda w=width: nn.GroupNorm(2, w), lambda: nn.MaxPool2d(2, 1), nn.Identity]
        layers += [make() for make in draw(st.lists(st.sampled_from(between), max_size=2))]
        channels = width
    return double(*layers, nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(2 * channels, 3))


@settings(max_examples=15, deadline=None)
@given(nets())
def test_generated_nets(net: nn.Sequential) -> None:
    x, target = torch.randn(2, 2, 5, 5).double(), torch.arange(2)
    found = obd_diagonal(net, names(net), [(x, target)], loss=cross_entropy)
    close(found, naive_recursion(net, x, target, cross_entropy), 1e-9)
    exact = gauss_newton_diagonal(net, names(net), [(x, target)], loss=cross_entropy)
    close(exact, naive_gauss_newton(net, x, target, cross_entropy), 1e-9)


# ---------------------------------------------------------------------- any network
def any_square(model: nn.Module, batch: Any) -> Tensor:
    """The sum of squares of all that the model returns."""
    given_ = batch if isinstance(batch, dict) else pytree.tree_leaves(batch)
    output = model(**given_) if isinstance(given_, dict) else model(*given_)
    leaves = [y for y in pytree.tree_leaves(output) if isinstance(y, Tensor)]
    return torch.stack([y.flatten(1).square().sum(1) for y in leaves]).sum(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_has_both_diagonals(name: str) -> None:
    net, inputs = network(name)
    diagonals: list[Callable[..., Named]] = [obd_diagonal]
    if name not in ("shuffled", "literal_slice", "attribute_slice", "unet"):  # wide outputs
        diagonals.append(gauss_newton_diagonal)
    for diagonal in diagonals:
        found = diagonal(net, names(net), [inputs], objective=any_square)
        assert all(own.any() and own.min() >= 0 for own in found.values())


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2"])
def test_networks_of_torchvision(name: str) -> None:
    """The weights of the classifier, where the recursion can be told in one line."""
    net, x = zoo_model(name)
    target = torch.arange(len(x))
    found = obd_diagonal(net, names(net), [(x, target)], loss=cross_entropy)
    assert all(own.any() and own.min() >= 0 for own in found.values())
    bias = next(n for n in reversed(names(net)) if n.endswith("bias"))
    p = net(x).detach().softmax(1)
    assert torch.allclose(found[bias], (p * (1 - p)).mean(0), rtol=1e-9)


# ---------------------------------------------------------------------- Gauss-Newton
def small(kind: str) -> tuple[nn.Module, Tensor]:
    x = torch.randn(5, 2, 6, 6).double()
    if kind == "dense":
        return double(nn.Flatten(), nn.Linear(72, 4), nn.Tanh(), nn.Linear(4, 3)), x
    if kind == "deep":
        conv, last = nn.Conv2d(2, 4, 3), nn.Linear(16, 3)
        return double(conv, nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), last), x
    inner = nn.Conv2d(2, 2, 3, padding=1)
    return double(inner, nn.ReLU(), inner, nn.Flatten(), nn.Linear(72, 3)), x  # shared


@pytest.mark.parametrize("kind", ["dense", "deep", "shared"])
@pytest.mark.parametrize("loss", [squared_error, cross_entropy])
def test_gauss_newton_against_whole_jacobians(
    kind: str, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = small(kind)
    target = torch.arange(5) % 3 if loss is cross_entropy else torch.randn(5, 3).double()
    wanted = naive_gauss_newton(net, x, target, loss)
    for room in (2**25, 700, 1):  # all at once, a few, one by one
        monkeypatch.setattr("secateurs.sparse.curvature.ROOM", room)
        found = gauss_newton_diagonal(net, names(net), [(x, target)], loss=loss)
        close(found, wanted, 1e-10)


class Branches(nn.Module):
    """What it does depends on a value, so that examples cannot be vectorised."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y.tanh() if float(x.sum()) > 0 else y.sin()


def test_gauss_newton_of_a_model_that_looks_at_values() -> None:
    net, x = Branches().double(), torch.randn(6, 4).double()
    target = torch.randn(6, 3).double()
    found = gauss_newton_diagonal(net, names(net), [(x, target)], loss=squared_error)
    close(found, naive_gauss_newton(net, x, target, squared_error), 1e-10)


class TwoWays(nn.Module):
    """Positive batches take one way, others the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.mean() > 0 else self.b(x)


def test_each_batch_takes_its_own_way() -> None:
    net, x, target = TwoWays().double(), torch.rand(5, 4).double(), torch.zeros(5, 3).double()
    found = obd_diagonal(net, names(net), [(x, target), (-x, target)], loss=squared_error)
    wanted = (2 * x.square()).mean(0).expand(3, 4) / 2  # half of the examples go each way
    for way in ("a", "b"):
        assert torch.allclose(found[f"{way}.weight"], wanted, rtol=1e-12)
        assert torch.equal(found[f"{way}.bias"], torch.ones(3).double())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


def test_gauss_newton_of_an_lstm_in_single_precision() -> None:
    torch.manual_seed(0)
    net, x, target = Recurrent(), torch.randn(3, 5, 3), torch.randn(3, 2)
    single = gauss_newton_diagonal(net, names(net), [(x, target)], loss=squared_error)
    data = [(x.double(), target.double())]
    exact = gauss_newton_diagonal(net.double(), names(net), data, loss=squared_error)
    assert all(own.any() for own in exact.values())
    assert deviation({name: own.double() for name, own in single.items()}, exact) < 1e-5
    wanted = naive_gauss_newton(net, *data[0], squared_error)
    close(exact, wanted, 1e-10)


# ---------------------------------------------------------------------- forms of data, refusals
@pytest.mark.parametrize("diagonal", [obd_diagonal, gauss_newton_diagonal])
def test_all_forms_of_a_loss_agree(diagonal: Callable[..., Named]) -> None:
    net, x = small("deep")
    target = torch.arange(5) % 3
    whole, parts = [(x, target)], [(x[:2], target[:2]), (x[2:], target[2:])]

    def objective(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    wanted = diagonal(net, names(net), whole, loss=cross_entropy)
    close(diagonal(net, names(net), parts, loss=cross_entropy), wanted, 1e-12)
    close(diagonal(net, names(net), parts, loss=F.cross_entropy), wanted, 1e-12)
    close(diagonal(net, names(net), parts, objective=objective), wanted, 1e-12)


@pytest.mark.parametrize("diagonal", [obd_diagonal, gauss_newton_diagonal])
def test_the_model_is_left_as_it_was(diagonal: Callable[..., Named]) -> None:
    net, x = small("deep")
    net.train()
    net[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = diagonal(net, ["0.weight"], [(x, torch.arange(5) % 3)], loss=cross_entropy)
    assert found["0.weight"].any()
    assert not found["0.weight"].requires_grad
    assert net.training
    assert not net[0].weight.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


class Unruled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.inv(torch.diag_embed(self.fc(x)) + 9 * torch.eye(4)).flatten(1)


def circular() -> nn.Module:
    """Its padding is written into parts of an empty tensor."""
    first, second = nn.Conv1d(2, 8, 1), nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular")
    return nn.Sequential(nn.Unflatten(1, (2, 2)), first, second, nn.Flatten())


@pytest.mark.parametrize("make", [Unruled, circular])
def test_an_operation_without_a_rule_is_named(make: Callable[[], nn.Module]) -> None:
    net, x = make(), torch.randn(3, 4)
    data = [(x, torch.zeros(3, 16))]
    with pytest.raises(DerivativeError, match=r"aten\.\w+.*choose saliency 'gauss-newton'"):
        obd_diagonal(net, names(net), data, loss=squared_error)
    found = gauss_newton_diagonal(net, names(net), data, loss=squared_error)
    assert all(own.any() for own in found.values())


@pytest.mark.parametrize("diagonal", [obd_diagonal, gauss_newton_diagonal])
def test_what_cannot_be_used_is_refused(diagonal: Callable[..., Named]) -> None:
    net, x = small("dense")
    data = [(x, torch.arange(5) % 3)]
    with pytest.raises(DataError, match="no batch"):
        diagonal(net, names(net), [], loss=cross_entropy)
    with pytest.raises(DataError, match="called the model 2 times"):
        diagonal(net, names(net), [x], objective=lambda m, x: (m(x) * m(x)).sum(1))
    for flat in (lambda y, t: y.sum(1), lambda y, t: cross_entropy(y.detach(), t)):
        with pytest.raises(DerivativeError, match="linear in the network's output"):
            diagonal(net, names(net), data, loss=flat)
