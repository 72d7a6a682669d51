"""Models on the meta device: shapes are enough to trace, plan and cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.errors import LawError


def test_a_model_without_values_is_planned_and_cut() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        x = torch.zeros(1, 4)
    plan = sc.trace(net, x).plan({"0": [1, 5]})
    small = sc.apply(net, plan)
    assert [tuple(p.shape) for p in small.parameters()] == [(6, 4), (6,), (2, 6), (2,)]
    assert all(p.is_meta for p in small.parameters())
    real = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    proof = sc.verify(real, sc.apply(real, plan), plan, torch.randn(3, 4).double())
    assert proof.holds  # the plan serves the model that has them
    with pytest.raises(LawError, match="no values"):
        sc.verify(net, small, plan, x)
