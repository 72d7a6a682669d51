"""Numbers that the code computes from a size: folded or refused, never wrong without a word."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.support import doubled
from torch import Tensor, nn

import secateurs as sc

WIDTH, HEADS, DIM = 24, 4, 6
Scale = Callable[[Any, Tensor], Any]  # (module, queries) -> what the scores are multiplied by


pytestmark = pytest.mark.usefixtures("in_double")


class Attention(nn.Module):
    """Scores are multiplied by `scale`, or made by `scores`."""

    def __init__(self, scale: Scale, scores: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.scale_of, self.scores, self.heads, self.dim = scale, scores, HEADS, DIM
        self.qk, self.v = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 3)
        self.kept, self.kept_by_numpy = DIM**-0.5, 1 / np.sqrt(DIM)
        self.register_buffer("tensor", torch.tensor(DIM).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        qk = self.qk(x).view(b, t, 2, self.heads, self.dim)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        v = self.v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.scores is not None:
            scores = self.scores(self, q, k)
        else:
            scores = q @ k.mT * self.scale_of(self, q)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def cut(model: nn.Module, *, replay: bool = False) -> float | None:
    """The error of a cut at head dims of q·k; None if that is not offered."""
    model, x = doubled(model), torch.randn(2, 5, WIDTH)
    graph = sc.trace(model, x, replay=replay)
    found = [g for g in graph if g.kind == "head-dim" and g.axes[0].tensor.startswith("qk")]
    if not found:
        return None
    units = [int(unit) for block in found[0].blocks() for unit in block[:2]]
    plan = graph.plan({found[0].name: units})
    return sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error


FOLLOWED: dict[str, Scale] = {
    "power": lambda m, q: q.shape[-1] ** -0.5,
    "math.sqrt": lambda m, q: 1 / math.sqrt(m.dim),
    "an attribute": lambda m, q: m.kept,
    "an attribute by numpy": lambda m, q: m.kept_by_numpy,
    "a buffer": lambda m, q: 1 / m.tensor,
    "a number in the code": lambda m, q: 0.408,
}
UNSEEN: dict[str, Scale] = {
    "np.sqrt": lambda m, q: 1 / np.sqrt(m.dim),
    "np.sqrt of a shape": lambda m, q: np.sqrt(q.shape[-1]) ** -1,
    "np.array": lambda m, q: float(np.array(m.dim) ** -0.5),
    "sqrt imported": lambda m, q: 1 / sqrt(m.dim),
    "float": lambda m, q: float(m.dim) ** -0.5,
    "int": lambda m, q: int(m.dim) ** -0.5,
    "math.pow": lambda m, q: math.pow(m.dim, -0.5),
    "text": lambda m, q: int(str(m.dim)) ** -0.5,
    "len": lambda m, q: len(q[0, 0, 0]) ** -0.5,
    "a count": lambda m, q: sum(1 for _ in range(m.dim)) ** -0.5,
    "an integer": lambda m, q: 1 / math.isqrt(m.dim * m.dim),
    "torch.tensor": lambda m, q: torch.tensor(m.dim**-0.5),
    "torch.tensor of the size": lambda m, q: torch.tensor(m.dim).rsqrt(),
    "torch.Tensor": lambda m, q: torch.Tensor([m.dim]).rsqrt(),
    "torch.full": lambda m, q: torch.full((1,), m.dim**-0.5),
    "new_tensor": lambda m, q: q.new_tensor(m.dim**-0.5),
    "filled": lambda m, q: torch.ones(1).fill_(m.dim**-0.5),
    "from_numpy": lambda m, q: torch.from_numpy(np.array([m.dim**-0.5])),
    "a range": lambda m, q: torch.arange(1, m.dim + 1).sum() ** -0.5,
    # as a number in the code is, but for another reason
    "a number that is in the code too": lambda m, q: (
        0.5 * (2 * 0.5) if m.dim < 0 else 3 / float(m.dim)
    ),
}
SCORES: dict[str, Callable[..., Tensor]] = {
    "added": lambda m, q, k: (q + m.dim**-0.5) @ k.mT,
    "a power": lambda m, q, k: (q**2 + 1) ** (m.dim**-0.5) @ k.mT,
    "a bound": lambda m, q, k: (q @ k.mT).clamp(max=m.dim**-0.5),
    "alpha": lambda m, q, k: torch.baddbmm(
        torch.zeros(1, 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=m.dim**-0.5
    ).unflatten(0, q.shape[:2]),
    "torch.true_divide": lambda m, q, k: torch.true_divide(q @ k.mT, np.sqrt(m.dim)),
}


@pytest.mark.parametrize("form", FOLLOWED)
def test_what_can_be_followed_is_folded_or_needs_nothing(form: str) -> None:
    error = cut(Attention(FOLLOWED[form]))
    assert error is not None
    assert error <= 1e-12


def unseen(form: str) -> nn.Module:
    return Attention(UNSEEN.get(form, FOLLOWED["power"]), SCORES.get(form))


@pytest.mark.parametrize("form", [*UNSEEN, *SCORES])
def test_what_cannot_be_followed_is_refused(form: str) -> None:
    assert cut(unseen(form)) is None


@pytest.mark.parametrize("form", ["np.sqrt", "torch.tensor", "a bound"])
def test_what_cannot_be_followed_is_served_by_replay(form: str) -> None:
    error = cut(unseen(form), replay=True)
    assert error is not None
    assert error <= 1e-12


class Weighted(nn.Module):
    """A convolution's channels, one of which changes a number, the other none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.out(F.relu(self.b(x * float(x.shape[1]) ** -0.5)))


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
def test_only_the_groups_that_change_a_number_are_given_up(wrap: Any) -> None:
    model, x = doubled(wrap(Weighted())), torch.randn(2, 3, 4, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = sc.trace(model, x)
    assert [group.name.rpartition(".")[2] for group in graph] == ["b"]
    why = next(axis.reason for axis in graph.frozen if axis.tensor.endswith("a.weight"))
    assert "mul in" in why
    assert "[0.3535" in why
    assert "math.sqrt(d)" in why
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
