"""What a criterion does not apply to: groups, targets, needs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.networks import network
from tests.references import (
    EXAMPLES,
    LOSS,
    close,
    everything,
    information_gain,
    pairs,
    scored,
)  # fmt: skip
from torch import Tensor, nn

import secateurs as sc
from secateurs.criteria import InformationGain, Obd
from secateurs.errors import ConfigError, DataError, UnscoredError


def test_groups_without_a_scale_are_left_alone_and_named() -> None:
    found = scored("bn-scale")
    reason = "no normalisation scales all of its units"
    assert found.unscored == dict.fromkeys(["left", "right", "mix", "fc1"], reason)


def test_a_criterion_that_applies_nowhere_is_refused() -> None:
    net, x = network("lenet")
    with pytest.raises(UnscoredError, match="'bn-scale' applies to no group"):
        sc.score(net, sc.trace(net, x), criterion="bn-scale")


class LowRank(nn.Linear):
    """A linear layer plus a product of rank 3, as in LoRA."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.down = nn.Parameter(torch.randn(3, 8))
        self.up = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.up @ self.down, self.bias)


@pytest.mark.parametrize("name", ["taylor", "taylor-second", "fisher", "obd"])
def test_a_product_of_weights_alone_has_no_gate(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), LowRank(), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    graph = sc.trace(net, x)
    found = sc.score(net, graph, [(x, y)], loss=LOSS, criterion=name)
    [rank] = [group.name for group in graph.groups if group.size == 3]
    assert set(found) == {"0", "2"}
    assert found.unscored.keys() == {rank}
    assert "products of weights alone" in found.unscored[rank]


def test_pruning_leaves_unscored_groups_alone_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x, y = pairs()
    result = sc.prune(
        everything(), x[:2], train=[(x, y)], loss=LOSS, criterion="bn-scale", updates=0, final=0,
        step=2, budget={"units": 0.8}, progress=False,
    )  # fmt: skip
    assert set(result.plan.groups) <= {"stem", "a"}
    assert len(result.plan) >= 5
    assert "group 'mix' is left alone: no normalisation scales" in caplog.text
    assert "left alone: mix: no normalisation scales" in str(result)
    assert math.isnan(result.record().importance["mix"][0, 0])


def test_a_number_as_a_target_is_quantised_on_request() -> None:
    net, (x, _) = everything(), pairs()
    y = torch.linspace(-1, 1, EXAMPLES).double()
    graph = sc.trace(net, x[:2])
    found = sc.score(net, graph, [(x, y)], criterion=InformationGain(bins=4, edges=(-0.4, 0.3)))
    cells = (y > -0.4).long() + (y > 0.3).long()
    close(found, information_gain(net, x, cells, bins=4), 1e-9)
    assert found.criterion == "information-gain-4@-0.4,0.3"


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.zeros(EXAMPLES), DataError, "needs classes, not torch.float32"),
        (torch.zeros(EXAMPLES, 2).long(), DataError, "one label per example"),
        (None, DataError, "with a tensor as the target"),
    ],
)
def test_information_gain_refuses_other_targets(
    target: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scored("information-gain", [(pairs()[0], target)])


def test_information_gain_refuses_a_calibration_batch_that_is_too_small() -> None:
    x, y = pairs(4)
    with pytest.raises(UnscoredError, match="at least as many examples, not 4"):
        scored("information-gain", [(x, y)])


def test_a_need_that_is_not_there_is_refused() -> None:
    class Odd(Obd):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"gradients"})

    with pytest.raises(ConfigError, match=r"needs 'gradients', .* mean 'gradient'"):
        scored(Odd())
