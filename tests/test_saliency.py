"""What single weights are worth, against slow references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.networks import network
from torch import Tensor, nn

from secateurs.errors import ConfigError, DataError, NotFiniteError
from secateurs.sparse.curvature import gauss_newton_diagonal, obd_diagonal
from secateurs.sparse.saliency import SALIENCIES, Own, Random, Saliency, find_saliency


def net_and_data() -> tuple[nn.Module, list[str], list[tuple[Tensor, Tensor]]]:
    """A small convolutional net, its parameters, and three uneven batches."""
    torch.manual_seed(0)
    net, _ = network("lenet")
    x, y = torch.randn(7, 1, 28, 28).double(), torch.arange(7) % 4
    cuts = (slice(3), slice(3, 6), slice(6, 7))
    return net, [n for n, _ in net.named_parameters()], [(x[cut], y[cut]) for cut in cuts]


def slopes(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The gradient of the mean loss, from one example at a time."""
    rows = [(x, y) for batch in data for x, y in zip(*batch, strict=True)]
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for x, y in rows:
        net.zero_grad()
        F.cross_entropy(net(x[None]), y[None]).backward()
        for name, p in net.named_parameters():
            total[name] += p.grad / len(rows)
    net.zero_grad()
    return total


def test_each_saliency_is_its_formula() -> None:
    net, names, data = net_and_data()
    weights = {name: p.detach() for name, p in net.named_parameters()}
    gradient = slopes(net, data)
    bent = obd_diagonal(net, names, data, loss=F.cross_entropy)
    exact = gauss_newton_diagonal(net, names, data, loss=F.cross_entropy)
    wanted = {
        "magnitude": {n: w.abs() for n, w in weights.items()},
        "taylor": {n: (w * gradient[n]).abs() for n, w in weights.items()},
        "obd": {n: bent[n] * w**2 / 2 for n, w in weights.items()},
        "gauss-newton": {n: exact[n] * w**2 / 2 for n, w in weights.items()},
    }
    assert SALIENCIES.keys() == wanted.keys() | {"random"}
    for name, own in wanted.items():
        found = SALIENCIES[name].of(net, names, iter(data), loss=F.cross_entropy)
        assert found.keys() == own.keys()
        for parameter in names:
            assert torch.allclose(found[parameter], own[parameter], rtol=1e-9, atol=1e-15)
            assert found[parameter].min() >= 0


def test_dense_weights_are_judged_at_the_masked_network() -> None:
    net, names, data = net_and_data()
    dense = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.fc1.weight.data[:, ::2] = 0
    gradient = slopes(net, data)
    found = SALIENCIES["taylor"].of(net, names, data, loss=F.cross_entropy, weights=dense)
    for name, w in dense.items():
        assert torch.allclose(found[name], (w * gradient[name]).abs(), rtol=1e-9, atol=1e-15)
    own = SALIENCIES["taylor"].of(net, names, data, loss=F.cross_entropy)
    assert not own["fc1.weight"][:, ::2].any()
    assert found["fc1.weight"][:, ::2].any()


def test_a_shared_weight_has_all_its_names() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(5, 4)
    net[2].weight = net[0].weight
    shared = [n for n, _ in net.named_parameters(remove_duplicate=False)]
    assert len(shared) > len(list(net.parameters()))
    for name in ("taylor", "obd", "gauss-newton"):
        found = SALIENCIES[name].of(
            net, shared, [x], objective=lambda model, x: model(x).flatten(1).square().sum(1)
        )
        by_tensor: dict[int, Tensor] = {}
        for path in shared:
            tensor = net.get_parameter(path)
            assert torch.equal(by_tensor.setdefault(id(tensor), found[path]), found[path])
            assert found[path].any()


def test_random_is_fixed_by_its_seed_alone() -> None:
    net, names, _ = net_and_data()
    one, same, other = (Random(seed).of(net, names) for seed in (0, 0, 1))
    assert all(torch.equal(one[n], same[n]) for n in names)
    assert not any(torch.equal(one[n], other[n]) for n in names)
    assert (Random().name, Random(3).name) == ("random", "random-3")


def test_a_function_of_ones_own() -> None:
    net, names, data = net_and_data()

    def movement(weight: Tensor, gradient: Tensor) -> Tensor:
        return -weight * gradient

    own = find_saliency(movement)
    assert (own.name, own.needs) == ("movement", "gradient")
    found, gradient = own.of(net, names, data, loss=F.cross_entropy), slopes(net, data)
    for name, p in net.named_parameters():
        assert torch.allclose(found[name], -p * gradient[name], rtol=1e-9, atol=1e-15)


@dataclass(frozen=True)
class First:
    """An object of one's own: the first rows stay."""

    name: str = "first"
    needs: str = ""

    def of(
        self,
        model: nn.Module,
        names: Iterable[str],
        batches: Iterable[Any] = (),
        *,
        loss: Any = None,
        objective: Any = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        return {name: model.get_parameter(name).detach() * 0 for name in names}


def test_an_object_of_ones_own_is_one() -> None:
    own = First()
    assert isinstance(own, Saliency)
    assert find_saliency(own) is own


def test_what_is_no_saliency_is_refused() -> None:
    with pytest.raises(ConfigError, match="no saliency is called 'magnitud'; did you mean"):
        find_saliency("magnitud")
    with pytest.raises(ConfigError, match="is not a saliency"):
        find_saliency(3)  # type: ignore[arg-type]


def test_what_cannot_be_used_is_refused() -> None:
    net, names, data = net_and_data()
    taylor = SALIENCIES["taylor"]
    with pytest.raises(ConfigError, match=r"no parameter 'fc1.wieght'; did you mean"):
        SALIENCIES["magnitude"].of(net, ["fc1.wieght"])
    with pytest.raises(DataError, match="no batch"):
        taylor.of(net, names, [], loss=F.cross_entropy)
    with pytest.raises(DataError, match="one of the two"):
        taylor.of(net, names, data)
    with pytest.raises(NotFiniteError, match="loss"):
        taylor.of(net, names, data, loss=lambda output, _: output.sum(1) / 0)
    with pytest.raises(NotFiniteError, match=r"'<lambda>' is not finite in 'conv1.weight'"):
        Own(lambda w, g: w / 0).of(net, names, data, loss=F.cross_entropy)
    with pytest.raises(DataError, match="one number per weight"):
        Own(lambda w, g: w.sum()).of(net, names, data, loss=F.cross_entropy)
