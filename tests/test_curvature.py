"""Second derivatives: the estimate against the exact value, and what cannot be differentiated."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.networks import NETWORKS, network
from tests.references import LOSS, as_tensors, close, everything, pairs, scored
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateurs as sc
from secateurs.criteria import Averaged, GroupBatch, Obd
from secateurs.errors import DataError, DerivativeError


def test_more_probes_bring_the_estimate_nearer_and_its_error_down() -> None:
    exact = as_tensors(scored("obd"))
    few, many = scored(Obd(probes=1)), scored(Obd(probes=64))
    close(many, exact, 0)
    assert many.criterion == "obd-hutchinson-64"
    for group in ("stem", "mix", "fc1"):
        assert (many.error[group] < few.error[group]).mean() > 0.7
        off = [abs(found[group] - exact[group].numpy()).sum() for found in (few, many)]
        assert off[1] < off[0]


def test_an_estimate_is_fixed_by_its_seed() -> None:
    one, same, other = (scored("obd-hutchinson", seed=seed) for seed in (1, 1, 2))
    assert one.to_dict() == same.to_dict() != other.to_dict()


def test_second_derivatives_follow_outputs_of_any_form() -> None:
    """Two tensors in a dict, a loss that is linear in one of them, and inputs by name."""
    net, inputs = network("dicts")
    graph = sc.trace(net, inputs)

    def loss(output: Any, target: Any) -> Tensor:
        return output["mean"].square().sum(1) + output["more"][0].sum(1)

    found = sc.score(net, graph, [(inputs, None)], loss=loss, criterion="obd")
    weight = net.mean.weight.detach()
    with torch.no_grad():
        read = torch.cat([F.relu(net.a(inputs["left"])), F.relu(net.b(inputs["right"]))], 1)
    wanted = read.square().mean(0) * weight.square().sum(0)  # ½ · 2 Σ_c (W_ci x_i)²
    close(found, {"a": wanted[:8], "b": wanted[8:]}, 1e-9)


class Once(torch.autograd.Function):
    """A square with a gradient of first order alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


@pytest.mark.parametrize("name", ["taylor-second", "obd", "obd-hutchinson"])
def test_a_loss_without_a_second_derivative_is_refused(name: str) -> None:
    net, x = network("residual")
    with pytest.raises(DerivativeError, match="choose a criterion of first order"):
        sc.score(
            net, sc.trace(net, x), [(x, x)], criterion=name,
            loss=lambda output, _: Once.apply(output).sum(1),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["obd", "obd-hutchinson"])
def test_a_loss_that_is_linear_in_the_output_is_refused(name: str) -> None:
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    logits = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    net = nn.Sequential(*logits, nn.LogSoftmax(1))
    loss = nn.NLLLoss(reduction="none")
    with pytest.raises(DerivativeError, match="put that in the loss"):
        sc.score(net, sc.trace(net, x), [(x, y)], loss=loss, criterion=name)
    found = sc.score(logits, sc.trace(logits, x), [(x, y)], loss=LOSS, criterion=name)
    assert found["0"].any()


def test_the_error_of_an_estimate_holds_for_workers_that_share_the_data() -> None:
    """Examples that are nearly alike, one to a batch: their signs must not be alike."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10))
    x, y = 1 + 0.01 * torch.randn(64, 6), torch.arange(64) % 10
    graph, data = sc.trace(net, x[:2]), list(zip(x.split(1), y.split(1), strict=True))
    exact = sc.score(net, graph, [(x, y)], loss=LOSS, criterion="obd")["0"]
    criterion, states = Obd(probes=1), []
    for batch in data:
        sc.score(
            net, graph, [batch], loss=LOSS, criterion=criterion,
            share=lambda own: states.append(own) or [own],
        )  # fmt: skip
    merged = functools.reduce(criterion.merge, (state["0"] for state in states))
    off = abs(criterion.score(merged).numpy() - exact)
    assert (off <= 3 * criterion.error(merged).numpy() + 1e-9).all()


def test_a_single_draw_tells_no_error() -> None:
    x, y = pairs(2)
    one, two = scored("obd-hutchinson", [(x[:1], y[:1])]), scored("obd-hutchinson", [(x, y)])
    assert not one.error
    assert set(two.error) == set(two)


def test_gauss_newton_needs_the_loss_apart_from_the_network() -> None:
    x, y = pairs()
    net = everything()
    with pytest.raises(DataError, match="needs loss"):
        sc.score(
            net, sc.trace(net, x[:2]), [(x, y)], criterion="obd",
            objective=lambda model, batch: LOSS(model(batch[0]), batch[1]),
        )  # fmt: skip


def test_too_many_outputs_for_the_exact_second_derivative_are_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5000))
    x = torch.randn(2, 2)
    graph, data = sc.trace(net, x), [(x, x)]
    options: dict[str, Any] = {"loss": lambda o, _: o.square().sum(1)}
    with pytest.raises(DerivativeError, match=r"5000 outputs .* 'obd-hutchinson'"):
        sc.score(net, graph, data, criterion="obd", **options)
    assert sc.score(net, graph, data, criterion="obd-hutchinson", **options)["0"].any()


class Slope(Averaged):
    """∂C_n/∂g, by hooks at the readers, or (with `second`) by gates that are tensors."""

    name = "slope"

    def __init__(self, second: bool):
        self.needs = frozenset({"gradient", "mean_gradient", *(["hessian"] if second else [])})

    def each(self, batch: GroupBatch) -> Tensor:
        return batch.gradient + 2 * batch.mean_gradient


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_and_hooks_give_the_same_derivatives(name: str) -> None:
    net, inputs = network(name)
    graph = sc.trace(net, inputs)

    def objective(model: Any, batch: Any) -> Tensor:
        args, kwargs = ((), batch) if isinstance(batch, dict) else (batch, {})
        args = args if isinstance(args, tuple) else (args,)
        outputs = [t for t in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor)]
        return sum(out.flatten(1).square().sum(1) for out in outputs)

    hooks, gates = (
        sc.score(net, graph, [inputs], objective=objective, criterion=Slope(second))
        for second in (False, True)
    )
    assert any(hooks[group].any() for group in hooks)
    close(gates, as_tensors(hooks), 1e-9)
