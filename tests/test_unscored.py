"""What a criterion does not apply to: groups, targets, needs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
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
