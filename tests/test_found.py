"""Networks that the generator found, each with the laws that one of them broke."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.generated.laws import Laws
from tests.support import doubled
from torch import Tensor, nn

import secateurs as sc


class GroupedTransposed(nn.Module):
    """A transposed kernel of one row in each of its groups is not depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 1, bias=False)
        self.up, self.out = nn.ConvTranspose1d(8, 2, 3, padding=1, groups=2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(self.conv(x)).mean(2))


class OneOfItsKind(nn.Module):
    """The gate of channel 0 is made by the same layer; no other unit is like it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.out(F.glu(torch.cat([x, torch.tanh(self.b(x))], 1), 1))


class Unflattened(nn.Module):
    """The first number of unflatten is an axis, and one size is left to it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 4, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).unflatten(1, (2, -1)).mean(1))


class ScaledScores(nn.Module):
    """The scores of one projection's queries and keys are divided by a number from a size."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, -1).unbind(2)
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
        return self.out(torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2))


class NumbersInARow(nn.Module):
    """One size in the code becomes what the other was."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 6, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).view(-1, 3, 2).sum(1))


FOUND = [(GroupedTransposed, (2, 3, 6)), (OneOfItsKind, (2, 5))]
FOUND += [(Unflattened, (2, 5)), (ScaledScores, (2, 4, 6)), (NumbersInARow, (2, 5))]


@pytest.mark.parametrize(("make", "shape"), FOUND, ids=[make.__name__ for make, _ in FOUND])
@pytest.mark.parametrize("seed", range(3))
def test_the_laws_hold_on_what_was_found(
    make: type[nn.Module], shape: tuple[int, ...], seed: int
) -> None:
    torch.manual_seed(0)
    assert Laws(doubled(make()), (torch.randn(shape).double(),), seed).check()["exact plans"]


def test_the_channels_before_a_grouped_transposed_convolution_can_go() -> None:
    torch.manual_seed(0)
    graph = sc.trace(doubled(GroupedTransposed()), torch.randn(2, 3, 6).double())
    assert [(g.name, len(g.blocks())) for g in graph] == [("conv", 2)]
